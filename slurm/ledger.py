"""How the jobs of runs stand: one reconciliation of what was written down, what Slurm shows, and what is on the disk.

The ledger of a run (jobs/ledger.jsonl) says what was submitted under which id. Jobs that it does not know are taken in:
their submitter died before it wrote them down, another run prepares the same data, or a person submitted the scripts
that `plan --sbatch` wrote. In the queue they say by their comment what they make; what has ended left its log.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.load import CONFIG_FILE
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import append_line, read_lines
from pipeline.runtime.run_dir import RunDir
from slurm.access import TURNS, held, name_of, number_of
from slurm.executor import SubmitContext
from slurm.failures import POLICIES, class_of_exit, lost_rank, outgrown, own_error, root_cause
from slurm.graph import Job
from slurm.payload import failures_of
from slurm.progress import newest_log
from slurm.queue import HELD, HELD_BY_USER, NEVER, Seen, listed, look
from slurm.rank import attempts, process_born
from slurm.score import SCORE, launch_of_score
from slurm.workflows import Launch, launch_of_run

LEDGER = "ledger.jsonl"
SCRIPTS = "scripts"  # the ledger's word for: sbatch scripts of this run were written
RUNS = Path("runs")  # where runs lie unless a config says otherwise
TURN_SECONDS = 300.0  # how long a submitter waits for others that submit runs to the same folder
_LOG = "_0_log.out"
_UPSTREAM = "a job that it waits for did not end well"
_ENDED_WELL = "it ended well, but what it should make is not complete"
_ORDER = ("running", "suspended", "waiting", "held", "failed", "blocked", "cancelled", "ended")
_BY_STATE = {
    "TIMEOUT": "time_limit",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out_of_memory",
    "DEADLINE": "time_limit",
}


@dataclass(frozen=True)
class Submission:
    """The newest submission of one job of a run."""

    job: str
    ids: tuple[str, ...]  # one for each part
    executor: str
    born: tuple[str, ...]  # local jobs: when their processes started, to tell them from later ones
    snapshot: str
    time: float
    record: Path
    dependency: str = ""  # Slurm's --dependency
    cancelled: bool = False
    earlier: tuple[str, ...] = ()  # of a chain, the jobs before this one, which make the same

    def alive(self, number: int) -> bool:
        """Whether the process of a local part still runs."""
        return bool(self.born) and process_born(int(self.ids[number])) == self.born[number] != ""


@dataclass(frozen=True)
class State:
    """How a job stands."""

    job: str
    status: str  # complete, or one of _ORDER, or: not submitted, unknown (Slurm is away)
    cause: str | None = None  # a class of slurm.failures, where it did not end well
    message: str = ""
    ids: tuple[str, ...] = ()
    starts: int = 0
    nodes: str = ""
    ended: int = 0  # parts that ended well, of an array
    leaving: bool = False  # it was cancelled, and has yet to save and end

    @property
    def active(self) -> bool:
        """Whether something is under way that a new submission should leave alone."""
        return self.status in ("running", "suspended", "waiting") or self.cause == "held_by_user"

    @property
    def stuck(self) -> bool:
        """Whether it does not go on by itself: somebody has to do something, or to look."""
        return self.status in ("failed", "blocked", "cancelled", "held", "unknown")

    @property
    def advice(self) -> str:
        """What to do about it, or ""."""
        return POLICIES[self.cause].advice if self.cause else ""


# What was written down


def note(run: RunDir, event: str, **row: Any) -> None:
    """Add a line to the ledger of a run."""
    append_line(run.jobs / LEDGER, {"event": event, "time": time.time(), "user": name_of(os.geteuid())} | row)


def submissions(run: RunDir) -> dict[str, Submission]:
    """The newest submission of each job, by job name."""
    found: dict[str, Submission] = {}
    for row in read_lines(run.jobs / LEDGER):
        if row["event"] == "submitted":
            record = Path(row.get("record") or run.jobs / row["job"])
            found[row["job"]] = Submission(
                row["job"],
                tuple(row["ids"]),
                row["executor"],
                tuple(row["born"]),
                row["snapshot"],
                row["time"],
                record,
                row.get("dependency") or "",
                earlier=tuple(row.get("earlier", ())),
            )
        elif row["event"] == "cancelled" and row["job"] in found:
            old = found[row["job"]]
            if set(row["ids"]) & set(old.ids):
                found[row["job"]] = replace(old, cancelled=True)
    return found


def refusals(run: RunDir) -> dict[str, str]:
    """By job, why sbatch refused it, where nothing of it was submitted since."""
    found: dict[str, str] = {}
    for row in read_lines(run.jobs / LEDGER):
        if row["event"] == "refused":
            found[row["job"]] = row["message"]
        elif row["event"] == "submitted":
            found.pop(row["job"], None)
    return found


def one_word(ids: Sequence[str]) -> str:
    """The id of one job, or that of the whole array whose parts these are."""
    return ids[0] if len(ids) == 1 else ids[0].partition("_")[0]


def record_of(run: RunDir, job: str) -> Path:
    """Where the logs and attempts of a job lie: for one that is shared, in the run that submitted it."""
    known = submissions(run).get(job)
    return known.record if known is not None else run.jobs / job


def log_now(run: RunDir, job: str) -> Path | None:
    """The log of a job's newest submission; None where that has written none: those before it have logs too."""
    known = submissions(run).get(job)
    return newest_log(known.record, (*known.earlier, *known.ids)) if known is not None else None


