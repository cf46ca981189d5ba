"""Submit a graph to Slurm: at once, returning at once, and as often as one likes.

What is complete is skipped, what waits or runs is adopted, the rest is queued. Submitters of one folder
of runs take turns.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir
from slurm import ledger, snapshot
from slurm.executor import Place, sbatch, submit
from slurm.graph import ancestors, ordered
from slurm.job import Job
from slurm.ledger import State
from slurm.locks import held
from slurm.payload import process_born
from slurm.queue import Seen, look, mine
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


def submit_graph(launch: Launch) -> dict[str, State]:
    """Queue what of one run is not complete and not under way. Returns how every job stood before, by name."""
    return submit_all([launch])[0]


def submit_all(launches: Sequence[Launch]) -> list[dict[str, State]]:
    """Queue what of many runs is not complete and not under way; one look at the queue, one snapshot of the code.

    Raises:
        UserError: sbatch's complaint; what was queued before it stays, and is adopted the next time.
    """
    with contextlib.ExitStack() as locks:
        for folder in sorted({launch.run.path.parent for launch in launches}):
            locks.enter_context(in_turn(folder))
        for launch in launches:
            locks.enter_context(locked(launch.run))
        queue = mine()
        for launch in launches:
            adopt_strays(launch, queue)
        complete = [launch.complete() for launch in launches]
        seen = look(ledger.open_ids([(launch.run, done) for launch, done in zip(launches, complete, strict=True)]))
        found = [ledger.states(launch.run, done, seen) for launch, done in zip(launches, complete, strict=True)]
        code = cache(lambda folder: snapshot.take(folder))
        left = {s.id for s in queue if s.waits or s.runs}
        made: dict[str, tuple[tuple[str, ...], Path]] = {}  # ids and record of what this call queued, by key
        for launch, states in zip(launches, found, strict=True):
            _submit(launch, states, left=left, code=code, made=made)
        return found


def _submit(
    launch: Launch,
    states: dict[str, State],
    *,
    left: set[str],
    code: Callable[[Path], Path],
    made: dict[str, tuple[tuple[str, ...], Path]],
) -> None:
    queued: dict[str, tuple[str, ...]] = {}
    for job in ordered(launch.jobs):
        state = states[job.name]
        if state.word == "complete" or (state.active and not ancestors(launch.jobs, job.name) & set(queued)):
            continue
        _refuse_two_places(launch, state)
        if stale := left & set(state.ids):  # held, or waiting for a job that is being replaced
            sbatch(["scancel", *sorted(stale)])
        key = launch.key(job.name)
        if key in made:  # another run of this call prepares the same data
            queued[job.name], record = made[key]
            _adopt(launch, job.name, queued[job.name], record)
            continue
        waits_for = {**{n: s.ids for n, s in states.items() if s.active}, **queued}
        queued[job.name] = place(launch, job, code=code(launch.run.path.parent / snapshot.FOLDER), waits_for=waits_for)
        made[key] = queued[job.name], launch.run.jobs / job.name


def place(launch: Launch, job: Job, *, code: Path, waits_for: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Submit one job and write it into the ledger; the ids of its parts.

    `waits_for`: ids of the jobs that are under way, by name; parents that are not in it are complete.
    """
    record = launch.run.jobs / job.name
    where = Place(
        cluster=launch.cfg.cluster,
        record=record,
        snapshot=code,
        label=f"{launch.run.path.name}.{job.name}",
        comment=f"mudi {launch.key(job.name)} {record}",
        dependency=dependency_of(job, waits_for, launch.jobs),
    )
    ids = tuple(str(j.job_id) for j in submit(job, where))
    born = tuple(process_born(int(i)) for i in ids) if launch.cfg.cluster.executor == "local" else ()
    ledger.note(
        launch.run,
        "submitted",
        job=job.name,
        ids=ids,
        born=born,
        executor=launch.cfg.cluster.executor,
        cluster=launch.cfg.cluster.name,
        argv=job.argv,
        dependency=where.dependency,
        snapshot=str(code),
        commit=snapshot.commit_of(code),
        record=str(record),
        words=launch.words,
        cwd=str(Path.cwd()),
    )
    return ids


def dependency_of(job: Job, waits_for: dict[str, tuple[str, ...]], jobs: Sequence[Job] = ()) -> str | None:
    """Slurm's --dependency: after each parent's end, or its good end. None where nothing is to be waited for.

    A parent that is complete may have parents that are to run again, such as data that lack a reference: through it,
    this job waits for them.
    """
    by_name = {j.name: j for j in jobs}
    ok = list(job.after)
    for name in ok:
        ok += [n for n in by_name[name].after if n not in ok] if name in by_name and name not in waits_for else []
    words = [f"afterok:{ledger.one_word(waits_for[n])}" for n in ok if n in waits_for]
    words += [f"afterany:{ledger.one_word(waits_for[n])}" for n in job.after_any if n in waits_for]
    return ",".join(words) or None


def adopt_strays(launch: Launch, seen: Sequence[Seen]) -> None:
    """Write jobs into the ledger that are in the queue but not in it: the submitter died between the two, or another
    run prepares the same data."""
    known = {i for s in ledger.submissions(launch.run).values() for i in s.ids}
    queue = [s for s in seen if s.active and s.id not in known and s.comment.startswith("mudi ")]
    for job in launch.jobs:
        found = [s for s in queue if s.comment.split(" ", 2)[1] == launch.key(job.name)]
        if found:
            _adopt(launch, job.name, tuple(s.id for s in found), Path(found[0].comment.split(" ", 2)[2]))


def _adopt(launch: Launch, job: str, ids: tuple[str, ...], record: Path) -> None:
    row = {"executor": "slurm", "born": [], "snapshot": "", "adopted": True}
    ledger.note(launch.run, "submitted", job=job, ids=ids, record=str(record), **row)


def _refuse_two_places(launch: Launch, state: State) -> None:
    known = ledger.submissions(launch.run).get(state.job)
    if state.active and known is not None and known.executor != launch.cfg.cluster.executor:
        raise UserError(
            f"{state.job} of {launch.run.path} is under way with the {known.executor} executor (id {state.ids[0]}). "
            f"Cancel it first (python -m slurm cancel {launch.run.path}), or wait for it."
        )
