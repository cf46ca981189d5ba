"""End what is under way: a job, a run, or every run of a folder."""

from collections.abc import Sequence

from slurm import ledger
from slurm.executor import sbatch
from slurm.ledger import Submission
from slurm.local import stop
from slurm.status import states_of
from slurm.workflows import Launch, job_named

MOST_IDS = 500  # in one call of scancel


def cancel(runs: Sequence[Launch], *, job: str | None = None) -> list[str]:
    """Cancel the jobs (or the one called `job`) that wait or run; `run/job (ids)` of each that was.

    Slurm tells the ranks with SIGTERM and gives them KillWait (30 s by default) to save; local jobs get a minute.
    """
    ended: list[str] = []
    ids: list[str] = []
    for launch, states in zip(runs, states_of(runs), strict=True):
        if job is not None:
            job_named(launch, job)
        for name, submission in ledger.submissions(launch.run).items():
            state = states.get(name)
            if state is None or not (state.active or state.cause == "held") or job not in (None, name):
                continue
            ended.append(f"{launch.run.path.name}/{name} ({', '.join(submission.ids)})")
            if submission.executor == "local":
                stop(launch, submission)
            else:
                ledger.note(launch.run, "cancelled", job=name, ids=submission.ids)
                ids += _own(submission)
    for first in range(0, len(ids), MOST_IDS):
        sbatch(["scancel", *ids[first : first + MOST_IDS]])
    return ended


def _own(submission: Submission) -> list[str]:
    """An array by its one id, so that one word ends all parts."""
    return sorted({i.partition("_")[0] for i in submission.ids})
