"""Submitting what a step of a sweep has chosen: shared data first, runs as job arrays, and a tiny job after each.

The tiny job goes on with the sweep whatever becomes of the runs. A run that ends well has done that itself by then,
and the tiny job finds nothing to do; where a run, its node or its own step dies, the tiny job is the one that goes on.
"""

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config.schema_cluster import ClusterConfig, Resources, RetryConfig
from pipeline.runtime.files import append_line, content_hash, read_lines
from slurm import ledger, snapshot
from slurm.board import Board
from slurm.executor import Place
from slurm.executor import submit as submit_job
from slurm.job import Job
from slurm.ledger import LEDGER
from slurm.local import run_here
from slurm.queue import mine
from slurm.status import states_of
from slurm.submit import submit_all
from slurm.sweep.batches import submit_batch
from slurm.sweep.folder import SweepDir
from slurm.sweep.runs import resources_of, shared
from slurm.sweep.settings import SweepSettings
from slurm.workflows import Launch
from slurm.writable import check_file

if TYPE_CHECKING:
    from slurm.sweep.driver import Outcome

CHAIN = "chain.jsonl"  # which tiny job comes after what
TINY = Resources(cpus=1, memory_gb=2, minutes=15)


class Stalled(Exception):
    """What all trials share cannot be made: a person has to look."""


def submit(
    sweep: SweepDir,
    settings: SweepSettings,
    wanted: "Sequence[Outcome]",
    *,
    active: "Sequence[Outcome]",
    by_hand: bool,
) -> list[str]:
    """Submit the wanted runs; their ids. What is active already has its tiny job made up where that is missing."""
    launches = [o.launch for o in [*wanted, *active] if o.launch is not None]
    if not launches:
        return []
    cluster = launches[0].cfg.cluster
    waits = _prepare(sweep, settings, [o.launch for o in wanted if o.launch is not None], by_hand=by_hand)
    ids: list[str] = []
    known = settings.known_beforehand
    for group in _groups(wanted):
        # Whoever submits may be a run that has just ended: it is waited for too, so that never one too many runs.
        before = _after([*(i for o in active for i in o.ids), *ids, *_own()]) if known else []
        words = [f"afterok:{':'.join(waits)}"] if waits else []
        words += [f"afterany:{':'.join(before)}"] if before else []
        dependency = ",".join(words) or None
        runs = {o.run: o.launch for o in group if o.launch is not None}
        ids += submit_batch(sweep, runs, at_once=settings.at_once, dependency=dependency)
    if cluster.executor == "slurm":
        running = [*(i for o in active for i in o.ids), *ids]
        chain(sweep, cluster, _after(running) if known else running)
    return ids


def _own() -> list[str]:
    """The job that this process is in, if it is in one."""
    return [i for i in (os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID")),) if i]


def _after(ids: Sequence[str]) -> list[str]:
    """Whole arrays by their one id."""
    return sorted({i.partition("_")[0] for i in ids})


def _groups(wanted: "Sequence[Outcome]") -> "list[list[Outcome]]":
    """Runs that can be one array: they ask for the same."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in wanted:
        if outcome.launch is not None:
            cluster = outcome.launch.cfg.cluster.model_dump(mode="json")
            asked = resources_of(outcome.launch).model_dump(mode="json")
            groups.setdefault(json.dumps([cluster, asked], sort_keys=True), []).append(outcome)
    return list(groups.values())


def _prepare(sweep: SweepDir, settings: SweepSettings, launches: Sequence[Launch], *, by_hand: bool) -> list[str]:
    """Submit, once for all trials, what they share and what is not complete; the ids to wait for.

    Raises:
        Stalled: it has failed as often as it may.
    """
    parts: dict[str, Launch] = {}
    for launch in launches:
        part = shared(launch)
        if not all(part.complete().values()):
            parts.setdefault(json.dumps([part.key(job.name) for job in part.jobs]), part)
    if not parts:
        return []
    if launches[0].cfg.cluster.executor == "local":
        for part in parts.values():
            if run_here(part, Board([job.name for job in part.jobs], title=str(part.run.path))):
                raise Stalled(f"what trials share could not be made; logs: {part.run.jobs}")
        return []
    names = {job.name for part in parts.values() for job in part.jobs}
    found = [state for states in states_of(list(parts.values())) for state in states.values()]
    idle = [state for state in found if state.word != "complete" and not state.active]
    tries = _submissions(sweep, names)
    if idle and tries > settings.retries * len(names) and not by_hand:
        raise Stalled(
            f"{idle[0].job} failed ({idle[0].cause}: {idle[0].message[-300:]}). Correct it, then: "
            f"python -m slurm sweep submit {sweep.path}"
        )
    submit_all(list(parts.values()))
    waits: list[str] = []
    for part in parts.values():
        known, complete = ledger.submissions(part.run), part.complete()
        waits += [i for name, s in known.items() if not complete.get(name, True) for i in s.ids]
    return _after(waits)


def _submissions(sweep: SweepDir, names: set[str]) -> int:
    """How often jobs of these names were submitted for runs of the sweep."""
    rows = [row for path in sweep.trials.glob(f"*/jobs/{LEDGER}") for row in read_lines(path)]
    return sum(r["event"] == "submitted" and r["job"] in names and not r.get("adopted") for r in rows)


def chain(sweep: SweepDir, cluster: ClusterConfig, after: Sequence[str]) -> None:
    """See to it that a tiny job comes after each of these ids, however they end."""
    live = {seen.id for seen in mine() if seen.active}
    rows = read_lines(sweep.jobs / CHAIN)
    covered = {row["after"] for row in rows if row["id"] in live}
    check_file(sweep.jobs / CHAIN, "the record of tiny jobs")
    for job in after:
        if job not in covered:
            append_line(sweep.jobs / CHAIN, {"after": job, "id": _tiny(sweep, cluster, f"afterany:{job}")})


def chained_ids(sweep: SweepDir) -> list[str]:
    """The ids of all tiny jobs, for cancelling them."""
    return [row["id"] for row in read_lines(sweep.jobs / CHAIN)]


def _tiny(sweep: SweepDir, cluster: ClusterConfig, dependency: str) -> str:
    record = sweep.jobs / "advance"
    partition = cluster.prepare.partition
    steadfast = RetryConfig(
        error=3, rendezvous=3, killed=max(cluster.retry.killed, 5), backoff_s=min(cluster.retry.backoff_s, 10)
    )
    place = Place(
        cluster=cluster.model_copy(update={"retry": steadfast, "requeue": True}),
        record=record,
        snapshot=snapshot.take(sweep.path / snapshot.FOLDER),
        label=f"{sweep.path.name}.advance",
        comment=f"mudi {content_hash(str(record))[:16]} {record}",
        dependency=dependency,
    )
    job = Job(
        "advance", ("slurm", "sweep", "advance", str(sweep.path)), TINY.model_copy(update={"partition": partition})
    )
    return str(submit_job(job, place)[0].job_id)
