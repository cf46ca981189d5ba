"""Sweeps on this machine: the same tasks one after the other; cancelled, pruned, over budget."""

import json
import os
import time
from datetime import datetime, timedelta

import pytest
from launching import LIMIT, slurm_cli
from sweeping import base, begun_here, finished_sweep, said, statuses_now, steps, toy_value, written

from pipeline.runtime.files import append_line, write_json
from slurm.sweep.report import ranked, trials_of
from slurm.sweep.runs import Run, make, training_values
from slurm.sweep.settings import SweepDir
from slurm.sweep.study import open_study
from slurm.sweep.submit import ARRAY, over_budget
from slurm.sweep.worker import Task


def test_cancelled_from_another_shell_it_goes_on_where_it_was_and_a_bad_trial_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0")
    monkeypatch.setenv("TOY_HOLD", "2")
    sweep, shell = begun_here(tmp_path, "cut", "train.optim.lr=1e-3,10")
    end = time.monotonic() + LIMIT
    while len(steps(sweep, 0)) < 2:
        assert time.monotonic() < end, (tmp_path / "said.txt").read_text()
        time.sleep(0.1)
    done = slurm_cli("sweep", "cancel", str(sweep.path))
    assert "cancelled 0000-s0" in done.stdout, done.stdout + done.stderr
    assert shell.wait() == 130
    shown = slurm_cli("sweep", "status", str(sweep.path)).stdout
    assert "1 cancelled, 1 not begun" in shown and f"mudi sweep submit {sweep.path}" in shown, shown
    monkeypatch.delenv("TOY_HOLD")
    assert slurm_cli("sweep", "submit", str(sweep.path)).returncode == 1
    found, settings = trials_of(sweep, sweep.settings()), sweep.settings()
    assert found[0].value == pytest.approx(toy_value(settings, found[0].params))
    assert steps(sweep, 0) == list(range(1, 11))  # none twice
    status = slurm_cli("sweep", "status", str(sweep.path))
    assert status.returncode == 1 and "non_finite" in status.stdout and "not finite" in status.stdout, status.stdout
    assert "1 complete, 1 failed" in (sweep.path / "report.md").read_text()
    assert [t["state"] for t in json.loads((sweep.path / "trials.json").read_text())] == ["complete", "failed"]


def test_a_bad_trial_is_pruned_with_all_its_seeds_and_told_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0")
    pruning = ["sweep.pruning.kind=median", "sweep.pruning.startup=1", "sweep.pruning.first_kimg=0.05"]
    overrides = ["name=pruned", "train.optim.lr=1e-3,1e-1", "train.global_batch=32", "train.validate_every=1 steps"]
    sweep, settings = written(tmp_path, *overrides, *pruning, "sweep.seeds=2")
    for trial in range(2):
        if trial == 1:
            monkeypatch.setenv("TOY_HOLD", "4")  # until the pruner asks it to stop
        for seed in range(2):
            assert Task(Run(sweep, trial, seed), settings).go() == 0
    states = [t.state.name for t in open_study(sweep, settings).trials]
    assert states == ["COMPLETE", "PRUNED"], said(sweep)
    assert len(steps(sweep, 1)) < 10 and not (Run(sweep, 1, 1).path / "steps.txt").exists()
    assert statuses_now(sweep) == ["complete"] * 2 + ["pruned"] * 2
    message = Run(sweep, 1, 0).outcome()["message"]
    images, value = max(open_study(sweep, settings).trials[1].intermediate_values.items())
    assert message == f"valid/loss = {value:.4g} after {images} images"
    before = len(steps(sweep, 1))
    assert Task(Run(sweep, 1, 0), settings).go() == 0  # started again, as after a kill: nothing more is trained
    assert len(steps(sweep, 1)) == before and len(open_study(sweep, settings).trials) == 2
    losses = training_values(Run(sweep, 0, 0).launch(), "valid/loss")
    assert open_study(sweep, settings).trials[0].intermediate_values == dict(losses)


def test_a_task_that_is_killed_between_telling_the_study_and_its_outcome_has_told_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0")
    overrides = ["name=told", "train.optim.lr=tag(log,interval(1e-4,1e-2))", "sweep.trials=2"]
    sweep, settings = written(tmp_path, *overrides)
    with monkeypatch.context() as cut:
        cut.setattr(Run, "end", lambda *_, **__: os._exit(9))
        pid = os.fork()
        if not pid:
            Task(Run(sweep, 0, 0), settings).go()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert Run(sweep, 0, 0).outcome() == {} and open_study(sweep, settings).trials[0].state.is_finished()
    assert Task(Run(sweep, 0, 0), settings).go() == 0
    (told,) = open_study(sweep, settings).trials
    assert told.value == Run(sweep, 0, 0).outcome()["value"]


