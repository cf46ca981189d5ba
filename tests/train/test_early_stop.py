"""Training ends when validation no longer improves, at the same step however often it was interrupted."""

import pytest
import tiny

from pipeline.checkpoint import newest_valid, read, step_to_read
from pipeline.config.load import config_from, to_yaml
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir, parse_step
from pipeline.sample import sample

STALE = {  # nothing is learned, so the first validation stays the best
    "duration": "100 steps",
    "optim": {"lr": 1e-30},
    "validate_every": "2 steps",
    "early_stop": {"patience": "6 steps"},
}


def test_it_stops_after_its_patience_and_the_run_is_finished(tmp_path):
    cfg = tiny.config(tmp_path, **STALE)
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    saved = read(newest_valid(run)[0]).numbers
    assert (saved["step"], saved["best_step"]) == (8, 2)
    assert run.finished()


def test_it_needs_validation(tmp_path):
    cfg = tiny.config(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    with pytest.raises(UserError, match=r"early_stop.metric: valid/loss needs train.validate_every, which is null"):
        config_from([str(tmp_path), "train.early_stop={patience: 3 steps}"])


def test_the_best_psnr_is_the_largest(tmp_path):
    early = {"metric": "valid/psnr", "patience": "50 steps"}
    cfg = tiny.config(tmp_path, model=tiny.AUTOENCODER, validate_every="2 steps", early_stop=early)
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    seen = [row["valid/psnr"] for row in tiny.history(run) if "valid/psnr" in row]
    assert len(set(seen)) > 3
    assert read(newest_valid(run)[0]).numbers["best"] == pytest.approx(max(seen))


def test_the_best_checkpoint_is_kept_and_can_be_sampled(tmp_path):
    """Rotation keeps it beside the last one; `--step best` and sample.step=best mean it."""
    often = {"checkpoint_every": "1000 steps", "keep_last": 1, "validate_every": "2 steps"}
    cfg = tiny.config(tmp_path, **{**STALE, **often, "duration": "12 steps", "early_stop": {"metric": "valid/loss"}})
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    assert (run.steps(), run.best_step(), run.chosen_step(None)) == ([2, 12], 2, 12)  # no patience: to the end
    assert sample(cfg, run, step="best").parent.name == "step-000000002"
    best = tiny.revalidated(cfg, sample={"step": "best"})
    assert sample(best, run) == sample(cfg, run, step=2)
    assert step_to_read(run, "best") == run.checkpoint(2)


def test_there_is_no_best_checkpoint_where_nothing_tells_it(tmp_path):
    cfg = tiny.config(tmp_path, duration="1 steps")
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    with pytest.raises(UserError, match=r"sample.step: found best, but train.early_stop is null"):
        config_from([str(tmp_path), "sample.step=best"])
    whole = ["train.early_stop={metric: valid/loss}", "train.validate_every=2 steps", "sample.step=best"]
    with pytest.raises(UserError, match="valid/loss needs a validation split"):
        config_from([str(tmp_path), *whole, "data.split.valid=0"])
    assert config_from([str(tmp_path), *whole]).sample.step == "best"
    run = RunDir(tmp_path)
    with pytest.raises(UserError, match="has no best checkpoint"):
        step_to_read(run, "best")
    with pytest.raises(UserError, match="--step: found 'last'"):
        parse_step("last")
