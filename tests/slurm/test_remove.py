"""What there is, and removing it: only what nothing runs in and nothing else needs."""

import os
import pty
import subprocess
import sys

import pytest
import tiny
from PIL import Image
from sweeping import finished_sweep

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory
from pipeline.runtime import cli
from pipeline.runtime.files import append_line, write_json
from pipeline.runtime.run_dir import COMMIT, create_run
from pipeline.runtime.run_lock import only_trainer
from slurm.rank import process_born


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A run with two checkpoints and its data, as it would be found from its folder."""
    monkeypatch.chdir(tmp_path)
    cfg = tiny.config(tmp_path)
    tiny.prepare(cfg)
    run = create_run(cfg)
    for step in (3, 6):
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / COMMIT).write_text("{}")
        (run.checkpoint(step) / "state.json").write_text("{}")
    append_line(run.metrics, {"step": 2, "valid/loss": 0.5})
    append_line(run.metrics, {"step": 6, "valid/loss": 0.25})
    return cfg, run


def said(capsys, *argv, code=0):
    found = cli.main("mudi", list(argv))
    text = "".join(capsys.readouterr())
    assert found == code, text
    return text


def test_runs_checkpoints_and_data_are_listed(here, capsys, monkeypatch):
    cfg, run = here
    monkeypatch.setenv("COLUMNS", "60")
    text = said(capsys, "list", "runs")
    assert text.startswith("runs/tiny\n    step 6; 2 checkpoints; ")
    lines = said(capsys, "list", "checkpoints", str(run.path)).splitlines()
    assert lines[0] == str(run.checkpoint(3)) and lines[1].startswith("    validation loss 0.5 (at step 2); ")
    assert "validation loss 0.25; " in lines[-2] + lines[-1] and lines[-1].endswith("newest")
    text = said(capsys, "list", "data")
    assert f"data/{data_directory(cfg).name}\n    train 60, valid 15; " in text and "used by tiny" in text
    assert "unet_small  " in said(capsys, "list", "models")
    assert "Did you mean 'runs'?" in said(capsys, "list", "run", code=2)


def test_a_run_is_removed_when_somebody_agrees(here, capsys):
    _, run = here
    assert "nobody can be asked" in said(capsys, "rm", "runs/tiny", code=2)
    for answer, code in (("n", 1), ("y", 0)):
        controller, terminal = pty.openpty()
        os.write(controller, f"{answer}\n".encode())
        done = subprocess.run([sys.executable, "-m", "slurm", "rm", "runs/tiny"], stdin=terminal, capture_output=True)
        assert done.returncode == code and run.path.exists() == (answer == "n"), done
        os.close(terminal)
        os.close(controller)
    assert list(run.path.parent.iterdir()) == []


def test_what_trains_or_is_needed_stays(here, tmp_path, capsys):
    cfg, run = here
    with only_trainer(run.lock):
        assert f"is being trained by process {os.getpid()}" in said(capsys, "rm", "runs/tiny", "--yes", code=2)
    data = data_directory(cfg)
    assert f"{data}: {run.path} uses it" in said(capsys, "rm", str(data), "--yes", code=2)
    assert "nothing to remove" in said(capsys, "rm", "--unused")
    student = tiny.revalidated(cfg, name="student", train={"start_from": str(run.path)})
    create_run(student)
    text = said(capsys, "rm", "runs/tiny", "--yes", code=2)
    assert f"{tmp_path}/runs/student needs it as the weights that its training begins with" in text
    text = said(capsys, "rm", str(data), "runs/tiny", "--yes", code=2)
    assert "2 reasons to remove nothing:" in text and "settings" not in text
    assert (run.path / "config.yaml").is_file() and (data / "shards").is_dir()
    said(capsys, "rm", "runs/tiny", "runs/student", "--yes")
    assert str(data.name) in said(capsys, "rm", "--unused", "--yes") and not data.exists()


def test_what_a_failed_preparation_left_is_removed_as_data_is(here, tmp_path, capsys):
    cfg, _ = here
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    overrides = ["data=folder", "data.image_size=16", "model=unet_tiny", "name=mine", f"data_dir={tmp_path}/data"]
    overrides.append("model.condition=class")
    for name in ("images", "nowhere"):  # one has no labels, which its list shows; the other cannot be listed
        assert cli.main("data_prep", ["fetch", *overrides, f"data.source.path={tmp_path}/{name}"]) == 2
    used = data_directory(cfg)
    left = sorted(path for path in used.parent.iterdir() if path != used)
    assert sorted([entry.name for entry in path.iterdir()] for path in left) == [[], ["source"]]
    other = [tmp_path / "data" / name for name in ("downloads", "holiday-0123abcd")]
    for path in other:
        (path / "source").mkdir(parents=True)
        (path / "notes.txt").touch()
    capsys.readouterr()
    assert "nobody can be asked" in said(capsys, "rm", str(left[0]), code=2)
    assert all(path.name in said(capsys, "list", "data") for path in left)
    assert f"removed {left[0]}" in said(capsys, "rm", str(left[0]), "--yes") and not left[0].exists()
    text = said(capsys, "rm", "--unused", "--yes")
    assert f"removed data/{left[1].name}" in text and not left[1].exists()
    for path in other:
        assert "is neither a run" in said(capsys, "rm", str(path), "--yes", code=2) and path.is_dir()
    run = create_run(config_from([*overrides, f"data.source.path={tmp_path}/nowhere", f"runs_dir={tmp_path}/runs"]))
    data = data_directory(config_from([str(run.path)]))
    (data / "source").mkdir(parents=True)
    assert f"{run.path} uses it" in said(capsys, "rm", str(data), "--yes", code=2)
    assert "nothing to remove" in said(capsys, "rm", "--unused", "--yes")
    said(capsys, "rm", str(run.path), str(data), "--yes")
    assert not data.exists()


def test_a_sweep_is_removed_with_its_runs_unless_it_is_under_way_or_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOY_PACE", "0")
    sweep = finished_sweep(tmp_path, "name=rates", "train.optim.lr=1e-3,1e-4")
    trial = sweep.trials / "0000-s0"
    assert "is part of the sweep" in said(capsys, "rm", str(trial), "--yes", code=2)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as job:  # stands in for what was started; ends with the block
        array = sweep.jobs / "array-0000"
        (trial / "outcome.json").rename(trial / "kept.json")
        asks = {"minutes": 1}
        write_json(array / "array.json", {"runs": [0], "asks": asks, "time": 0.0})
        ids = {"ids": [str(job.pid)], "born": [process_born(job.pid)], "executor": "local"}
        write_json(array / "submitted.json", ids)
        text = said(capsys, "rm", "sweeps/rates", "--yes", code=2)
        assert f"under way: 1 of its jobs. Cancel it first: mudi sweep cancel {sweep.path}" in text
    student = tiny.revalidated(tiny.config(tmp_path), name="student", train={"start_from": str(trial)})
    create_run(student)
    assert f"{tmp_path}/runs/student needs it" in said(capsys, "rm", "sweeps/rates", "--yes", code=2)
    (tmp_path / "runs" / "student" / "config.yaml").unlink()
    assert sweep.path.is_dir() and "nobody can be asked" in said(capsys, "rm", "sweeps/rates", code=2)
    assert "removed sweeps/rates" in said(capsys, "rm", "sweeps/rates", "--yes") and not sweep.path.exists()


@pytest.mark.usefixtures("here")
def test_what_does_not_exist_is_said_not_to_with_what_is_meant(capsys):
    text = said(capsys, "rm", "runs/tinny", "--yes", code=2)
    assert "runs/tinny does not exist. Did you mean 'runs/tiny'?" in text
    assert "Did you mean 'runs/tiny'?" in said(capsys, "rm", "tiny", "--yes", code=2)
    assert said(capsys, "rm", "elsewhere/x", "--yes", code=2).endswith("elsewhere/x does not exist.\n")