def test_no_task_starts_after_its_time_or_beyond_the_gpu_hours(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0")
    past = (datetime.now() - timedelta(minutes=1)).isoformat(timespec="seconds")
    sweep, settings = written(tmp_path, "name=late", "train.optim.lr=1e-3,1e-4,1e-2,1e-1", f"sweep.until={past}")
    assert [Task(Run(sweep, n, 0), settings).go() for n in (0, 1)] == [0, 0]
    assert all("has passed" in t.states[0].message for t in trials_of(sweep, sweep.settings()) if t.states[0].message)
    assert {Run(sweep, n, 0).outcome()["status"] for n in (0, 1)} == {"over budget"}
    assert not any((Run(sweep, n, 0).path / "steps.txt").exists() for n in (0, 1))
    # Two runs have cost an hour of four GPUs each; a third may start where twelve hours may be spent, and no fourth.
    write_json(sweep.jobs / "array-0000" / ARRAY, {"runs": [0, 1, 2, 3], "asks": {"gpus": 4}, "time": 0})
    for run in range(2):
        Run(sweep, run, 0).end("complete", value=1.0)
        for event, at in (("start", 0.0), ("end", 3600.0)):
            row = {"event": event, "id": f"7_{run}", "restart": 0, "rank": 0, "time": at, "log": "/none"}
            append_line(sweep.jobs / "array-0000" / "attempts.jsonl", row)
    row = {"event": "start", "restart": 0, "rank": 0, "time": time.time(), "log": "/none"}
    append_line(sweep.jobs / "array-0000" / "attempts.jsonl", row | {"id": "7_2"})
    enough = sweep.settings().model_copy(update={"gpu_hours": 12.1, "until": None})
    assert over_budget(sweep, enough) == ""
    append_line(sweep.jobs / "array-0000" / "attempts.jsonl", row | {"id": "7_3"})
    assert "of which 8 are spent" in over_budget(sweep, enough)


LIMITS = [f"cluster.{job}.minutes={m}" for job, m in {"train": 10080, "sample": 30, "evaluate": 20}.items()]


def test_a_sweep_over_one_runs_checkpoint_trains_nothing_and_has_a_sample_set_for_each_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0")
    trained = finished_sweep(tmp_path, "name=trained", "train.optim.lr=1e-3,1e-4", "train.global_batch=64")
    run = Run(trained, 0, 0).path
    before = len((run / "steps.txt").read_text().split())
    overrides = [
        "sweep.program=toy",
        f"sweep.folder={tmp_path / 'sweeps'}",
        f"run={run}",
        "name=guided",
        "cluster=local",
    ]
    asked = ["sweep", "plan", *overrides, "sample.sampler.guidance.scale=0,1", *LIMITS]
    here = slurm_cli(*asked).stdout
    assert "in one job; 1 process\n" in here and "at most" not in here  # there is no time limit on this machine
    planned = slurm_cli(*asked, "cluster=slurm_generic")
    told = next(line for line in planned.stdout.splitlines() if line.startswith("each run:"))
    assert "sample, evaluate in one job" in told and "train" not in told and "30 min" in told, planned.stdout
    assert "at most:      1 GPU hours, 30 min 0 s, if every run took its time limit" in planned.stdout
    done = slurm_cli("sweep", "submit", *overrides, "sample.sampler.guidance.scale=0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = SweepDir(tmp_path / "sweeps" / "guided")
    found = trials_of(sweep, sweep.settings())
    assert [t.value for t in found] == pytest.approx([2.0 + 5 / 1024, 1.0 + 5 / 1024])
    assert len({outcome["samples"] for t in found for outcome in t.outcomes}) == 2
    stages = [set(t.outcomes[0]["seconds"]) for t in found]  # scale 1 is what the run itself sampled: nothing to do
    assert stages == [{"sample", "evaluate"}, set()]
    assert len((run / "steps.txt").read_text().split()) == before
    assert ranked(found, sweep.settings())[0].number == 1


def test_a_sweep_goes_on_elsewhere_or_with_other_resources(tmp_path, monkeypatch):
    """Submitted with a profile that was wrong: trials that are made take what the sweep asks for now."""
    monkeypatch.setenv("TOY_PACE", "0")
    sweep, settings = written(tmp_path, "name=moved", "train.optim.lr=1e-3,2e-3", "cluster=slurm_generic")
    made = make(settings, settings.combinations[0], Run(sweep, 0, 0))
    assert made.cfg.cluster.train.gpus == 1
    done = slurm_cli("sweep", "submit", str(sweep.path), "train.optim.lr=1")
    assert done.returncode == 2 and "takes settings of cluster alone" in done.stderr
    done = slurm_cli("sweep", "submit", str(sweep.path), "cluster=local", "cluster.train.minutes=7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses_now(sweep) == ["complete"] * 2
    train = Run(sweep, 0, 0).launch().jobs[1]
    assert "cluster.train.gpus=0" in train.argv and train.resources.minutes == 7
    again = [*base(tmp_path), "name=moved", "train.optim.lr=1e-3,2e-3", "cluster=local"]
    assert slurm_cli("sweep", "submit", *again).returncode == 0  # the command that made it, with another profile
    assert sweep.settings().base[-1] == "cluster=local"
