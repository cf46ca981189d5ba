"""Check, plan and submit a sweep: shared preparation first, then its runs as one job array; cancel; how runs stand.

An array is cut only where it is longer than Slurm's MaxArraySize, or where trials ask for different resources. Its
record in jobs/array-0003/array.json names its runs. It is written before sbatch is called, and the queue shows it in
the job's comment: so nothing is submitted twice, whatever was killed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config.check_training import metric_problems
from pipeline.config.load import config_from
from pipeline.config.needs import metric_missing
from pipeline.config.paths import run_directory
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import ClusterConfig, Resources
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import content_hash, read_json, read_lines, write_json
from pipeline.runtime.run_dir import RunDir
from slurm import cancel as cancelling
from slurm import ledger, plan, snapshot
from slurm.access import check_folder
from slurm.cancel import POLL_SECONDS, end, scancel
from slurm.executor import SubmitContext
from slurm.executor import submit as submit_job
from slurm.graph import Job
from slurm.ledger import State, Submission
from slurm.progress import ProgressTable, last_line
from slurm.queue import Seen, limits, listed, look
from slurm.rank import ATTEMPTS, process_born
from slurm.submit import Interrupt, run_here, submit_all
from slurm.sweep.runs import FINAL, Run, resources_of, run_at, shared, shared_key, trial_overrides
from slurm.sweep.settings import Params, SweepDir, SweepSettings, corners, overrides_of
from slurm.workflows import Launch, graph_of

ARRAY, SUBMITTED = "array.json", "submitted.json"
SETTLE_SECONDS = 5.0  # sbatch may outlive whoever called it by this
MOST_SHOWN = 12  # problems in a message
SAID_SECONDS = 10.0  # between lines on what runs here


# Check


@dataclass
class Checked:
    """A sweep whose configurations are all valid."""

    first: Config
    groups: dict[str, list[int]]  # trials that ask for the same resources, by a key
    configs: dict[str, Config]  # one of each group
    shared: dict[str, Config]  # one for each preparation that trials share


def check(settings: SweepSettings) -> Checked:
    """Validate every configuration of a grid; of a search, those at the ends of its space.

    Raises:
        UserError: all problems of all configurations together, each with the configurations that have it.
    """
    if settings.run is not None and not RunDir(settings.run).finished():
        raise UserError(f"run: {settings.run} has no finished training. Submit it first, or wait for it.")
    grid = settings.strategy.kind == "grid"
    tried: Sequence[Params] = settings.combinations if grid else corners(settings.dimensions)
    problems: dict[str, list[Params]] = {}
    found: Checked | None = None
    for number, params in enumerate(tried):
        try:
            cfg = config_from(trial_overrides(settings, params))
            plan.derived(cfg)
        except UserError as error:
            problems.setdefault(str(error), []).append(params)
            continue
        for problem in _rules(settings, cfg):
            problems.setdefault(problem, []).append(params)
        found = found or Checked(cfg, {}, {}, {})
        group = json.dumps(cfg.cluster.model_dump(mode="json"), sort_keys=True)
        found.groups.setdefault(group, []).append(number)
        found.configs.setdefault(group, cfg)
        found.shared.setdefault(shared_key(cfg), cfg)
    if problems or found is None:
        shown = [_said(problem, who, of=len(tried)) for problem, who in [*problems.items()][:MOST_SHOWN]]
        raise UserError("\n".join(shown))
    if not grid:
        if len(found.groups) > 1:
            raise UserError("a search cannot vary settings of cluster: resources are asked for before it chooses them.")
        found.groups = {group: list(range(settings.size)) for group in found.groups}
    for cfg in found.configs.values():
        plan.check_gpus(cfg, graph_of(cfg, RunDir(run_directory(cfg)), ()))
    return found


def _said(problem: str, who: Sequence[Params], *, of: int) -> str:
    if len(who) == of:
        return problem
    shown = "; ".join(" ".join(overrides_of(params)) for params in who[:3])
    more = f" and {len(who) - 3} more" if len(who) > 3 else ""
    return f"With {shown}{more}:\n  {problem}"


def _rules(settings: SweepSettings, cfg: Config) -> Iterator[str]:
    names = {settings.metric} | ({settings.pruning.metric} if settings.pruning.kind != "none" else set())
    for name in sorted(names):
        yield from (f"metric: {problem}" for problem in (*metric_problems(cfg, name), *metric_missing(cfg, name)))
    if settings.gpu_hours is not None and not cfg.cluster.train.gpus:
        yield "gpu_hours: set, but cluster.train.gpus is 0, so nothing would ever be counted."


# What was submitted


@dataclass(frozen=True)
class Array:
    """What was, or is to be, submitted together."""

    folder: Path
    runs: tuple[int, ...]  # in the order of the array's tasks
    asks: Resources
    made: float

    @property
    def comment(self) -> str:
        """How the queue shows it."""
        return f"mudi {content_hash(str(self.folder))[:16]} {self.folder}"

    @cached_property
    def submission(self) -> Submission | None:
        """What sbatch answered; None where nobody knows: it was not called, or whoever called it was killed."""
        try:
            note = read_json(self.folder / SUBMITTED)
        except Incomplete:
            return None
        return self.known_as(note["ids"], note["born"], note["executor"])

    def known_as(self, ids: Sequence[str], born: Sequence[str] = (), executor: str = "slurm") -> Submission:
        """The submission with these ids."""
        return Submission("trial", tuple(ids), executor, tuple(born), "", self.made, self.folder)

    def ids_from(self, one: str) -> list[str]:
        """All ids, from one of them."""
        base = one.partition("_")[0]
        return [base] if len(self.runs) == 1 else [f"{base}_{n}" for n in range(len(self.runs))]


def arrays_of(sweep: SweepDir) -> list[Array]:
    """All arrays of a sweep, in the order of their making."""
    found = []
    for path in sorted(sweep.jobs.glob(f"array-*/{ARRAY}")):
        note = read_json(path)
        asks = Resources.model_validate(note["asks"])
        found.append(Array(path.parent, tuple(note["runs"]), asks, note["time"]))
    return found


def states_of(sweep: SweepDir, settings: SweepSettings) -> tuple[dict[int, State], list[str]]:
    """How every run stands, by its index: from outcomes, attempts and one look at the queue.

    Also the ids of jobs that Slurm holds back for good, which a new submission replaces.
    """
    arrays = arrays_of(sweep)
    remote = any(a.submission is None or a.submission.executor == "slurm" for a in arrays)
    queue = listed() if remote else []  # before the outcomes are read: what ends meanwhile has one by then
    by_comment: dict[str, list[Seen]] = {}
    for seen in queue:
        by_comment.setdefault(seen.mark, []).append(seen)
    found: dict[int, State] = {}
    held: list[str] = []
    for array in arrays:
        shown = by_comment.get(array.comment, [])
        submission, rows = array.submission, _rows_by_id(array)
        if submission is None and (shown or rows):
            submission = array.known_as(array.ids_from(shown[0].id if shown else next(iter(rows))))
        if submission is None:
            continue
        seen_now = {seen.id: seen for seen in shown}
        outcomes = [run_at(sweep, settings, index).outcome() for index in array.runs]
        ended = [i for i, o in zip(submission.ids, outcomes, strict=True) if i in rows and not o and i not in seen_now]
        if submission.executor == "slurm":  # the accounting knows what the queue has forgotten
            seen_now |= look(ended, queue)
        for part, (index, outcome) in enumerate(zip(array.runs, outcomes, strict=True)):
            job = submission.ids[part]
            state = _state(outcome, submission, part, rows=rows.get(job, []), seen=seen_now)
            found[index] = replace(state, ids=(job,))
            held += [job] if job in seen_now and seen_now[job].waits and not seen_now[job].active else []
    for index in range(settings.size * settings.seeds):
        if index not in found:  # not submitted by an array that is on record
            found[index] = _by_outcome(run_at(sweep, settings, index).outcome()) or State("trial", "not begun")
    return found, held


def _by_outcome(outcome: Mapping[str, Any]) -> State | None:
    if not outcome:
        return None
    return State("trial", outcome["status"], cause=outcome.get("cause"), message=outcome.get("message", ""))


def _state(
    outcome: Mapping[str, Any],
    submission: Submission,
    part: int,
    *,
    rows: list[dict[str, Any]],
    seen: Mapping[str, Seen],
) -> State:
    """One run. A job in the queue counts before an outcome, which its last start may have left."""
    told = _by_outcome(outcome)
    if told is not None and told.status in FINAL:
        return told
    now = seen.get(submission.ids[part])
    alive = submission.executor == "local" and submission.alive(part)
    if told is not None and not alive and not (now is not None and now.active):
        return told
    if not rows and now is None and not alive:  # it never started
        return State("trial", "not begun")
    state = ledger.part_state(submission, part, rows=rows, seen=seen)
    if state.status == "ended":  # well, and without an outcome: the run was moved or emptied since
        return State("trial", "not begun")
    return state


def _rows_by_id(array: Array) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in read_lines(array.folder / ATTEMPTS):
        rows.setdefault(row["id"], []).append(row)
    return rows


def hours_of(sweep: SweepDir) -> dict[int, tuple[float, float]]:
    """By the index of a run, the hours that its jobs have held, and their GPU hours."""
    found: dict[int, tuple[float, float]] = {}
    for array in arrays_of(sweep):
        for job, rows in _rows_by_id(array).items():
            index = array.runs[int(job.partition("_")[2] or 0)]
            hours, gpus = _seconds(rows) / 3600, array.asks.nodes * array.asks.gpus
            before = found.get(index, (0.0, 0.0))
            found[index] = (before[0] + hours, before[1] + hours * gpus)
    return found


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of all starts of one job. One that was killed lasted until its log was last written, at least."""
    starts = [row for row in rows if row["event"] == "start" and row["rank"] in (0, "0")]
    total = 0.0
    for place, row in enumerate(starts):
        told = [r["time"] for r in rows if r["restart"] == row["restart"] and r["event"] != "start"]
        log = Path(row["log"])
        following = starts[place + 1]["time"] if place + 1 < len(starts) else time.time()
        seen = log.stat().st_mtime if log.is_file() else row["time"]
        total += max(max(told, default=min(seen, following)) - row["time"], 0.0)
    return total


