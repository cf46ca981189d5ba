"""Jobs of a run that its ledger does not know, and taking them in.

Their submitter died before it wrote them down, another run prepares the same data, or a person submitted the scripts
that `plan --sbatch` wrote. In the queue they say by their comment what they make; what has ended left its log.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import RunDir
from slurm import ledger
from slurm.locks import held
from slurm.queue import Seen
from slurm.workflows import Launch

TURN_SECONDS = 300.0  # how long a submitter waits for others that submit runs to the same folder


def locked(run: RunDir) -> AbstractContextManager[None]:
    """One at work on a run at a time. Raises `UserError` where somebody runs it in the foreground."""
    refusal = f"Another 'python -m slurm' is at work on {run.path}. Wait for it, or end it."
    return held(run.jobs / ".lock", refusal=refusal)


def in_turn(folder: Path) -> AbstractContextManager[None]:
    """One submitter of a folder of runs after the other: else two would both queue what their runs share."""
    refusal = f"Others have been submitting to {folder} for {TURN_SECONDS:.0f} s. Try again."
    return held(folder / ".submitting", refusal=refusal, seconds=TURN_SECONDS)


SCRIPTS = "scripts"  # the ledger's word for: sbatch scripts of this run were written
_LOG = "_0_log.out"


@dataclass(frozen=True)
class Stray:
    """A job that the ledger does not know."""

    job: str
    ids: tuple[str, ...]
    record: Path  # where it leaves its logs


def strays(launch: Launch, queue: Sequence[Seen]) -> list[Stray]:
    """Jobs of this run, not in its ledger: at most one for each name.

    In the queue they wait or run; those of scripts may also have ended, which the queue shows for minutes and a log
    for good.
    """
    known, by_hand, found = ledger.ids_of(launch.run), written_by_hand(launch.run), []
    marked = [s for s in queue if (s.active or by_hand) and s.id not in known and s.comment.startswith("mudi ")]
    for job in launch.jobs:
        record = launch.run.jobs / job.name
        if mine := [s for s in marked if s.comment.split(" ", 2)[1] == launch.key(job.name)]:
            newest = max(mine, key=lambda s: (s.runs, s.active, _number(s.id)))
            record, number = Path(newest.comment.split(" ", 2)[2]), _number(newest.id)
            ids = {s.id for s in mine}
        elif ids := _logged(record) - known if by_hand else set():
            number = max(map(_number, ids))
        else:
            continue
        found.append(Stray(job.name, tuple(sorted((i for i in ids if _number(i) == number), key=_part)), record))
    return found


def _logged(record: Path) -> set[str]:
    """Ids of jobs, and of parts of arrays, that left a log."""
    names = {log.name.removesuffix(_LOG) for log in record.glob(f"*{_LOG}")}
    return {name for name in names if name.replace("_", "").isdigit()}


def written_by_hand(run: RunDir) -> bool:
    """Whether scripts were written for this run, which somebody may have submitted."""
    return any(row["event"] == SCRIPTS for row in read_lines(run.jobs / ledger.LEDGER))


def _number(job_id: str) -> int:
    return int(job_id.partition("_")[0])


def _part(job_id: str) -> int:
    return int(job_id.partition("_")[2] or 0)


def adopt(launch: Launch, stray: Stray) -> None:
    """Write a job into the ledger that somebody else submitted."""
    row = {"executor": "slurm", "born": [], "snapshot": "", "adopted": True}
    ledger.note(launch.run, "submitted", job=stray.job, ids=stray.ids, record=str(stray.record), **row)


def adopt_its_own(launch: Launch, queue: Sequence[Seen]) -> bool:
    """Take in what was submitted for this run alone; whether anything was.

    Not while a submitter is at work on the run, which knows better, nor where the run is somebody else's.
    """
    if not _own(launch, queue):
        return False
    with contextlib.suppress(UserError, PermissionError), locked(launch.run):
        for stray in _own(launch, queue):
            adopt(launch, stray)
    return True


def _own(launch: Launch, queue: Sequence[Seen]) -> list[Stray]:
    return [stray for stray in strays(launch, queue) if stray.record.parent == launch.run.jobs]
