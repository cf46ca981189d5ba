"""Submit a graph to Slurm: at once, returning at once, and as often as one likes.

What is complete is skipped, what waits or runs is adopted, the rest is queued. Submitters of one folder
of runs take turns.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from pipeline.runtime.commit import commit_of
from pipeline.runtime.errors import UserError
from slurm import ledger, snapshot
from slurm.adopt import Stray, adopt, in_turn, locked, strays
from slurm.executor import Place, sbatch, submit
from slurm.graph import ancestors, ordered
from slurm.job import Job
from slurm.ledger import State
from slurm.queue import mine
from slurm.rank import process_born
from slurm.workflows import Launch, check_places
from slurm.writable import check_file, check_folder


def submit_graph(launch: Launch) -> dict[str, State]:
    """Queue what of one run is not complete and not under way. Returns how every job stood before, by name."""
    return submit_all([launch])[0]


def submit_all(launches: Sequence[Launch]) -> list[dict[str, State]]:
    """Queue what of many runs is not complete and not under way; one look at the queue, one snapshot of the code.

    Raises:
        UserError: sbatch's complaint; what was queued before it stays, and is adopted the next time.
    """
    for launch in launches:
        refuse_unwritable(launch)
    with contextlib.ExitStack() as locks:
        for folder in sorted({launch.run.path.parent for launch in launches}):
            locks.enter_context(in_turn(folder))
        for launch in launches:
            locks.enter_context(locked(launch.run))
        queue = mine()
        for launch in launches:
            for stray in strays(launch, queue):
                adopt(launch, stray)
        known = [ledger.submissions(launch.run) for launch in launches]
        found = ledger.states_of_all([(launch.run, launch.complete) for launch in launches], known, queue)
        code = cache(lambda folder: snapshot.take(folder))
        left = {s.id for s in queue if s.waits or s.runs}
        made: dict[str, tuple[tuple[str, ...], Path]] = {}  # ids and record of what this call queued, by key
        for launch, states in zip(launches, found, strict=True):
            _submit(launch, states, left=left, code=code, made=made)
        return found


def refuse_unwritable(launch: Launch) -> None:
    """Test everything that a submission writes.

    Raises:
        UserError: where something cannot be written: which file or folder, whose it is, and which setting says so.
    """
    run, complete = launch.run, launch.complete()
    to_do = [name for name, done in complete.items() if not done]
    if not to_do:
        return
    check_places(launch.cfg)
    check_folder(run.path.parent / snapshot.FOLDER, "runs_dir")
    check_file(run.jobs / ledger.LEDGER, "the ledger of submissions")
    for name in to_do:
        check_folder(run.jobs / name, "runs_dir")


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
        stays = state.active and not state.leaving and not ancestors(launch.jobs, job.name) & set(queued)
        if state.word == "complete" or stays:
            continue
        _refuse_two_places(launch, state)
        stale = left & set(state.ids)  # held, or waiting for a job that is being replaced
        if stale and not state.leaving:
            sbatch(["scancel", *sorted(stale)])
        key = launch.key(job.name)
        if key in made:  # another run of this call prepares the same data
            queued[job.name], record = made[key]
            adopt(launch, Stray(job.name, queued[job.name], record))
            continue
        waits_for = {**{n: s.ids for n, s in states.items() if s.active and not s.leaving}, **queued}
        folder, ending = launch.run.path.parent / snapshot.FOLDER, state.ids if state.leaving else ()
        queued[job.name] = place(launch, job, code=code(folder), waits_for=waits_for, ending=ending)
        made[key] = queued[job.name], launch.run.jobs / job.name


def place(
    launch: Launch, job: Job, *, code: Path, waits_for: dict[str, tuple[str, ...]], ending: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Submit one job and write it into the ledger; the ids of its parts.

    Args:
        waits_for: ids of the jobs that are under way, by name; parents that are not in it are complete.
        ending: ids of this job's own earlier submission, where that was cancelled and is still saving.
    """
    waits = [dependency_of(job, waits_for, launch.jobs), f"afterany:{ledger.one_word(ending)}" if ending else None]
    record = launch.run.jobs / job.name
    where = Place(
        cluster=launch.cfg.cluster,
        record=record,
        snapshot=code,
        label=f"{launch.run.path.name}.{job.name}",
        comment=f"mudi {launch.key(job.name)} {record}",
        dependency=",".join(filter(None, waits)) or None,
        cwd=launch.cwd,
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
        commit=commit_of(code),
        record=str(record),
        words=launch.words,
        cwd=str(launch.cwd),
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


def _refuse_two_places(launch: Launch, state: State) -> None:
    known = ledger.submissions(launch.run).get(state.job)
    if state.active and known is not None and known.executor != launch.cfg.cluster.executor:
        raise UserError(
            f"{state.job} of {launch.run.path} is under way with the {known.executor} executor (id {state.ids[0]}). "
            f"Cancel it first (python -m slurm cancel {launch.run.path}), or wait for it."
        )