def over_budget(sweep: SweepDir, settings: SweepSettings) -> str:
    """Why no run may start any more; "" where one may. A run is expected to cost what the others cost in the mean."""
    if settings.until is not None and datetime.now(settings.until.tzinfo) >= settings.until:
        return f"sweep.until={settings.until} has passed"
    if settings.gpu_hours is None:
        return ""
    ended: list[float] = []
    statuses: list[str] = []
    running = 0  # this run among them
    for index, (_, gpu_hours) in hours_of(sweep).items():
        status = run_at(sweep, settings, index).outcome().get("status")
        running += status is None
        ended += [gpu_hours] if status else []
        statuses += [status] if status else []
    counted = sum(status in FINAL for status in statuses)
    mean = sum(h for h, status in zip(ended, statuses, strict=True) if status in FINAL) / counted if counted else 0.0
    if sum(ended) + mean * running > settings.gpu_hours:
        return f"sweep.gpu_hours={settings.gpu_hours:g}, of which {sum(ended):.3g} are spent"
    return ""


# Submit


def anything_submitted(folder: Path) -> bool:
    """Whether a job was submitted from the folder of a sweep: of trials, or of what they share."""
    shared_runs = (RunDir(path) for path in folder.glob("shared/*"))
    return any(folder.glob(f"jobs/array-*/{SUBMITTED}")) or any(map(ledger.submissions, shared_runs))


