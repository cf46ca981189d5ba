"""Sweeps on a real Slurm: nobody drives them, anything may die, every trial is there exactly once."""

import time

import pytest
from launching import slurm_words
from optuna.trial import TrialState
from sweeping import (
    CALM,
    Killer,
    accounted,
    expected_search,
    has_ended,
    jobs_of,
    said,
    submitted,
    toy_value,
    wait_until,
)

from slurm.sweep.driver import advance, trials_of
from slurm.sweep.runs import Run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
GRID = ("train.optim.lr=1e-4,1e-3", "train.global_batch=32,64")
SEARCH = ("train.optim.lr=tag(log,interval(1e-5,1e-1))", "train.global_batch=32,64,128", "sweep.strategy.startup=3")


def test_a_grid_goes_on_through_kills_with_nobody_watching(tmp_path):
    sweep = submitted(tmp_path, "grid", *GRID, "cluster=testbed", CALM, "sweep.at_once=2")
    settings, killer = sweep.settings(), Killer(sweep, seed=1, most=3)
    most = 0

    def ended() -> bool:
        nonlocal most
        killer.strike()
        most = max(most, sum(r["ended"] is None for r in starts(sweep)))
        time.sleep(1.0)
        return has_ended(sweep)

    wait_until(ended, sweep)
    found = accounted(sweep, count=4)
    assert len(killer.killed) >= 2, killer.killed
    assert most <= 2, said(sweep)  # at most two trials at a time
    assert [t.value for t in found] == pytest.approx([toy_value(settings, t) for t in found], abs=1e-12)
    best = min(found, key=lambda t: t.value)
    assert best.params == {"train.optim.lr": "0.001", "train.global_batch": "64"}
    assert "0003" in (sweep.path / "report.md").read_text()


def starts(sweep) -> list[dict]:
    """Every start of a run in its job, with its end, by the batches' records."""
    from pipeline.runtime.files import read_lines

    rows = [row for path in sweep.jobs.glob("batch-*/attempts.jsonl") for row in read_lines(path)]
    found = [row | {"ended": None} for row in rows if row["event"] == "start"]
    for start in found:
        over = [
            r["time"]
            for r in rows
            if r["id"] == start["id"] and r["event"] != "start" and r["restart"] == start["restart"]
        ]
        start["ended"] = max(over, default=None)
    return found


def test_a_search_goes_on_through_kills_and_is_the_search_that_nothing_disturbed(tmp_path):
    words = (*SEARCH, "cluster=testbed", CALM, "sweep.at_once=2", "sweep.trials=5")
    sweep = submitted(tmp_path, "search", *words)
    settings, killer = sweep.settings(), Killer(sweep, seed=2, most=3)

    def ended() -> bool:
        killer.strike()
        time.sleep(1.0)
        return has_ended(sweep)

    wait_until(ended, sweep)
    found = accounted(sweep, count=5)
    undisturbed = expected_search(settings, lambda t: toy_value(settings, t), path=tmp_path / "undisturbed")
    assert [t.params for t in found] == [t.params for t in undisturbed]
    assert [t.value for t in found] == pytest.approx([t.value for t in undisturbed], abs=1e-12)
    assert len(killer.killed) >= 1


def test_cancelled_it_stops_and_submitted_again_it_goes_on_and_a_bad_trial_poisons_nothing(tmp_path):
    words = ("train.optim.lr=1e-3,10,1e-4", "cluster=testbed", CALM, "sweep.at_once=1", "sweep.retries=1")
    sweep = submitted(tmp_path, "cut", *words)
    wait_until(lambda: any(sweep.trials.glob("*/state.json")) or any(sweep.trials.glob("*/steps.txt")), sweep)
    done = slurm_words("sweep", "cancel", str(sweep.path))
    assert "cancelled 000" in done.stdout, done.stdout + done.stderr  # whichever of the three was on
    wait_until(lambda: jobs_of(sweep) == [], sweep)
    assert "cancelled" in advance(sweep).words()  # a straggler's step does nothing
    assert slurm_words("sweep", "submit", str(sweep.path)).returncode == 0
    wait_until(lambda: has_ended(sweep), sweep)
    found = trials_of(sweep)
    assert [t.state for t in found] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE], said(sweep)
    assert found[1].user_attrs["cause"] == "non_finite"
    assert Run(sweep, 1, 0).final()["tries"] == 1  # what the configuration did is not tried again
    status = slurm_words("sweep", "status", str(sweep.path))
    assert status.returncode == 1 and "2 complete, 1 failed" in status.stdout
    more = slurm_words("sweep", "extend", str(sweep.path), "train.optim.lr=3e-4")
    assert more.returncode == 0, more.stderr
    wait_until(lambda: has_ended(sweep), sweep)
    assert [t.params["train.optim.lr"] for t in trials_of(sweep)] == ["0.001", "10", "0.0001", "0.0003"]
