"""Read a job's log, and follow it while the job lasts."""

import sys
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from pipeline.runtime.errors import UserError
from slurm.ledger import record_of
from slurm.status import states_of
from slurm.watching import newest_log
from slurm.workflows import Launch, job_named

POLL_SECONDS = 0.5
ASK_SECONDS = 5.0  # how often the queue is asked whether the job still lasts


def log_of(launch: Launch, job: str | None) -> tuple[str, Path]:
    """The job (the named one, or the one whose log was written last) and its newest log.

    Raises:
        UserError: where there is no such job, or no log yet.
    """
    if job is not None:
        job_named(launch, job)
    names = [job] if job else [j.name for j in launch.jobs]
    found = [(log.stat().st_mtime, name, log) for name in names if (log := newest_log(record_of(launch.run, name)))]
    if not found:
        raise UserError(f"{launch.run.path} has no log {f'of {job} ' if job else ''}yet: nothing of it has started.")
    _, name, log = max(found)
    return name, log


def _log_once_started(launch: Launch, job: str | None) -> tuple[str, Path]:
    said = False
    while True:
        try:
            return log_of(launch, job)
        except UserError:
            states = states_of([launch])[0]
            if not any(state.active for name, state in states.items() if job in (None, name)):
                raise
        if not said:
            print(f"==> {job or launch.run.path} has yet to start: waiting", file=sys.stderr)
            said = True
        time.sleep(ASK_SECONDS)


def show(launch: Launch, job: str | None, *, follow: bool, lines: int) -> None:
    """Print the last `lines` of a log and, with `follow`, what comes until the job has ended.

    What has yet to start has no log: with `follow`, it is waited for.
    """
    name, newest = _log_once_started(launch, job) if follow else log_of(launch, job)
    log: Path | None = newest
    first: int | None = lines
    while log is not None:
        print(f"==> {log} <==", file=sys.stderr)
        with log.open(errors="replace") as file:
            print("".join(deque(file, maxlen=first)), end="", flush=True)
            log = _followed(launch, name, file, log=log) if follow else None
        first = None


def _followed(launch: Launch, job: str, file: TextIO, *, log: Path) -> Path | None:
    """Print what is added to a log; the log of the job's next submission, or None when nothing of it is under way."""
    asked = 0.0
    while True:
        text = file.read()
        print(text, end="", flush=True)
        newest = newest_log(record_of(launch.run, job))
        if not text and newest is not None and _submission_of(newest) != _submission_of(log):
            return newest
        if not text and time.monotonic() - asked > ASK_SECONDS:
            asked = time.monotonic()
            state = states_of([launch])[0][job]
            if not state.active:
                print(file.read(), end="", flush=True)
                print(f"==> {job}: {state.word} {state.cause or ''}", file=sys.stderr)
                return None
        time.sleep(POLL_SECONDS)


def _submission_of(log: Path) -> str:
    """The id of the job, or of the array, that writes it."""
    return log.name.partition("_")[0]
