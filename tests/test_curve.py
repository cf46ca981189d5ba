"""A metric over training: every checkpoint that was to be kept is sampled and scored once, and drawn."""

import tiny

from data_prep import reference
from pipeline.__main__ import main
from pipeline.config.load import to_yaml
from pipeline.config.schema_metrics import DomainConfig
from pipeline.runtime.files import read_json


def test_a_curve_has_a_point_for_each_checkpoint_that_was_kept(tmp_path, capsys):
    cfg = tiny.config(tmp_path, model=tiny.GAME, checkpoint_every="5 steps", keep_every="4 steps", keep_last=1)
    domain = DomainConfig(width=8, features=8, max_images=600)
    cfg = cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update={"domain": domain})})
    tiny.prepare(cfg)
    reference.run(cfg)
    run = tiny.run(cfg)
    (run.path / "config.yaml").write_text(to_yaml(cfg))
    assert main(["curve", str(run.path), "--metric", "fid"]) == 2 and not (run.path / "samples").exists()
    assert "--metric: fid needs evaluate.inception.weights" in capsys.readouterr().err
    for _ in range(2):  # the second time everything is there
        assert main(["curve", str(run.path), "--metric", "fd-domain"]) == 0
    files = capsys.readouterr().out.split()
    assert {f"{run.path}/curve/comparison.md", f"{run.path}/curve/step.png"} <= set(files)
    steps = [read_json(path)["step"] for path in sorted(run.results.glob("*.json"))]
    assert steps == [4, 8, 12]
    assert (run.path / "curve" / "step.png").stat().st_size > 5000


def test_a_run_of_one_checkpoint_has_no_curve(tmp_path, capsys):
    cfg = tiny.config(tmp_path, duration="2 steps", checkpoint_every="2 steps", keep_last=1)
    tiny.prepare(cfg)
    assert main(["curve", str(tiny.run(cfg).path)]) != 0
    assert "train.keep_every" in capsys.readouterr().err