def ids_of(run: RunDir) -> set[str]:
    """Every id that was ever written down for a run."""
    rows = [row for row in read_lines(run.jobs / LEDGER) if row["event"] == "submitted"]
    return {i for row in rows for i in (*row["ids"], *row.get("earlier", ()))}


def users_of(runs: Iterable[RunDir]) -> set[str]:
    """The numbers of the users who submitted these runs, where this machine knows them."""
    names = {row.get("user", "") for run in runs for row in read_lines(run.jobs / LEDGER)}
    return set(filter(None, map(number_of, names)))


def context_of(launch: Launch, job: Job, *, code: Path, dependency: str | None = None) -> SubmitContext:
    """Where and how a job of a run is submitted. By its comment it is recognised in the queue."""
    record = launch.run.jobs / job.name
    comment = f"mudi {launch.key(job.name)} {record}"
    label = f"{launch.run.path.name}.{job.name}"
    return SubmitContext(launch.cfg.cluster, record, code, label, comment, dependency, launch.cwd)


def locked(run: RunDir) -> AbstractContextManager[None]:
    """One at work on a run at a time. Raises `UserError` where somebody runs it in the foreground."""
    refusal = (
        f"Another command is at work on {run.path}. Wait for it, or end it with its jobs, which save first: "
        f"mudi cancel {run.path}."
    )
    return held(run.jobs / ".lock", refusal=refusal)


def in_turn(folder: Path) -> AbstractContextManager[None]:
    """One submitter of a folder of runs after the other: else two would both queue what their runs share."""
    refusal = f"Others have been submitting to {folder} for {TURN_SECONDS:.0f} s. Try again."
    return held(folder / TURNS, refusal=refusal, seconds=TURN_SECONDS)


# Runs, as they were submitted


def runs_under(paths: Sequence[Path]) -> list[Path]:
    """Run directories, and the folders of scorings, among `paths` and directly below them, in order of names.

    Raises:
        UserError: where one of them is not there, or there is no run at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if path == RUNS:
                raise UserError(f"There is no folder '{RUNS}' here: no run yet. mudi submit experiment=NAME makes one.")
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
            near = f" Did you mean {RUNS / path}?" if (RUNS / path).is_dir() else near
            raise UserError(f"{path} is not a directory. Give a run directory or a folder of them.{near}")
        marks = (CONFIG_FILE, SCORE)
        alone = any((path / mark).is_file() for mark in marks)
        found += [path] if alone else sorted(p.parent for mark in marks for p in path.glob(f"*/{mark}"))
    if not found:
        raise UserError(f"No run (a directory with a config.yaml) in {', '.join(map(str, paths))}.")
    return found


def overrides_of(run: Path) -> tuple[str, ...]:
    """The overrides that the newest submission of a run was made with."""
    row = _submitted_last(run)
    return tuple(row["overrides"]) if row else ()


def _submitted_last(run: Path) -> dict[str, Any] | None:
    """The ledger's newest row of a submission with overrides of its own; else of scripts that were written."""
    rows = [row for row in read_lines(run / "jobs" / LEDGER) if "overrides" in row]
    return max(rows, key=lambda row: (row["event"] == "submitted", row["time"]), default=None)


