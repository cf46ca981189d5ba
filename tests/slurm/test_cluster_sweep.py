"""Sweeps on a real Slurm: each is one job array, tasks may be killed, every trial is there exactly once."""

import subprocess

import pytest
from launching import slurm_cli
from sweeping import (
    CALM,
    Killer,
    accounted,
    base,
    has_ended,
    jobs_of,
    said,
    starts_of,
    statuses_now,
    steps,
    submitted,
    toy_value,
    wait_until,
)

from pipeline.runtime.files import read_lines
from slurm.sweep import submit
from slurm.sweep.report import ranked
from slurm.sweep.runs import Run
from slurm.sweep.settings import SweepDir

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
GRID = ("train.optim.lr=1e-4,1e-3", "train.global_batch=32,64")


def test_through_kills_with_nobody_watching_every_trial_is_there_once_after_one_preparation(tmp_path):
    overrides = [w for w in base(tmp_path) if not w.startswith("data_dir=")]
    where = [f"data_dir={tmp_path / 'other'}", "data.source.alphabet=AB", "evaluate.domain.max_images=500"]
    sweep = SweepDir(tmp_path / "sweeps" / "grid")
    done = slurm_cli(
        "sweep", "submit", *overrides, *where, "name=grid", "cluster=testbed", CALM, *GRID, "sweep.at_once=1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    submit.throttle(sweep, 3)  # as `extend` does with sweep.at_once=3
    (array,) = submit.arrays_of(sweep)
    shown = ["scontrol", "show", "job", array.submission.ids[0].partition("_")[0]]
    assert "ArrayTaskThrottle=3" in subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    killer = Killer(sweep, seed=1, most=2)

    def ended() -> bool:
        killer.strike()
        return has_ended(sweep)

    wait_until(ended, sweep)
    found, settings = accounted(sweep), sweep.settings()
    assert len(killer.killed) == 2, killer.killed
    assert [t.params for t in found] == settings.combinations
    assert [t.value for t in found] == pytest.approx([toy_value(settings, t.params) for t in found], abs=1e-12)
    assert ranked(found, settings)[0].params == {"train.optim.lr": "0.001", "train.global_batch": "64"}
    assert most_at_once(sweep) <= 3, said(sweep)
    assert len({start["id"].partition("_")[0] for start in starts_of(sweep)}) == 1  # one array
    (ledger,) = (sweep.path / "shared").glob("*/jobs/ledger.jsonl")
    assert [row["job"] for row in read_lines(ledger) if row["event"] == "submitted"] == ["prepare"]
    (attempt,) = [r for r in read_lines(ledger.parent / "prepare" / "attempts.jsonl") if r["event"] == "end"]
    assert all(start["time"] > attempt["time"] for start in starts_of(sweep))
    assert "once for all: prepare: complete" in slurm_cli("sweep", "status", str(sweep.path)).stdout


def most_at_once(sweep: SweepDir) -> int:
    starts = [(s["time"], 1) for s in starts_of(sweep)] + [(s["ended"], -1) for s in starts_of(sweep) if s["ended"]]
    running = [0]
    for _, change in sorted(starts):
        running.append(running[-1] + change)
    # A start that was killed has no end of its own: it is counted until its task's next start at the most.
    return max(running) - sum(s["ended"] is None for s in starts_of(sweep))


def test_found_cancelled_submitted_again_and_extended_it_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PACE", "0")  # of the tasks: their environment is the submitter's
    monkeypatch.setenv("TOY_HOLD", "3")
    overrides = ("train.optim.lr=1e-3,10,1e-4", "cluster=testbed", CALM, "sweep.at_once=1")
    sweep = submitted(tmp_path, "cut", *overrides)
    (array,) = submit.arrays_of(sweep)
    (array.folder / submit.SUBMITTED).unlink()  # as if killed after sbatch, before its answer was written
    again = slurm_cli("sweep", "submit", str(sweep.path))
    assert "3 of 3 runs are complete or under way" in again.stdout, again.stdout + again.stderr
    wait_until(lambda: steps(sweep, 0) == [1, 2, 3], sweep)
    done = slurm_cli("sweep", "cancel", str(sweep.path))
    assert "cancelled 0000-s0" in done.stdout and "cancelled 0002-s0" in done.stdout, done.stdout + done.stderr
    wait_until(lambda: jobs_of(sweep) == [] and not set(statuses_now(sweep)) & {"running", "waiting"}, sweep)
    assert set(statuses_now(sweep)) <= {"cancelled", "not begun"}, said(sweep)
    monkeypatch.delenv("TOY_HOLD")
    more = slurm_cli("sweep", "extend", str(sweep.path), "train.optim.lr=3e-4", "sweep.at_once=4")
    assert "queued 4 runs as job array" in more.stdout, more.stdout + more.stderr
    wait_until(lambda: has_ended(sweep), sweep)
    assert statuses_now(sweep) == ["complete", "failed", "complete", "complete"], said(sweep)
    assert steps(sweep, 0) == list(range(1, 11))
    assert Run(sweep, 1, 0).outcome()["cause"] == "non_finite"
    ids = [start["id"].partition("_")[2] for start in starts_of(sweep)]
    assert ids.count("1") == 1  # what the configuration did is not tried again
    status = slurm_cli("sweep", "status", str(sweep.path))
    assert status.returncode == 1 and "3 complete, 1 failed" in status.stdout and "not finite" in status.stdout
    last = slurm_cli("sweep", "submit", str(sweep.path))
    assert "queued 1 runs" in last.stdout, last.stdout + last.stderr  # the one that failed, and no other
    subprocess.run(["scancel", *jobs_of(sweep)], check=False)
