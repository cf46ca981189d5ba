"""Sweeps on this machine, in the foreground: cancelled from another shell; pruned by what evaluation measures."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import HERE, LIMIT, slurm_words
from optuna.trial import TrialState
from sweeping import REAL, base, said, toy_value

from pipeline.runtime.files import read_json, read_lines
from slurm.sweep.driver import trials_of
from slurm.sweep.folder import SweepDir
from slurm.sweep.here import running
from slurm.sweep.runs import PRUNED, Run, training_values

ROOT = HERE.parents[1]


def begun(root: Path, name: str, *words: str) -> tuple[SweepDir, "subprocess.Popen[bytes]"]:
    """A sweep, and the process in whose foreground it runs."""
    command = [sys.executable, "-m", "slurm", "sweep", "submit", *base(root), f"name={name}", "cluster=local", *words]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}", "PYTHONSAFEPATH": "1"}
    with (root / "said.txt").open("w") as log:
        return SweepDir(root / "sweeps" / name), subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)


def wait_until(good: Callable[[], bool], root: Path) -> None:
    end = time.monotonic() + LIMIT
    while not good():
        assert time.monotonic() < end, (root / "said.txt").read_text()
        time.sleep(0.1)


def steps(sweep: SweepDir, trial: int) -> list[int]:
    path = Run(sweep, trial, 0).path / "steps.txt"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def test_cancelled_from_another_shell_it_ends_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0.3")
    sweep, shell = begun(tmp_path, "cut", "train.optim.lr=1e-3,1e-4")
    wait_until(lambda: len(steps(sweep, 0)) >= 2, tmp_path)
    done = slurm_words("sweep", "cancel", str(sweep.path))
    assert "cancelled 0000-s0" in done.stdout, done.stdout + done.stderr
    assert shell.wait() == 1
    assert "cancelled" in (tmp_path / "said.txt").read_text()
    assert running(sweep) == [] and not sweep.finished.is_file()
    assert (
        f"to go on: python -m slurm sweep submit {sweep.path}" in slurm_words("sweep", "status", str(sweep.path)).stdout
    )
    monkeypatch.setenv("TOY_PACE", "0")
    assert slurm_words("sweep", "submit", str(sweep.path)).returncode == 0
    found, settings = trials_of(sweep), sweep.settings()
    assert [t.value for t in found] == pytest.approx([toy_value(settings, t) for t in found])
    assert [steps(sweep, n) for n in (0, 1)] == [list(range(1, 11))] * 2  # none twice


def pruned_by_evaluation(root: Path, *words: str) -> SweepDir:
    """The third trial is the worst of three by far: with two complete, the median ends it at its first rung."""
    words = (
        "sweep.pruning.kind=median",
        "sweep.pruning.metric=fd-domain",
        "sweep.pruning.startup=2",
        "sweep.pruning.every_kimg=100",
        *words,
    )
    sweep, shell = begun(root, "pruned", *words)
    assert shell.wait() == 0, (root / "said.txt").read_text()
    found = trials_of(sweep)
    assert [t.state for t in found] == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED], said(sweep)
    rungs = [t.intermediate_values for t in found]
    assert all(len(r) == 1 for r in rungs) and max(rungs[2].values()) > max(rungs[0].values()), rungs
    note = read_json(Run(sweep, 2, 0).path / PRUNED)
    ((images, value),) = found[2].intermediate_values.items()
    assert (note["metric"], note["images"], note["value"]) == ("fd-domain", images, value)
    report = (sweep.path / "report.md").read_text()
    assert "- trials: 2 complete, 1 pruned" in report and f"fd-domain = {value:.4g} after {images} images" in report
    return sweep


def test_a_metric_that_evaluation_measures_ends_a_bad_trial_and_disturbs_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0.15")
    sweep = pruned_by_evaluation(
        tmp_path, "train.optim.lr=1e-3,2e-3,1e-1", "train.global_batch=32", "sweep.pruning.first_kimg=0.1"
    )
    found = trials_of(sweep)
    assert [t.value for t in found[:2]] == pytest.approx([toy_value(sweep.settings(), t) for t in found[:2]])
    assert [steps(sweep, n) for n in (0, 1)] == [list(range(1, 11))] * 2  # stopped at the rung, and resumed
    assert len(steps(sweep, 2)) < 10


@pytest.mark.full
def test_a_real_training_stops_at_a_rung_is_measured_there_and_ends_as_if_nothing_had_been_asked(tmp_path):
    words = (*REAL, "train.checkpoint_every=10 steps", "train.keep_last=20", "train.duration=120 steps")
    words = (*words, "train.global_batch=32", "train.validate_every=30 steps")
    rung = ("sweep.pruning.first_kimg=0.3", "sweep.pruning.images=32")
    sweep = pruned_by_evaluation(tmp_path, *words, *rung, "train.optim.lr=1e-2,3e-3,1e-6")
    alone, shell = begun(tmp_path, "alone", *words, "train.optim.lr=1e-2,3e-3", "sweep.trials=1")
    assert shell.wait() == 0, (tmp_path / "said.txt").read_text()
    first, same = (Run(s, 0, 0) for s in (sweep, alone))
    assert len(read_lines(first.records.starts)) > len(read_lines(same.records.starts)) == 1
    losses = [training_values(run.launch(), "valid/loss") for run in (first, same)]
    assert losses[0] == losses[1] and trials_of(sweep)[0].value == trials_of(alone)[0].value