def launches(paths: Sequence[Path]) -> tuple[list[Launch], list[str]]:
    """The runs, each as it was submitted last, and a line for each that cannot be read.

    Raises:
        UserError: where none of them can be read.
    """
    found: list[Launch] = []
    problems: list[str] = []
    for path in runs_under(paths):
        try:
            launch = as_submitted(path)
            launch.complete()  # reads what its jobs have made
            found.append(launch)
        except (UserError, OSError, ValueError) as error:
            problems.append(f"{path / (SCORE if (path / SCORE).is_file() else CONFIG_FILE)}: {error}")
    if not found:
        raise UserError("\n".join(problems))
    return found, problems


def as_submitted(path: Path) -> Launch:
    """A run with the overrides of its last submission; relative paths in its config start where it was submitted."""
    if (path / SCORE).is_file():
        return launch_of_score(path)
    row = _submitted_last(path)
    return launch_of_run(path, overrides_of(path), cwd=Path(row["cwd"]) if row else None)


# Jobs that the ledger does not know


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
    known, by_hand, found = ids_of(launch.run), written_by_hand(launch.run), []
    marked = [s for s in queue if (s.active or by_hand) and s.id not in known and s.mark]
    for job in launch.jobs:
        record = launch.run.jobs / job.name
        if mine := [s for s in marked if s.mark.split(" ", 2)[1] == launch.key(job.name)]:
            newest = max(mine, key=lambda s: (s.runs, s.active, _number(s.id)))
            record, number = Path(newest.mark.split(" ", 2)[2]), _number(newest.id)
            ids = {s.id for s in mine}
        elif ids := _logged(record) - known if by_hand else set():
            number = max(map(_number, ids))
        else:
            continue
        found.append(Stray(job.name, tuple(sorted((i for i in ids if _number(i) == number), key=_part)), record))
    return found


def twice(launch: Launch, known: Mapping[str, Submission], queue: Sequence[Seen]) -> dict[str, str]:
    """By job, the id of another job in the queue that makes the same: scripts that were submitted twice."""
    found: dict[str, str] = {}
    for job in launch.jobs:
        mine = known.get(job.name)
        ours = {_number(i) for i in (*mine.ids, *mine.earlier)} if mine is not None else set()
        key = launch.key(job.name)
        same = {_number(s.id) for s in queue if s.active and s.mark and s.mark.split(" ", 2)[1] == key}
        if ours & same and same - ours:
            found[job.name] = str(max(same - ours))
    return found


def _logged(record: Path) -> set[str]:
    """Ids of jobs, and of parts of arrays, that left a log."""
    names = {log.name.removesuffix(_LOG) for log in record.glob(f"*{_LOG}")}
    return {name for name in names if name.replace("_", "").isdigit()}


def written_by_hand(run: RunDir) -> bool:
    """Whether scripts were written for this run, which somebody may have submitted."""
    return any(row["event"] == SCRIPTS for row in read_lines(run.jobs / LEDGER))


def _number(job_id: str) -> int:
    return int(job_id.partition("_")[0])


def _part(job_id: str) -> int:
    return int(job_id.partition("_")[2] or 0)


def reconcile(launch: Launch, stray: Stray) -> None:
    """Write a job into the ledger that somebody else submitted."""
    row = {"executor": "slurm", "born": [], "snapshot": "", "reconciled": True}
    note(launch.run, "submitted", job=stray.job, ids=stray.ids, record=str(stray.record), **row)


