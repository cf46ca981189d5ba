"""Submit a graph to Slurm, as often as one likes, returning at once; or run it on this machine, in the foreground.

What is complete is skipped, what waits or runs is kept, the rest is queued. Submitters of one folder
of runs take turns.
"""

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from pipeline.config.load import CONFIG_FILE, to_yaml
from pipeline.config.paths import run_directory
from pipeline.config.prepared import prepared_notes
from pipeline.config.schema import Config
from pipeline.runtime.commit import commit_of
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_lines, write_text
from pipeline.runtime.run_dir import RunDir, differences
from slurm import executor, ledger, snapshot
from slurm.access import check_file, check_folder, name_of, who_else_writes
from slurm.cancel import POLL_SECONDS, alive, scancel, stop
from slurm.failures import retries_allowed
from slurm.graph import Job, ancestors, ordered
from slurm.ledger import State, Stray, as_submitted, in_turn, locked, reconcile, states_of, strays, users_of
from slurm.plan import beyond
from slurm.progress import ProgressTable, last_line, training_of
from slurm.queue import limits, listed, patiently
from slurm.rank import process_born
from slurm.workflows import Launch, account_missing, check_places, trained_autoencoder

EARLIER = "earlier"  # a folder of what a run's starts with other settings left: curves, the settings themselves


# To Slurm


def submit_graph(launch: Launch) -> dict[str, State]:
    """Queue what of one run is not complete and not under way. Returns how every job stood before, by name."""
    return submit_all([launch])[0]


def submit_all(launches: Sequence[Launch]) -> list[dict[str, State]]:
    """Queue what of many runs is not complete and not under way; one look at the queue, one snapshot of the code.

    Raises:
        UserError: sbatch's complaint; what was queued before it stays, and is found the next time.
    """
    for launch in launches:
        refuse_unwritable(launch)
    refuse_beyond_limits(launches)
    with contextlib.ExitStack() as locks:
        for folder in sorted({launch.run.path.parent for launch in launches}):
            locks.enter_context(in_turn(folder))
        for launch in launches:
            locks.enter_context(locked(launch.run))
        patience = max(launch.cfg.cluster.submit_patience_s for launch in launches)
        users = users_of(launch.run for launch in launches)
        queue = patiently(lambda: listed(users), seconds=patience)
        for launch in launches:
            for stray in strays(launch, queue):
                reconcile(launch, stray)
        known = [ledger.submissions(launch.run) for launch in launches]
        found = ledger.states_of_all([(launch.run, launch.complete) for launch in launches], known, queue)
        for launch, states in zip(launches, found, strict=True):
            refuse_without_parents(launch, states)
        code = cache(lambda folder: snapshot.take(folder))
        left = {s.id for s in queue if s.waits or s.runs}
        made: dict[str, tuple[tuple[str, ...], Path]] = {}  # ids and record of what this call queued, by key
        for launch, states in zip(launches, found, strict=True):
            _submit(launch, states, left=left, code=code, made=made)
        return found


def refuse_beyond_limits(launches: Sequence[Launch]) -> None:
    """Compare what jobs ask for with what the site grants.

    Raises:
        UserError: naming the settings. sbatch would refuse such a job in the middle of the graph, or keep it waiting.
    """
    if not launches:
        return
    found = {problem for launch in launches for problem in account_missing(launch.cfg.cluster, _to_do(launch))}
    site = limits()
    found |= {problem for launch in launches for problem in beyond(launch.cfg, _to_do(launch), site)}
    if found:
        raise UserError("\n".join(sorted(found)))


def _to_do(launch: Launch) -> list[Job]:
    complete = launch.complete()
    return [job for job in launch.wanted() if not complete[job.name]]


def refuse_without_parents(launch: Launch, states: dict[str, State]) -> None:
    """Where only some jobs are to run: see that what they wait for is complete, or under way.

    Raises:
        UserError: naming what is not.
    """
    for job in _to_do(launch):
        names = [name for name in job.parents if launch.chosen is not None and name not in launch.chosen]
        if lacking := [name for name in names if states[name].status != "complete" and not states[name].active]:
            raise UserError(
                f"{job.name} of {launch.run.path} waits for what is not complete: {', '.join(lacking)}. "
                f"To run that too: --until {job.name}"
            )


def refuse_unwritable(launch: Launch) -> None:
    """Test everything that a submission writes.

    Raises:
        UserError: where something cannot be written: which file or folder, whose it is, and which setting says so.
    """
    run, to_do = launch.run, [job.name for job in _to_do(launch)]
    if not to_do:
        return
    check_places(launch.cfg)
    check_folder(run.path.parent / snapshot.FOLDER, "runs_dir")
    check_file(run.jobs / ledger.LEDGER, "the ledger of submissions")
    for name in to_do:
        check_folder(run.jobs / name, "runs_dir")
    if others := who_else_writes(run.path):
        executor.notice(
            f"{run.path} can be written by {others}: they can change what its jobs do, which run as "
            f"{name_of(os.geteuid())}. To keep them out: chmod g-w,o-w {run.path}"
        )


