"""End what is under way: a job, a run, or every run of a folder."""

from collections.abc import Sequence

from pipeline.runtime.run_dir import RunDir
from slurm import ledger
from slurm.executor import sbatch
from slurm.ledger import one_word
from slurm.local import stop
from slurm.status import states_of
from slurm.workflows import Launch, job_named
from slurm.writable import check_file

MOST_IDS = 500  # in one call of scancel


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
            if state is None or not (state.active or state.cause == "held") or job not in (None, name):
                continue
            line = f"{launch.run.path.name}/{name} ({', '.join(submission.ids)})"
            if job is None and (other := others.get(submission.ids)):
                said.append(f"left alone: {line}: {other} waits for it too")
            elif submission.executor == "local":
                stop(launch, submission)
                said.append(f"cancelled {line}")
            else:
                ledger.note(launch.run, "cancelled", job=name, ids=submission.ids)
                ids += [one_word(submission.ids)]
                said.append(f"cancelled {line}")
    ids = sorted(set(ids))
    for first in range(0, len(ids), MOST_IDS):
        sbatch(["scancel", *ids[first : first + MOST_IDS]])
    return said


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