def reconcile_its_own(launch: Launch, queue: Sequence[Seen]) -> bool:
    """Take in what was submitted for this run alone; whether anything was.

    Not while a submitter is at work on the run, which knows better, nor where the run is somebody else's.
    """
    if not _own(launch, queue):
        return False
    with contextlib.suppress(UserError, PermissionError), locked(launch.run):
        for stray in _own(launch, queue):
            reconcile(launch, stray)
    return True


def _own(launch: Launch, queue: Sequence[Seen]) -> list[Stray]:
    return [stray for stray in strays(launch, queue) if stray.record.parent == launch.run.jobs]


# How jobs stand


def states_of(runs: Sequence[Launch]) -> list[dict[str, State]]:
    """The states of every job of every run; Slurm is asked once for all of them, where anything may be there.

    Raises:
        SlurmAway: `states_without_slurm` has what is known all the same.
    """
    complete = [(launch, launch.complete()) for launch in runs]
    known = [submissions(launch.run) for launch in runs]
    by_hand = any(written_by_hand(launch.run) for launch, done in complete if not all(done.values()))
    asked = by_hand or open_ids((launch.run, done) for launch, done in complete)
    queue = listed(users_of(launch.run for launch in runs)) if asked else []
    for number, launch in enumerate(runs):
        if reconcile_its_own(launch, queue):
            known[number] = submissions(launch.run)
    found = states_of_all([(launch.run, launch.complete) for launch in runs], known, queue)
    for launch, mine, states_now in zip(runs, known, found, strict=True):
        for job, other in twice(launch, mine, queue).items():
            more = f"submitted twice, also as {other}: scancel {other}"
            message = "; ".join(filter(None, (states_now[job].message, more)))
            states_now[job] = replace(states_now[job], message=message)
    return found


def states_without_slurm(runs: Sequence[Launch], why: str) -> list[dict[str, State]]:
    """What the disk tells of jobs; of those that Slurm has, where nothing on the disk says how they ended: unknown."""
    found = []
    for launch in runs:
        known = submissions(launch.run)
        now = states(launch.run, launch.complete(), {})
        for name, state in now.items():
            if state.cause in ("vanished", "upstream") and known[name].executor == "slurm":
                now[name] = replace(state, status="unknown", cause=None, message=why)
        found.append(now)
    return found


def open_ids(runs: Iterable[tuple[RunDir, Mapping[str, bool]]]) -> list[str]:
    """The ids at Slurm of everything that is submitted and not complete: what there is to ask Slurm about."""
    return [i for run, complete in runs for i in _open(submissions(run), complete)]


def _open(known: Mapping[str, Submission], complete: Mapping[str, bool]) -> list[str]:
    open_ = [s for s in known.values() if s.executor == "slurm" and not complete.get(s.job)]
    return [i for s in open_ for i in (*s.ids, *s.earlier)]


def states_of_all(
    runs: Sequence[tuple[RunDir, Callable[[], Mapping[str, bool]]]],
    known: Sequence[Mapping[str, Submission]],
    queue: Sequence[Seen],
) -> list[dict[str, State]]:
    """Where every job of many runs stands.

    Order matters, as all of it moves: what is known was read before the queue, so that nothing is known that the queue
    has yet to show; the disk is looked at last, so that what ends meanwhile is complete, and not something that has
    ended without what it should make.

    Args:
        runs: each with a look at the disk, as the `complete` of `states`.
        known: the submissions of each.
        queue: from `slurm.queue.listed`.
    """
    seen = look([i for mine, (_, complete) in zip(known, runs, strict=True) for i in _open(mine, complete())], queue)
    return [states(run, complete(), seen, known=mine) for mine, (run, complete) in zip(known, runs, strict=True)]


