"""`status` over many runs: each is read from where it was submitted, and none hides the others."""

import os
import re
import shutil
from pathlib import Path

import pytest
import tiny
from launching import profile, real, stand_in, with_stand_ins

from pipeline.config.paths import sample_set_name
from pipeline.runtime import cli
from pipeline.runtime.files import append_line, write_json
from pipeline.runtime.run_dir import create_run
from slurm.__main__ import main
from slurm.commands import _run_here
from slurm.ledger import State, launches, note, submissions
from slurm.progress import ProgressTable
from slurm.status import explain
from slurm.submit import detail, run_here
from slurm.workflows import launch_for, meant


def prepared(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose data is prepared, submitted in a folder with relative paths."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    launch = stand_in(Path(), profile("local"), name=name, only=("prepare",))
    assert not launch.cfg.data_dir.is_absolute()
    assert run_here(launch, ProgressTable(["prepare"], title="")) == 0
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
    assert not problems and run_here(again, ProgressTable(["prepare"], title="")) == 0
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
    assert run_here(here, ProgressTable(["prepare"], title="")) == 0
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
    assert launch.run.path == copy and launch.overrides == () and not run.path.exists()
    assert all(str(copy) in job.argv for job in launch.jobs)
    assert submissions(launch.run) == {} and os.fspath(copy.parent) == str(launch.cfg.runs_dir)


def test_the_progress_of_a_job_that_started_again_is_what_this_start_has_said(tmp_path):
    """Its earlier starts, and submissions, left their errors in their logs."""
    launch = stand_in(tmp_path, profile("testbed"), only=("train",))
    record = launch.run.jobs / "train"
    record.mkdir(parents=True)
    (record / "7_0_log.out").write_text("error: the first try failed\n")
    note(launch.run, "submitted", job="train", ids=["8"], executor="slurm", born=[], snapshot="")
    running = State("train", "running", ids=("8",))
    assert explain(launch, running) == "" and detail(launch, "train", since=0.0) == ""
    log = record / "8_0_log.out"
    log.write_text("error: a node was lost\nsubmitit INFO (2026-01-01) - Starting with JobEnvironment(job_id=8)\n")
    assert explain(launch, running) == "" and detail(launch, "train", since=0.0) == ""
    with log.open("a") as file:
        file.write("compiling\n")
    assert explain(launch, running) == "compiling" == detail(launch, "train", since=0.0)
    append_line(launch.run.starts, {"plan": {"total_steps": 12}, "time": 5.0})
    append_line(launch.run.metrics, {"step": 4, "images": 32, "speed/images_per_second": 50.0, "loss": 1.0, "start": 1})
    assert (
        detail(launch, "train", since=5.0).startswith("step 4/12") and detail(launch, "train", since=6.0) == "compiling"
    )


def test_a_training_that_started_again_has_no_pace_before_it_has_said_one(tmp_path):
    launch = stand_in(tmp_path, profile("testbed"), only=("train",))
    row = {"step": 4, "images": 32, "speed/images_per_second": 50.0, "speed/goodput": 0.5, "loss": 1.0, "start": 1}
    append_line(launch.run.metrics, row)
    append_line(launch.run.starts, {"plan": {"total_steps": 12}})
    assert "50 images/s" in explain(launch, State("train", "running"))
    assert "goodput 50% (share of its time in steps that count)" in explain(launch, State("train", "running"))
    append_line(launch.run.starts, {"plan": {"total_steps": 12}})
    said = explain(launch, State("train", "running"))
    assert "step 4/12" in said and "images/s" not in said and "left" not in said


@pytest.mark.parametrize(
    ("cause", "commands"),
    [
        ("bad_config", ("mudi submit RUN",)),
        ("out_of_memory", ("mudi submit RUN train.micro_batch=16",)),
        ("error", ("mudi retry RUN", "mudi submit RUN")),
        ("time_limit", ("mudi retry RUN", "mudi submit RUN cluster.train.minutes=24:00:00")),
        ("cancelled", ("mudi retry RUN",)),
        ("held_by_user", ()),
        ("upstream", ()),
    ],
)
def test_advice_ends_with_the_commands_that_follow_it(tmp_path, cause, commands):
    launch = stand_in(tmp_path, profile("testbed"), only=("train",))
    said = explain(launch, State("train", "failed", cause, "why", ids=("8",))).splitlines()
    shown = [line.strip().partition(" (")[0] for line in said if line.strip().startswith("mudi ")]
    assert shown == [command.replace("RUN", str(launch.run.path)) for command in commands]


def test_the_setting_that_a_message_begins_with_is_the_one_to_change(tmp_path):
    launch = stand_in(tmp_path, profile("testbed"), only=("train",))
    why = "data.source.file_column: the table has none of file, image. Set it, or data.source.labels=none."
    for message, setting in ((why, "data.source.file_column="), ("/data/x is gone", "the setting")):
        said = explain(launch, State("train", "failed", "bad_config", message, ids=("8",)))
        assert f"mudi submit {launch.run.path} (followed by {setting} and another value)" in said


def test_a_run_that_failed_here_for_a_setting_says_how_to_change_it(tmp_path, capsys):
    failing = {"prepare": "--fail bad_config"}
    launch = stand_in(tmp_path, profile("local"), only=("prepare", "train"), options=failing)
    assert _run_here(launch) == 1
    said = capsys.readouterr().out
    assert said.count("->") == 1 and "prepare: -> correct the setting" in said
    assert f"mudi submit {launch.run.path} (followed by train.optim.lr= and another value)" in said


def test_before_the_first_run_it_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main("slurm", ["status"]) == 2
    assert "no folder 'runs' here: no run yet. mudi submit experiment=NAME" in capsys.readouterr().err