def _submit(
    launch: Launch,
    states: dict[str, State],
    *,
    left: set[str],
    code: Callable[[Path], Path],
    made: dict[str, tuple[tuple[str, ...], Path]],
) -> None:
    queued: dict[str, tuple[str, ...]] = {}
    wanted = {job.name for job in launch.wanted()}
    for job in ordered(launch.jobs):
        state = states[job.name]
        stays = state.active and not state.leaving and not ancestors(launch.jobs, job.name) & set(queued)
        if state.status == "complete" or stays or job.name not in wanted:
            continue
        _refuse_two_places(launch, state)
        stale = left & {*state.ids, *_earlier(launch, job.name)}  # held, or waiting for a job that is being replaced
        if stale and not state.leaving:
            scancel(sorted(stale))
        key = launch.key(job.name)
        if key in made:  # another run of this call prepares the same data
            queued[job.name], record = made[key]
            reconcile(launch, Stray(job.name, queued[job.name], record))
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
    starts = 1 if launch.cfg.cluster.executor == "local" else job.resources.starts
    context = ledger.context_of(launch, job, code=code, dependency=",".join(filter(None, waits)) or None)
    context = replace(context, chain=context.record / f"failed-{uuid.uuid4().hex[:12]}" if starts > 1 else None)
    earlier: list[str] = []
    try:
        ids = executor.submit(job, context)
        for _ in range(starts - 1):
            earlier.append(ledger.one_word(ids))
            after = ",".join(filter(None, [context.dependency, f"afterany:{earlier[-1]}"]))
            ids = executor.submit(job, replace(context, dependency=after))
    except UserError as error:
        ledger.note(launch.run, "refused", job=job.name, message=str(error))
        raise
    born = tuple(process_born(int(i)) for i in ids) if launch.cfg.cluster.executor == "local" else ()
    ledger.note(
        launch.run,
        "submitted",
        job=job.name,
        ids=ids,
        earlier=earlier,
        born=born,
        executor=launch.cfg.cluster.executor,
        cluster=launch.cfg.cluster.name,
        argv=job.argv,
        dependency=context.dependency,
        snapshot=str(code),
        commit=commit_of(code),
        record=str(context.record),
        overrides=launch.overrides,
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
    conditions = [f"afterok:{ledger.one_word(waits_for[n])}" for n in ok if n in waits_for]
    conditions += [f"afterany:{ledger.one_word(waits_for[n])}" for n in job.after_any if n in waits_for]
    return ",".join(conditions) or None


def _earlier(launch: Launch, job: str) -> tuple[str, ...]:
    known = ledger.submissions(launch.run).get(job)
    return known.earlier if known is not None else ()


def _refuse_two_places(launch: Launch, state: State) -> None:
    known = ledger.submissions(launch.run).get(state.job)
    if state.active and known is not None and known.executor != launch.cfg.cluster.executor:
        raise UserError(
            f"{state.job} of {launch.run.path} is under way with the {known.executor} executor (id {state.ids[0]}). "
            f"Cancel it first (mudi cancel {launch.run.path}), or wait for it."
        )


# On this machine


class Interrupt:
    """Whether Ctrl-C or SIGTERM came."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self._before = {n: signal.signal(n, self._set) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, _: int, __: FrameType | None) -> None:
        self.asked = True


def run_here(launch: Launch, table: ProgressTable) -> int:
    """Run what is not complete; the exit code: 0, 1 where a job failed, 130 where it was cancelled."""
    refuse_unwritable(launch)
    refuse_without_parents(launch, ledger.states(launch.run, launch.complete()))
    with locked(launch.run), Interrupt() as interrupt, table:
        wanted = {job.name for job in launch.wanted()}
        code: Path | None = None
        failed: set[str] = set()
        for job in ordered(launch.jobs):
            if launch.complete()[job.name]:
                table.show(job.name, "complete", "; ".join(["it was there already: skipped", *_found(launch, job)]))
                continue
            if job.name not in wanted:
                table.show(job.name, "not asked")
                continue
            if failed & set(job.after) or interrupt.asked:
                failed.add(job.name)
                table.show(
                    job.name, "blocked", "stopped here" if interrupt.asked else "a job before it did not end well"
                )
                continue
            state = ledger.states(launch.run, launch.complete())[job.name]
            if not state.active:
                code = code or snapshot.take(launch.run.path.parent / snapshot.FOLDER)
                place(launch, job, code=code, waits_for={})
            state = _watch(launch, job, table=table, interrupt=interrupt)
            tries: list[str | None] = []
            while _again(launch, job, state, tries=tries, table=table, interrupt=interrupt):
                tries.append(state.cause)
                code = code or snapshot.take(launch.run.path.parent / snapshot.FOLDER)
                place(launch, job, code=code, waits_for={})
                state = _watch(launch, job, table=table, interrupt=interrupt)
            if state.status != "complete":
                failed.add(job.name)
            table.show(job.name, state.status, "; ".join(_found(launch, job)) or _said(state))
        return 130 if interrupt.asked else int(bool(failed))


def _found(launch: Launch, job: Job) -> list[str]:
    """What preparing passed over: it is said before training begins."""
    return prepared_notes(launch.cfg) if job.name == "prepare" and launch.complete()[job.name] else []


def _again(
    launch: Launch, job: Job, state: State, *, tries: list[str | None], table: ProgressTable, interrupt: Interrupt
) -> bool:
    """Whether a job that failed is to be started again: cluster.retry says how often for what may pass. Waits first."""
    retry = launch.cfg.cluster.retry
    allowed = retries_allowed(state.cause, retry) if state.status == "failed" and state.cause else 0
    before = tries.count(state.cause)
    if before >= allowed:
        return False
    wait = retry.backoff_s * 2**before
    table.show(job.name, "waiting", f"{_said(state)}; again in {wait} s, attempt {before + 1} of {allowed}")
    end = time.monotonic() + wait
    while time.monotonic() < end and not interrupt.asked:
        time.sleep(POLL_SECONDS)
    return not interrupt.asked


def _said(state: State) -> str:
    if state.status == "complete":
        return ""
    last = state.message.strip().splitlines()[-1:] or [""]
    return f"{state.cause}: {last[0]}"


def _watch(launch: Launch, job: Job, *, table: ProgressTable, interrupt: Interrupt) -> State:
    """Until the job's processes have ended; what became of it."""
    submission = ledger.submissions(launch.run)[job.name]
    while alive(submission):
        if interrupt.asked:
            table.show(job.name, "running", "stopping: it saves what it can")
            stop(launch, submission)
            break
        table.show(job.name, "running", detail(launch, job.name, since=submission.time))
        time.sleep(POLL_SECONDS)
    return ledger.states(launch.run, launch.complete())[job.name]


def detail(launch: Launch, job: str, *, since: float) -> str:
    """How far a running job is, in a line; not how far its last start before `since` was."""
    trained = launch.trains(job)
    begun = trained is not None and any(start.get("time", since) >= since for start in read_lines(trained.starts)[-1:])
    if trained is not None and begun and (training := training_of(trained)) and training.images_per_second:
        return training.text()
    log = ledger.log_now(launch.run, job)
    return last_line(log)[:100] if log else ""


# Other settings for a run that holds nothing yet


def correct(cfg: Config) -> list[str]:
    """Give the run of `cfg`, and the autoencoder that its graph trains, these settings, where they were made with
    others and hold no checkpoint and no result. Returns a line for each that has changed.

    Where one of them does, or where another run is to be trained on that autoencoder's latents, nothing is changed.

    Raises:
        UserError: where jobs of the run are under way with its other settings.
    """
    run, own = RunDir(run_directory(cfg).resolve()), trained_autoencoder(cfg)
    wanted = {run: cfg} if own is None else {RunDir(run_directory(own).resolve()): own, run: cfg}
    changed = {r: found for r, c in wanted.items() if (found := differences(r, c))}
    if not changed or any(_holds_something(r) or (r != run and _trained_on(r, but=run)) for r in changed):
        return []
    for r in changed:
        check_folder(r.path, "runs_dir")
    _refuse_under_way([r for r in wanted if r.config.is_file()])
    return [
        f"{r.path}: nothing is trained yet, so it takes the new settings: {'; '.join(found)} "
        f"(what was there: {_replaced(r, wanted[r])})"
        for r, found in changed.items()
    ]


def _holds_something(run: RunDir) -> bool:
    """Whether a run holds anything that its settings explain."""
    return any(run.checkpoints.glob("step-*")) or any(run.results.glob("*.json"))


def _trained_on(autoencoder: RunDir, *, but: RunDir) -> bool:
    """Whether a run beside these two takes its latents from this autoencoder.

    Raises:
        UserError: naming a config that cannot be read, whose run may be one.
    """
    for path in sorted({p for at in {autoencoder.path.parent, but.path.parent} for p in at.glob(f"*/{CONFIG_FILE}")}):
        latents = _values_of(path).get("latents")
        if path.parent != but.path and latents and Path(latents["autoencoder"]).resolve() == autoencoder.path:
            return True
    return False


def _values_of(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: found '{values}', expected settings. Restore the file, or remove that directory.")
    return values


def _refuse_under_way(runs: list[RunDir]) -> None:
    found = [as_submitted(run.path) for run in runs]
    for launch, states in zip(found, states_of(found), strict=True):
        if busy := [f"{name} ({', '.join(state.ids)})" for name, state in states.items() if state.active]:
            raise UserError(
                f"{launch.run.path} is under way with other settings: {', '.join(busy)}. "
                f"To change them, cancel it first: mudi cancel {launch.run.path}"
            )


def _replaced(run: RunDir, cfg: Config) -> Path:
    """Put everything but the jobs' records aside; where it is now."""
    with locked(run):
        aside = run.path / EARLIER
        place = aside / str(len(list(aside.glob("*"))) + 1)
        place.mkdir(parents=True)
        for path in run.path.iterdir():
            if path not in (run.jobs, aside):
                path.rename(place / path.name)
        write_text(run.config, to_yaml(cfg))
    return place
