"""Runs that are submitted together, as one job array, and finding them again after whoever submitted them was killed.

What is about to be submitted is written down first, its ids after it; a batch without ids is looked for in the queue.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema_cluster import ClusterConfig, Resources
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import content_hash, read_json, read_lines, write_json
from slurm import ledger, snapshot
from slurm.executor import Place, submit
from slurm.job import Job
from slurm.payload import ATTEMPTS
from slurm.queue import Seen
from slurm.rank import process_born
from slurm.sweep.folder import SweepDir
from slurm.sweep.runs import Run, resources_of, stages
from slurm.workflows import Launch
from slurm.writable import check_file

BATCH, SUBMITTED = "batch.json", "submitted.json"
SETTLE_SECONDS = 5.0  # sbatch may outlive whoever called it by this


@dataclass(frozen=True)
class Batch:
    """What was, or is to be, submitted together. Its folder is the record of the array."""

    folder: Path
    runs: tuple[str, ...]  # names, in the order of the array
    asks: Resources

    @property
    def comment(self) -> str:
        """How the queue shows it."""
        return f"mudi {content_hash(str(self.folder))[:16]} {self.folder}"

    def ids(self) -> tuple[str, ...] | None:
        """The ids of its runs at Slurm; None where it was never submitted, as far as anyone knows."""
        try:
            return tuple(read_json(self.folder / SUBMITTED)["ids"])
        except Incomplete:
            return None

    def ids_from(self, one: str) -> tuple[str, ...]:
        """All ids, from one of them."""
        base = one.partition("_")[0]
        return (base,) if len(self.runs) == 1 else tuple(f"{base}_{n}" for n in range(len(self.runs)))


def batches(sweep: SweepDir) -> list[Batch]:
    """All of a sweep, in the order of their making."""
    return [read_batch(path) for path in sorted(sweep.jobs.glob(f"batch-*/{BATCH}"))]


def read_batch(path: Path) -> Batch:
    """From its file."""
    note = read_json(path)
    return Batch(path.parent, tuple(note["runs"]), Resources.model_validate(note["asks"]))


def submit_batch(
    sweep: SweepDir, runs: Mapping[Run, Launch], *, at_once: int, dependency: str | None = None
) -> tuple[str, ...]:
    """Submit runs that ask for the same resources as one array; their ids."""
    launch = next(iter(runs.values()))
    number = max((int(b.folder.name.removeprefix("batch-")) for b in batches(sweep)), default=-1) + 1
    asks = resources_of(launch).model_copy(update={"parts": len(runs), "at_once": at_once})
    batch = Batch(sweep.jobs / f"batch-{number:04d}", tuple(run.name for run in runs), asks)
    for run in runs:
        check_file(run.records.jobs / ledger.LEDGER, "the ledger of submissions")
    write_json(batch.folder / BATCH, {"runs": batch.runs, "asks": asks.model_dump(mode="json"), "time": time.time()})
    cluster, code = launch.cfg.cluster, snapshot.take(sweep.path / snapshot.FOLDER)
    job = Job("trials", ("slurm.sweep.trial", str(batch.folder / BATCH)), asks)
    label = f"{sweep.path.name}.trials"
    where = Place(cluster, batch.folder, code, label, batch.comment, dependency)
    ids = tuple(str(j.job_id) for j in submit(job, where))
    _note(batch, ids, runs=runs, cluster=cluster, code=str(code))
    return ids


def _note(batch: Batch, ids: tuple[str, ...], *, runs: Mapping[Run, Launch], cluster: ClusterConfig, code: str) -> None:
    born = [process_born(int(i)) for i in ids] if cluster.executor == "local" else [""] * len(ids)
    write_json(batch.folder / SUBMITTED, {"ids": ids, "born": born, "executor": cluster.executor, "snapshot": code})
    for place, (run, launch) in enumerate(runs.items()):
        note_run(batch, place, run=run, launch=launch)


def note_run(batch: Batch, place: int, *, run: Run, launch: Launch) -> None:
    """Write a run's submission into its ledger, under each of its stages."""
    told = read_json(batch.folder / SUBMITTED)
    row: dict[str, Any] = {"executor": told["executor"], "snapshot": told["snapshot"], "record": str(batch.folder)}
    row |= {"ids": [told["ids"][place]], "born": [told["born"][place]] if told["born"][place] else []}
    for stage in stages(launch):
        ledger.note(run.records, "submitted", job=stage, batch=batch.folder.name, words=launch.words, **row)


def adopt(sweep: SweepDir, queue: Sequence[Seen], launches: Mapping[str, tuple[Run, Launch]]) -> None:
    """Complete what a killed submitter left: ids of batches that reached the queue, rows of runs that lack them.

    Args:
        launches: by name, the runs that are still open.
    """
    for batch in batches(sweep):
        if batch.ids() is None and (ids := _found(batch, queue)):
            note = {"ids": ids, "born": [""] * len(ids), "executor": "slurm", "snapshot": ""}
            write_json(batch.folder / SUBMITTED, note)
        if batch.ids() is None:
            continue
        for place, name in enumerate(batch.runs):
            if name in launches:
                run, launch = launches[name]
                known = {row.get("batch") for row in read_lines(run.records.jobs / ledger.LEDGER)}
                if batch.folder.name not in known:
                    note_run(batch, place, run=run, launch=launch)


def unsettled(sweep: SweepDir) -> float:
    """Seconds until it is sure that nobody's sbatch is still on its way."""
    made = [read_json(b.folder / BATCH)["time"] for b in batches(sweep)[-1:] if b.ids() is None]
    return max((t + SETTLE_SECONDS - time.time() for t in made), default=0.0)


def _found(batch: Batch, queue: Sequence[Seen]) -> tuple[str, ...]:
    for seen in queue:
        if seen.comment == batch.comment:
            return batch.ids_from(seen.id)
    started = read_lines(batch.folder / ATTEMPTS)
    return batch.ids_from(started[0]["id"]) if started else ()


@dataclass(frozen=True)
class Held:
    """What jobs have held so far, from their starts and ends."""

    hours: float = 0.0  # however many processes and GPUs
    gpu_hours: float = 0.0

    def __add__(self, other: "Held") -> "Held":
        """Both together."""
        return Held(self.hours + other.hours, self.gpu_hours + other.gpu_hours)


def held(sweep: SweepDir) -> dict[str, Held]:
    """By the name of the run, what its jobs have held."""
    found: dict[str, Held] = {}
    for batch in batches(sweep):
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in read_lines(batch.folder / ATTEMPTS):
            rows.setdefault(row["id"], []).append(row)
        for name, job in zip(batch.runs, batch.ids() or (), strict=False):
            hours = _seconds(rows.get(job, [])) / 3600
            found[name] = found.get(name, Held()) + Held(hours, hours * batch.asks.nodes * batch.asks.gpus)
    return found


def total(held: Mapping[str, Held], names: Sequence[str] | None = None) -> Held:
    """Of all runs, or of those named."""
    return sum((h for name, h in held.items() if names is None or name in names), Held())


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of all starts of one job. One that was killed lasted until its log was last written, at least."""
    starts = [row for row in rows if row["event"] == "start" and row["rank"] in (0, "0")]
    total = 0.0
    for start in starts:
        told = [r["time"] for r in rows if r["restart"] == start["restart"] and r["event"] != "start"]
        log = Path(start["log"])
        following = min((s["time"] for s in starts if s["time"] > start["time"]), default=time.time())
        seen = log.stat().st_mtime if log.is_file() else start["time"]
        total += max(max(told, default=min(seen, following)) - start["time"], 0.0)
    return total
