"""Trackers beside TensorBoard: asked for, checked before anything is queued, and one run for all starts of a run."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from pipeline.config.check_training import TRACKERS
from pipeline.config.load import to_yaml
from pipeline.config.needs import missing
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import append_line
from pipeline.runtime.run_dir import RunDir
from pipeline.train.recorder import Recorder
from pipeline.train.trackers import Trackers, run_id

ROOT = Path(__file__).resolve().parents[2]


def test_the_list_is_that_of_accelerate():
    assert {*TRACKERS, "tensorboard"} == set(LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wandbb", "Did you mean 'wandb'"),
        ("tensorboard", "It is always written"),
        ("x", "expected one of aim, clearml"),
    ],
)
def test_an_unknown_one_is_refused_with_the_list(tmp_path, name, said):
    with pytest.raises(UserError, match=said):
        tiny.config(tmp_path, trackers=[name])


def test_one_whose_package_is_missing_is_refused_before_training(tmp_path):
    absent = [name for name in TRACKERS if importlib.util.find_spec(name) is None]
    if not absent:
        pytest.skip("every tracker is installed here")
    (problem,) = missing(tiny.config(tmp_path, trackers=absent[:1]), {"train"})
    assert f"found {absent[0]}, but its package is not installed" in problem


def test_none_is_imported_unless_it_is_asked_for():
    code = f"import sys, pipeline.train.job; sys.exit(any(name in sys.modules for name in {TRACKERS!r}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


class Kept:
    """An Accelerator's part in it, and a tracker that fails when it is told to."""

    name = "kept"

    def __init__(self):
        self.trackers, self.rows, self.kwargs, self.broken = [self], [], {}, False

    def init_trackers(self, project, *, config, init_kwargs):
        self.kwargs = {"project": project, "config": config, **init_kwargs["wandb"]}

    def log(self, values, *, step):
        if self.broken:
            raise OSError("no network")
        self.rows.append((step, values))

    def finish(self):
        self.rows.append("finished")


def test_it_gets_what_tensorboard_gets_and_its_failure_does_not_end_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("WANDB_MODE", "online")  # the user's own word counts
    kept, run = Kept(), RunDir(tmp_path / "mine")
    append_line(run.starts, {"time": 1.5})
    trackers = Trackers(tiny.config(tmp_path), run, kept)
    recorder = Recorder(run, step=0, active=True, trackers=trackers)
    recorder.add(2, {"loss": 1.0, "lr": 0.1, "speed/tflops": 3.0})
    recorder.rewind(0)
    kept.broken = True
    recorder.add(4, {"loss": 1.0})
    recorder.add(6, {"loss": 1.0})
    recorder.close()
    assert kept.rows == [(2, {"loss/train": 1.0, "loss/rate": 0.1, "progress/tflops": 3.0})]
    assert capsys.readouterr().err.count("kept failed and is left out from now on: no network") == 1
    assert kept.kwargs["config"]["train.optim.lr"] == 3e-3 and kept.kwargs["resume"] == "allow"
    append_line(run.starts, {"time": 99.0})
    assert kept.kwargs["id"] == run_id(run) and run_id(run).startswith("mine-")


def test_wandb_offline_continues_the_same_run(tmp_path, monkeypatch):
    """Two starts of one run leave two offline folders of one id."""
    pytest.importorskip("wandb", reason="needs the package wandb")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    cfg = tiny.config(tmp_path, trackers=["wandb"], duration="4 steps")
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    (run.checkpoints / "finished.json").unlink()
    longer = tiny.revalidated(cfg, train={"duration": "8 steps"})
    run.config.write_text(to_yaml(longer))
    tiny.run(longer)
    ids = {path.name.split("-", 3)[-1] for path in (run.path / "wandb").glob("offline-run-*")}
    assert len(list((run.path / "wandb").glob("offline-run-*"))) == 2 and ids == {run_id(run)}
