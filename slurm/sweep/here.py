"""A sweep on this machine, in the foreground: the same steps, with this process waiting for runs to end."""

import dataclasses
import sys
import time
from collections.abc import Sequence

from pipeline.runtime.errors import UserError
from slurm import ledger
from slurm.ledger import Submission
from slurm.local import Cancel, stop
from slurm.sweep import driver
from slurm.sweep.driver import Progress
from slurm.sweep.folder import SweepDir
from slurm.sweep.runs import STAGES, Run
from slurm.watching import last_line

POLL_SECONDS = 0.2
SAID_SECONDS = 10.0  # between lines on what runs


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
            before, said = len(running(sweep)), Said()
            while before and len(alive := running(sweep)) >= before and not cancel.asked:
                said.show(alive)
                time.sleep(POLL_SECONDS)
            if cancel.asked:
                end(sweep)
                return progress, 130


class Said:
    """What runs, told now and then: the last line of the log of each."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._time = time.monotonic()

    def show(self, alive: Sequence[tuple[Run, Submission]]) -> None:
        """Print what is new, if the last time was a while ago."""
        if time.monotonic() - self._time < SAID_SECONDS:
            return
        logs = [(run.name, s.record / f"{i}_0_log.out") for run, s in alive for i in s.ids]
        lines = [f"{name}: {last_line(log).removeprefix(f'{name}: ')[:110]}" for name, log in logs if log.is_file()]
        for line in lines:
            if line not in self._lines:
                print(line, file=sys.stderr, flush=True)
        self._lines, self._time = lines, time.monotonic()


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
