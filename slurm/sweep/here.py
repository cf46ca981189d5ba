"""A sweep on this machine, in the foreground: the same steps, with this process waiting for runs to end."""

import dataclasses
import sys
import time

from pipeline.runtime.errors import UserError
from slurm import ledger
from slurm.ledger import Submission
from slurm.local import Cancel, stop
from slurm.sweep import driver
from slurm.sweep.driver import Progress
from slurm.sweep.folder import SweepDir
from slurm.sweep.runs import STAGES, Run

POLL_SECONDS = 0.2


def run_here(sweep: SweepDir) -> tuple[Progress, int]:
    """Until the sweep has ended, is stalled (1), or somebody stops it (130)."""
    by_hand = True
    with Cancel() as cancel:
        while True:
            progress = driver.advance(sweep, by_hand=by_hand, local=True)
            print(progress.words(), file=sys.stderr, flush=True)
            by_hand = False
            if progress.ended or progress.stalled:
                return progress, int(bool(progress.stalled))
            if not progress.active:
                raise UserError(f"{sweep.path} has trials that are open, and nothing of them runs.")
            before = len(running(sweep))
            while before and len(running(sweep)) >= before and not cancel.asked:
                time.sleep(POLL_SECONDS)
            if cancel.asked:
                end(sweep)
                return progress, 130


def running(sweep: SweepDir) -> list[tuple[Run, Submission]]:
    """Runs whose process on this machine is alive."""
    found = []
    for path in sorted(sweep.trials.glob("*-s*")):
        trial, _, seed = path.name.partition("-s")
        run = Run(sweep, int(trial), int(seed))
        known = ledger.submissions(run.records)
        last = next((known[s] for s in reversed(STAGES) if s in known), None)
        if last is not None and last.executor == "local" and any(last.alive(n) for n in range(len(last.ids))):
            found.append((run, last))
    return found


def end(sweep: SweepDir) -> list[str]:
    """Ask what runs here to save and end; the names of those runs."""
    alive = running(sweep)
    for run, submission in alive:
        stop(dataclasses.replace(run.launch(), run=run.records), submission)
    return [run.name for run, _ in alive]