def submit(sweep: SweepDir, settings: SweepSettings, checked: Checked) -> list[str]:
    """Queue every run that is neither complete, pruned, nor under way; lines that say what was done."""
    with sweep.lock("submit"):
        _settle(sweep)
        sweep.cancelled.unlink(missing_ok=True)
        states, held = states_of(sweep, settings)
        scancel(held)
        wanted = {n for n, state in states.items() if state.status not in FINAL and not state.active}
        said = [f"{len(states) - len(wanted)} of {len(states)} runs are complete or under way"]
        if not wanted:
            return said
        parts = [shared(settings, cfg, sweep=sweep, do_make=True) for cfg in checked.shared.values()]
        waits = _prepare([part for part in parts if not all(part.complete().values())])
        before = {state.ids[0].partition("_")[0] for state in states.values() if state.active}
        most = limits().array_size or 1001  # Slurm's default
        for group, trials in checked.groups.items():
            runs = [n for t in trials for n in range(t * settings.seeds, (t + 1) * settings.seeds) if n in wanted]
            for first in range(0, len(runs), most):
                some, cfg = runs[first : first + most], checked.configs[group]
                # Throttled arrays run one after the other: never more than at_once runs together.
                conditions = [f"afterok:{':'.join(waits)}"] if waits else []
                conditions += [f"afterany:{':'.join(sorted(before))}"] if before else []
                array = _record(sweep, settings, some, cfg)
                cluster = _patient(cfg.cluster, settings.retries)
                ids = _sbatch(array, cluster, sweep, dependency=",".join(conditions) or None)
                before = {ids[0].partition("_")[0]}
                said.append(f"queued {len(some)} runs as job array {ids[0].partition('_')[0]}")
        return said


