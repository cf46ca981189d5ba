"""Read a job's log, and follow it while the job lasts."""

import sys
import time
from pathlib import Path

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
    name, log = _log_once_started(launch, job) if follow else log_of(launch, job)
    print(f"==> {log} <==", file=sys.stderr)
    with log.open(errors="replace") as file:
        print("".join(file.readlines()[-lines:]), end="", flush=True)
        asked = 0.0
        while follow:
            text = file.read()
            print(text, end="", flush=True)
            if not text and time.monotonic() - asked > ASK_SECONDS:
                asked = time.monotonic()
                state = states_of([launch])[0][name]
                if not state.active:
                    print(f"==> {name}: {state.word} {state.cause or ''}", file=sys.stderr)
                    return
            time.sleep(POLL_SECONDS)