def states(
    run: RunDir,
    complete: Mapping[str, bool],
    seen: Mapping[str, Seen] | None = None,
    *,
    known: Mapping[str, Submission] | None = None,
) -> dict[str, State]:
    """Where every job of a run stands.

    Args:
        complete: the graph's jobs in order, and whether what each makes is on the disk.
        seen: what Slurm says, where it was asked for many runs at once; None: ask now, if anything was sent there.
        known: what had been submitted when Slurm was asked; None: what has been submitted now.
    """
    known = submissions(run) if known is None else known
    if seen is None:
        seen = look(open_ids([(run, complete)]))
    found: dict[str, State] = {}
    refused = refusals(run)
    for job, done in complete.items():
        state = _state(job, known.get(job), done=done, seen=seen)
        if not done and not state.active and job in refused:
            state = State(job, "failed", "limit", refused[job], state.ids, state.starts)
        if state.message == _ENDED_WELL:
            state = _of_before(state, known, found, run)
        found[job] = _upstream(state, known[job], found) if state.cause == "vanished" and not state.starts else state
    return found


def _of_before(state: State, known: Mapping[str, Submission], before: Mapping[str, State], run: RunDir) -> State:
    """A job that ended well is to be done again where a job before it is, or was submitted since, or where somebody
    trained the run further by hand: it did not fail.
    """
    since = [s for s in before.values() if s.job in known and known[s.job].time > known[state.job].time]
    if bad := [s for s in since if s.stuck]:
        return replace(state, status="blocked", cause="upstream", message=f"{bad[0].job} did not end well")
    if since or any(s.status == "not submitted" for s in before.values()):
        return State(state.job, "not submitted")
    if state.job == "train" and _trained_since(run, known[state.job]):
        return State(state.job, "not submitted", message=f"trained further by hand, to step {run.latest_step() or 0}")
    return state


def _trained_since(run: RunDir, submission: Submission) -> bool:
    """Whether training was started by hand since a submission of it ended."""
    last = max((row["time"] for row in attempts(submission.record, submission.ids)), default=submission.time)
    return any(start.get("time", 0.0) > last for start in read_lines(run.starts))


def _upstream(state: State, submission: Submission, before: Mapping[str, State]) -> State:
    """Slurm forgets a job that it cancelled because another ended badly; where there is no accounting, in minutes."""
    bad = {one_word(s.ids) for s in before.values() if s.ids and s.status in ("failed", "blocked", "cancelled")}
    waited = {part.partition(":")[2] for part in submission.dependency.split(",") if part.startswith("afterok:")}
    if not waited & bad:
        return state
    return State(state.job, "blocked", cause="upstream", message=_UPSTREAM, ids=state.ids)


def _state(job: str, submission: Submission | None, *, done: bool, seen: Mapping[str, Seen]) -> State:
    if submission is None:
        return State(job, "complete" if done else "not submitted")
    rows = attempts(submission.record, (*submission.ids, *submission.earlier))
    starts = sum(row["event"] == "start" and row["rank"] == 0 for row in rows)
    if done:
        return State(job, "complete", ids=submission.ids, starts=starts)
    parts = [part_state(submission, number, rows=rows, seen=seen) for number in range(len(submission.ids))]
    worst = min(parts, key=lambda part: _ORDER.index(part.status))
    if worst.status == "waiting" and (now := _first_active(submission, seen)) is not None:
        left = sum(i in seen and seen[i].waits for i in (*submission.earlier, *submission.ids))
        worst = State(job, "waiting", message=now.why)
        if now.runs:
            worst = State(job, "running", message=f"{left} more starts in the queue", nodes=now.nodes)
            parts = [worst]
    nodes = ",".join(sorted({part.nodes for part in parts if part.nodes}))
    ended = sum(part.status == "ended" for part in parts)
    leaving = submission.cancelled and worst.active
    if worst.status == "ended":
        worst = State(job, "failed", cause="error", message=_ENDED_WELL)
    return State(job, worst.status, worst.cause, worst.message, submission.ids, starts, nodes, ended, leaving)


def _first_active(submission: Submission, seen: Mapping[str, Seen]) -> Seen | None:
    """Of a chain, the job whose turn it is."""
    return next((seen[i] for i in submission.earlier if i in seen and seen[i].active), None)