def _settle(sweep: SweepDir) -> None:
    """Wait until an sbatch whose caller was killed must be in the queue, if it came that far."""
    for array in arrays_of(sweep)[-1:]:
        if array.submission is None:
            time.sleep(max(array.made + SETTLE_SECONDS - time.time(), 0.0))


def _record(sweep: SweepDir, settings: SweepSettings, runs: Sequence[int], cfg: Config) -> Array:
    number = max((int(a.folder.name.removeprefix("array-")) for a in arrays_of(sweep)), default=-1) + 1
    launch = Launch(cfg, RunDir(run_directory(cfg)), tuple(graph_of(cfg, RunDir(run_directory(cfg)), ())), ())
    asks = resources_of(launch, settings).model_copy(update={"parts": len(runs), "at_once": settings.at_once})
    array = Array(sweep.jobs / f"array-{number:04d}", tuple(runs), asks, time.time())
    note = {"runs": array.runs, "asks": asks.model_dump(mode="json"), "time": array.made}
    write_json(array.folder / ARRAY, note)
    return array


def _patient(cluster: ClusterConfig, retries: int) -> ClusterConfig:
    """The profile, with tasks queued again at least so often after what the machine may have done."""
    retry = cluster.retry
    least = {"error": retry.error, "rendezvous": retry.rendezvous, "killed": retry.killed}
    least = {name: max(number, retries) for name, number in least.items()}
    return cluster.model_copy(update={"retry": retry.model_copy(update=least)})


def _sbatch(array: Array, cluster: ClusterConfig, sweep: SweepDir, *, dependency: str | None = None) -> list[str]:
    code = snapshot.take(sweep.path / snapshot.FOLDER)
    makes = tuple(run_at(sweep, sweep.settings(), index).path for index in array.runs)
    job = Job("trials", ("slurm.sweep.worker", str(array.folder / ARRAY)), array.asks, makes=makes)
    context = SubmitContext(cluster, array.folder, code, f"{sweep.path.name}.trials", array.comment, dependency)
    ids = list(submit_job(job, context))
    born = [process_born(int(i)) for i in ids] if cluster.executor == "local" else []
    write_json(array.folder / SUBMITTED, {"ids": ids, "born": born, "executor": cluster.executor})
    return ids


def _prepare(parts: Sequence[Launch]) -> list[str]:
    """Submit, once for all trials, what they share and what is not complete; the ids to wait for."""
    if not parts:
        return []
    submit_all(parts)
    waits: list[str] = []
    for part in parts:
        known, complete = ledger.submissions(part.run), part.complete()
        waits += [i for name, s in known.items() if not complete.get(name, True) for i in s.ids]
    return sorted({i.partition("_")[0] for i in waits})


