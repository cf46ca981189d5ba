"""`status` over many runs: each is read from where it was submitted, and none hides the others."""

import os
import re
import shutil
from pathlib import Path

import pytest
import tiny
from launching import profile, real, stand_in, with_stand_ins

from pipeline.config.paths import sample_set_name
from pipeline.runtime.files import write_json
from pipeline.runtime.run_dir import create_run
from slurm.__main__ import main
from slurm.board import Board
from slurm.ledger import note, submissions
from slurm.local import run_here
from slurm.status import launches
from slurm.workflows import launch_for, meant


def prepared(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose data is prepared, submitted in a folder with relative paths."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    launch = stand_in(Path(), profile("local"), name=name, only=("prepare",))
    assert not launch.cfg.data_dir.is_absolute()
    assert run_here(launch, Board(["prepare"], title="")) == 0
    return launch.run.path


def test_runs_of_several_folders_are_read_each_from_its_own_and_we_stay_where_we_are(tmp_path, monkeypatch, capsys):
    runs = [prepared(tmp_path / name, name, monkeypatch) for name in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    main(["status", *map(str, runs)])
    assert len(re.findall(r"prepare +│ complete", capsys.readouterr().out)) == 2
    assert Path.cwd() == tmp_path
    # What is queued again works where the run was submitted, too.
    shutil.rmtree(tmp_path / "one" / "data")
    (launch, _), problems = launches(runs)
    again = with_stand_ins(launch, only=("prepare",))
    assert not problems and run_here(again, Board(["prepare"], title="")) == 0
    assert (tmp_path / "one" / "data").is_dir() and not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["x", "name: [", "train: {global_batch: many}"])
def test_a_broken_config_is_named_and_the_other_runs_are_shown(tmp_path, capsys, text):
    real(tmp_path, profile("local"), name="good")
    broken = tmp_path / "runs" / "bad" / "config.yaml"
    broken.parent.mkdir()
    broken.write_text(text)
    assert main(["status", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr()
    assert f"cannot read {broken}" in said.err and "good" in said.out
    assert main(["status", str(broken.parent)]) == 2 and str(broken) in capsys.readouterr().err


def test_a_damaged_manifest_is_named_and_the_other_runs_are_shown(tmp_path, capsys):
    real(tmp_path, profile("local"), name="good")
    bad = real(tmp_path, profile("local"), name="bad")
    write_json(bad.run.checkpoint(12) / "commit.json", {})
    write_json(bad.run.checkpoints / "finished.json", {})
    samples = bad.run.samples(12) / sample_set_name(bad.cfg)
    samples.mkdir(parents=True)
    (samples / "manifest.json").write_text("{")
    assert main(["status", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr()
    assert f"{samples / 'manifest.json'} is not readable JSON" in said.err and "good" in said.out


def test_where_slurm_is_not_runs_of_slurm_are_unknown_and_the_others_are_shown(tmp_path, capsys, monkeypatch):
    here = stand_in(tmp_path, profile("local"), name="here", only=("prepare",))
    assert run_here(here, Board(["prepare"], title="")) == 0
    there = stand_in(tmp_path, profile("testbed"), name="there", only=("train",))
    note(there.run, "submitted", job="train", ids=["7"], executor="slurm", born=[], snapshot="")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for a sentence on one line
    assert main(["status", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr().out
    assert re.search(r"here +│ prepare +│ complete", said) and re.search(r"train +│ unknown", said)
    assert "squeue is not on this machine" in said


def test_a_copy_of_a_run_is_the_run_that_is_submitted(tmp_path):
    """Its config says another name; its directory counts."""
    run = create_run(tiny.config(tmp_path, name="original"))
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(run.path, copy)
    shutil.rmtree(run.path)
    launch = launch_for(meant([str(copy)]), make=True)
    assert launch.run.path == copy and launch.words == () and not run.path.exists()
    assert all(str(copy) in job.argv for job in launch.jobs)
    assert submissions(launch.run) == {} and os.fspath(copy.parent) == str(launch.cfg.runs_dir)