def part_state(submission: Submission, number: int, *, rows: list[dict[str, Any]], seen: Mapping[str, Seen]) -> State:
    """One part: what Slurm (or the process table) says, then what the attempts say. Status "ended": it ended well."""
    job, job_id = submission.job, submission.ids[number]
    now = seen.get(job_id)
    mine = [row for row in rows if row["id"] == job_id]
    if submission.executor == "local" and submission.alive(number):
        return State(job, "running")
    if now is not None and now.runs:
        return State(job, "running", nodes=now.nodes)
    if now is not None and now.active:
        if now.state == "SUSPENDED":
            message = f"Slurm or an administrator stopped it for a while: scontrol resume {job_id}"
            return State(job, "suspended", message=message, nodes=now.nodes)
        if now.reason == HELD_BY_USER:
            return State(job, "held", cause="held_by_user", message=f"{now.reason}: scontrol release {job_id}")
        return State(job, "waiting", message=now.why)
    if submission.cancelled:
        return State(job, "cancelled", cause="cancelled", message="cancelled here")
    if now is not None and now.reason == NEVER and (now.waits or not mine):
        return State(job, "blocked", cause="upstream", message=_UPSTREAM)
    if now is not None and now.reason in HELD:
        message = f"Slurm holds it back: {now.reason}: scontrol release {job_id}"
        return State(job, "held", cause="held", message=message)
    if now is not None and now.refused:
        return State(job, "held", cause="refused", message=f"Slurm keeps it waiting for good: {now.reason}")
    return _ended(submission, mine, now=now, log=submission.record / f"{job_id}_0_log.out")


def _ended(submission: Submission, rows: list[dict[str, Any]], *, now: Seen | None, log: Path) -> State:
    job = submission.job
    start = next((row for row in reversed(rows) if row["event"] == "start" and row["rank"] == 0), None)
    last = rows[-1] if rows else None
    log = Path(start["log"]) if start else log
    if (now is not None and now.state == "COMPLETED") or (last and last["event"] == "end" and last["code"] == 0):
        return State(job, "ended")
    cause, message = _cause(submission, rows, now=now, log=log)
    return State(job, "cancelled" if cause == "cancelled" else "failed", cause=cause, message=message)


def _cause(submission: Submission, rows: list[dict[str, Any]], *, now: Seen | None, log: Path) -> tuple[str, str]:
    """The class of a failure and its message: the ranks' own words first, then Slurm's, then those in the logs."""
    failures = failures_of(submission.record, rows[-1]["id"]) if rows else []
    same_start = [f for f in failures if rows and f["restart"] == rows[-1]["restart"]]
    told = root_cause(same_start)
    by_slurm = _BY_STATE.get(now.state) or _BY_STATE.get(now.reason) if now else None
    if told is not None and str(told["class"]) != "error":
        return str(told["class"]), str(told["message"])
    if line := outgrown(log):
        return "out_of_memory", line
    text = own_error(submission.record, log.name.removesuffix(_LOG))
    if by_slurm:
        return by_slurm, f"Slurm says {now.state if now else ''}"
    if now is not None and now.state == "CANCELLED":
        return "cancelled", "cancelled with scancel"
    if submission.executor == "slurm" and (lost := lost_rank(log)):
        return lost
    if told is not None:
        return str(told["class"]), str(told["message"])
    ended = next((row for row in reversed(rows) if row["event"] in ("batch", "end")), None)
    if ended is not None and rows[-1] is ended:
        return class_of_exit(int(ended["code"]), log), text
    if any(row["event"] == "terminated" for row in rows[-1:]):
        return "cancelled", "it was asked to end (SIGTERM)"
    if now is not None and now.reason.partition(":")[0].isdigit() and now.state == "FAILED":
        return class_of_exit(int(now.reason.partition(":")[0]), log), text
    if now is not None and now.state == "FAILED":
        return class_of_exit(1, log), text
    return ("killed" if submission.executor == "local" and rows else "vanished"), text
