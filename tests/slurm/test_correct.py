"""Other settings for a run: taken while nothing is trained, refused afterwards."""

import pytest
import tiny
from launching import SMALL, latent, profile, stand_in, with_stand_ins

from pipeline.config.load import autoencoder_config, config_from
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from slurm.__main__ import main
from slurm.progress import ProgressTable
from slurm.submit import EARLIER, correct, run_here
from slurm.workflows import launch_for


def run(launch) -> int:
    """In the foreground."""
    return run_here(launch, ProgressTable([job.name for job in launch.jobs], title="test"))


def settings(root, rate: float):
    """The tiny experiment with another learning rate."""
    return tiny.config(root, name="run", optim={"lr": rate, "warmup": "4 steps"})


def test_a_run_that_failed_before_it_trained_takes_the_setting_that_is_right(tmp_path):
    only = ("prepare", "train")
    launch = stand_in(tmp_path, profile("local"), only=only, options={"prepare": "--fail bad_config"})
    assert run(launch) == 1
    launch.run.metrics.write_text('{"step": 1, "loss": 9}\n')  # of a start that did not come as far as a checkpoint
    better = settings(tmp_path, 1e-4)
    with pytest.raises(UserError, match="was made with other settings"):
        create_run(better)
    (said,) = correct(better)
    assert "train.optim.lr: the run has 0.003, this call has 0.0001" in said
    assert correct(better) == []
    assert run(with_stand_ins(launch_for(better, make=True), only=only)) == 0
    assert config_from([str(launch.run.path)]).train.optim.lr == 1e-4
    before = launch.run.path / EARLIER / "1"
    assert (before / "config.yaml").is_file() and '"loss": 9' in (before / "metrics.jsonl").read_text()
    assert '"loss": 9' not in launch.run.metrics.read_text()
    # Now it holds a checkpoint, which other settings would not explain.
    worse = settings(tmp_path, 1e-3)
    assert correct(worse) == []
    with pytest.raises(UserError, match=r"train\.optim\.lr"):
        launch_for(worse, make=True)
    assert config_from([str(launch.run.path)]).train.optim.lr == 1e-4


def test_a_submission_that_is_refused_changes_no_settings(tmp_path, capsys):
    overrides = ["experiment=glyphs16", f"runs_dir={tmp_path}", f"data_dir={tmp_path}/data", "cluster=local"]
    run = launch_for(config_from(overrides), make=True).run
    assert main(["submit", *overrides, "train.optim.lr=1e-4", f"train.start_from={tmp_path}/none"]) == 2
    shown = capsys.readouterr()
    assert "train.start_from: found" in shown.err and shown.out == ""
    assert config_from([str(run.path)]).train.optim.lr == 4e-3


def test_less_memory_at_once_is_no_other_setting(tmp_path):
    launch_for(settings(tmp_path, 1e-3), make=True)
    cfg = settings(tmp_path, 1e-3)
    cfg = cfg.model_copy(update={"train": cfg.train.model_copy(update={"micro_batch": 4})})
    assert correct(cfg) == []
    assert launch_for(cfg, make=True).overrides == ("train.micro_batch=4",)


def test_an_autoencoder_takes_other_settings_until_somebody_else_uses_it(tmp_path):
    launch = latent(tmp_path, name="one")
    slower = (*SMALL, "train.duration=30 steps")
    said = correct(others(launch.cfg, slower))
    assert [line.partition(":")[0] for line in said] == [str(launch.autoencoder.path), str(launch.run.path)]
    assert config_from([str(launch.autoencoder.path)]).train.duration == "30 steps"
    latent(tmp_path, name="two", overrides=slower)
    faster = others(launch.cfg, SMALL)
    broken = launch.run.path.parent / "a-broken-one" / "config.yaml"
    broken.parent.mkdir()
    broken.write_text("x")
    with pytest.raises(UserError, match=f"{broken}: found 'x'"):  # it may be what uses the autoencoder
        correct(faster)
    broken.unlink()
    assert correct(faster) == []
    assert config_from([str(launch.autoencoder.path)]).train.duration == "30 steps"
    with pytest.raises(UserError, match="was made with other settings"):
        create_run(autoencoder_config(faster))


def others(cfg, overrides):
    """The same, of an autoencoder with other settings."""
    return cfg.model_copy(update={"latents": cfg.latents.model_copy(update={"overrides": tuple(overrides)})})


def test_a_name_that_is_taken_is_answered_with_one_that_is_free(tmp_path):
    """The advice can be followed: with that name the same words make a run, and the first one stays as it was."""
    first = create_run(settings(tmp_path, 1e-3))
    first.checkpoint(3).mkdir(parents=True)
    before = first.config.read_text()
    for refusing in (create_run, lambda cfg: launch_for(cfg, make=True)):
        with pytest.raises(
            UserError, match=r"Add name=run-2 to the overrides that made it, for a run of its own, or take"
        ):
            refusing(settings(tmp_path, 1e-4))
    other = create_run(settings(tmp_path, 1e-4).model_copy(update={"name": "run-2"}))
    assert other.path != first.path and config_from([str(other.path)]).train.optim.lr == 1e-4
    assert first.config.read_text() == before