def throttle(sweep: SweepDir, at_once: int) -> None:
    """Have arrays that are in the queue run this many tasks at once."""
    for array in arrays_of(sweep):
        if array.submission is not None and array.submission.executor == "slurm" and len(array.runs) > 1:
            job = array.submission.ids[0].partition("_")[0]
            argv = ["scontrol", "update", f"JobId={job}", f"ArrayTaskThrottle={at_once}"]
            subprocess.run(argv, capture_output=True, timeout=60, check=False)  # one that has ended refuses


def here(sweep: SweepDir, settings: SweepSettings, checked: Checked) -> int:
    """Run what is not complete on this machine, one run after the other. 0, 1 where one failed, 130 where stopped."""
    sweep.cancelled.unlink(missing_ok=True)
    with sweep.lock("here"), Interrupt() as cancel:
        for part in (shared(settings, cfg, sweep=sweep, do_make=True) for cfg in checked.shared.values()):
            if not all(part.complete().values()) and (
                code := run_here(part, ProgressTable([job.name for job in part.jobs], title=str(part.run.path)))
            ):
                return code
        by_trial = {trial: group for group, trials in checked.groups.items() for trial in trials}
        failed = 0
        states, _ = states_of(sweep, settings)
        for index in range(settings.size * settings.seeds):
            run = run_at(sweep, settings, index)
            if cancel.asked or sweep.cancelled.exists():
                return 130
            if states[index].status in FINAL:
                continue
            if not states[index].active:
                cfg = checked.configs[by_trial[run.trial]]
                _sbatch(_record(sweep, settings, [index], cfg), cfg.cluster, sweep)
            _watch(sweep, run, cancel)
            status = run.outcome().get("status", "failed")
            print(f"{run.name}: {status}", file=sys.stderr, flush=True)
            failed += status == "failed"
        return int(failed > 0)


def _watch(sweep: SweepDir, run: Run, cancel: Interrupt) -> None:
    """Until a run that runs here has ended; now and then the last line of its log."""
    said, line = time.monotonic(), ""
    while alive := running_here(sweep):
        if cancel.asked:
            end(alive[-1])
            return
        log = alive[-1].record / f"{alive[-1].ids[0]}_0_log.out"
        if time.monotonic() - said > SAID_SECONDS and log.is_file() and (new := last_line(log)[:110]) != line:
            print(f"{run.name}: {new.removeprefix(f'{run.name}: ')}", file=sys.stderr, flush=True)
            said, line = time.monotonic(), new
        time.sleep(POLL_SECONDS)


def running_here(sweep: SweepDir) -> list[Submission]:
    """Runs whose process on this machine is alive: of the newest array, as they run one after the other."""
    found = [array.submission for array in arrays_of(sweep)[-1:]]
    return [s for s in found if s is not None and s.executor == "local" and s.alive(0)]


# Cancel


def cancel(sweep: SweepDir) -> list[str]:
    """Cancel every job of a sweep; the names of its runs that were under way. Training saves first."""
    check_folder(sweep.path, "sweep.folder")
    sweep.cancelled.touch()  # a task that starts all the same ends at once
    settings = sweep.settings()
    states, held = states_of(sweep, settings)
    local = running_here(sweep)
    for submission in local:
        end(submission)
    active = {n: state for n, state in states.items() if state.active}
    if not local:
        scancel([*held, *(state.ids[0] for state in active.values())])
    cancelling.cancel(shared_launches(sweep, settings))
    return [run_at(sweep, settings, index).name for index in active]


def shared_launches(sweep: SweepDir, settings: SweepSettings) -> list[Launch]:
    """The runs in whose name data and latents were prepared."""
    found = []
    for path in sorted((sweep.path / "shared").glob("*/config.yaml")):
        found.append(shared(settings, config_from([str(path.parent)]), sweep=sweep, do_make=False))
    return [launch for launch in found if launch.jobs and ledger.submissions(launch.run)]
