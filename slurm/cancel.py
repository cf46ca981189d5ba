"""End what is under way: a job, a run, or every run of a folder; at Slurm, or on this machine."""

import os
import signal
import sys
import time
from collections.abc import Sequence

from pipeline.runtime.run_dir import RunDir
from slurm import ledger
from slurm.access import check_file
from slurm.executor import slurm
from slurm.ledger import Submission, one_word, states_of
from slurm.rank import attempts, process_born
from slurm.workflows import Launch, job_named

MOST_IDS = 500  # in one call of scancel
POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0  # a training that is asked to stop saves its state first


def cancel(runs: Sequence[Launch], *, job: str | None = None) -> list[str]:
    """Cancel the jobs (or the one called `job`) that wait or run; a line for each, `run/job (ids)`.

    A job that another run waits for too is left alone, and its line says so, unless it is asked for by its name.
    Slurm tells the ranks with SIGTERM and gives them KillWait (30 s by default) to save; local jobs get a minute.
    """
    said: list[str] = []
    ids: list[str] = []
    others = _waited_for_elsewhere(runs)
    found = states_of(runs)
    for launch, states in zip(runs, found, strict=True):
        if any(state.active for state in states.values()):
            check_file(launch.run.jobs / ledger.LEDGER, "the ledger of submissions")
    for launch, states in zip(runs, found, strict=True):
        if job is not None:
            job_named(launch, job)
        for name, submission in ledger.submissions(launch.run).items():
            state = states.get(name)
            if state is None or not (state.active or state.status == "held") or job not in (None, name):
                continue
            line = f"{launch.run.path.name}/{name} ({', '.join(submission.ids)})"
            if job is None and (other := others.get(submission.ids)):
                said.append(f"left alone: {line}: {other} waits for it too")
            elif submission.executor == "local":
                stop(launch, submission)
                said.append(f"cancelled {line}")
            else:
                ledger.note(launch.run, "cancelled", job=name, ids=submission.ids)
                ids += [one_word(submission.ids), *submission.earlier]
                said.append(f"cancelled {line}")
    scancel(sorted(set(ids)))
    return said


def scancel(ids: Sequence[str]) -> None:
    """Cancel jobs at Slurm, many with one call."""
    for first in range(0, len(ids), MOST_IDS):
        slurm("scancel", *ids[first : first + MOST_IDS])


def _waited_for_elsewhere(runs: Sequence[Launch]) -> dict[tuple[str, ...], str]:
    """Ids of submissions that runs beside these, which are not being cancelled, have taken for their own as well."""
    ours = {launch.run.path for launch in runs}
    found: dict[tuple[str, ...], str] = {}
    for folder in sorted({path.parent for path in ours}):
        for path in sorted(folder.glob(f"*/jobs/{ledger.LEDGER}")):
            run = RunDir(path.parents[1])
            if run.path not in ours:
                rows = ledger.submissions(run).values()
                found |= {s.ids: run.path.name for s in rows if s.executor == "slurm" and not s.cancelled}
    return found


def alive(submission: Submission) -> bool:
    """Whether any process of a local job runs. Our own children are zombies until they are waited for: those ended."""
    return any(submission.alive(number) for number in range(len(submission.ids)))


def stop(launch: Launch, submission: Submission) -> None:
    """Cancel a local job of a run: note it, then `end` it."""
    ledger.note(launch.run, "cancelled", job=submission.job, ids=submission.ids)
    end(submission)


def end(submission: Submission, *, grace: float = GRACE_SECONDS) -> None:
    """Ask a local job to end, wait for it to save, and insist after `grace` seconds."""
    _signal(submission, signal.SIGTERM)
    limit = time.monotonic() + grace
    while alive(submission) and time.monotonic() < limit:
        time.sleep(POLL_SECONDS)
    if alive(submission):
        print(f"{submission.job}: killed, as it did not end within {grace:.0f} s", file=sys.stderr)
        _signal(submission, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _signal(submission: Submission, number: int) -> None:
    """To every rank that recorded itself and still runs, and to submitit's controller of them."""
    rows = attempts(submission.record, submission.ids)
    ranks = [(int(row["pid"]), str(row["born"])) for row in rows if row["event"] == "start"]
    ranks = [(pid, born) for pid, born in ranks if born and process_born(pid) == born]  # others are on other nodes
    controllers = list(zip(map(int, submission.ids), submission.born, strict=True))
    # The controller passes SIGTERM on; it is told first where nobody has recorded itself here.
    for pid, born in (ranks or controllers) if number == signal.SIGTERM else controllers + ranks:
        if born and process_born(pid) == born:
            os.kill(pid, number)
