"""What was submitted under which id, and how it stands: from disk, the queue and the accounting, after any restart."""

import getpass
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.files import append_line, read_lines
from pipeline.runtime.run_dir import RunDir
from slurm.failures import POLICIES, class_of_exit, last_words, lost_rank, outgrown, root_cause
from slurm.payload import ATTEMPTS, failures_of
from slurm.queue import HELD, NEVER, Seen, look
from slurm.rank import process_born

LEDGER = "ledger.jsonl"
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

    def alive(self, number: int) -> bool:
        """Whether the process of a local part still runs."""
        return bool(self.born) and process_born(int(self.ids[number])) == self.born[number] != ""


@dataclass(frozen=True)
class State:
    """How a job stands."""

    job: str
    word: str  # complete, running, waiting, failed, cancelled, blocked, not submitted; unknown: Slurm is away
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
        return self.word in ("running", "waiting")

    @property
    def advice(self) -> str:
        """What to do about it, or ""."""
        return POLICIES[self.cause].advice if self.cause else ""


def note(run: RunDir, event: str, **row: Any) -> None:
    """Add a line to the ledger of a run."""
    append_line(run.jobs / LEDGER, {"event": event, "time": time.time(), "user": getpass.getuser()} | row)


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
            )
        elif row["event"] == "cancelled" and row["job"] in found:
            old = found[row["job"]]
            if set(row["ids"]) & set(old.ids):
                found[row["job"]] = Submission(**{**old.__dict__, "cancelled": True})
    return found


def one_word(ids: Sequence[str]) -> str:
    """The id of one job, or that of the whole array whose parts these are."""
    return ids[0] if len(ids) == 1 else ids[0].partition("_")[0]


def record_of(run: RunDir, job: str) -> Path:
    """Where the logs and attempts of a job lie: for one that is shared, in the run that submitted it."""
    known = submissions(run).get(job)
    return known.record if known is not None else run.jobs / job


def ids_of(run: RunDir) -> set[str]:
    """Every id that was ever written down for a run."""
    return {i for row in read_lines(run.jobs / LEDGER) if row["event"] == "submitted" for i in row["ids"]}


def open_ids(runs: Iterable[tuple[RunDir, Mapping[str, bool]]]) -> list[str]:
    """The ids at Slurm of everything that is submitted and not complete: what there is to ask Slurm about."""
    return [i for run, complete in runs for i in _open(submissions(run), complete)]


def _open(known: Mapping[str, Submission], complete: Mapping[str, bool]) -> list[str]:
    return [i for s in known.values() if s.executor == "slurm" and not complete.get(s.job) for i in s.ids]


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
    for job, done in complete.items():
        state = _state(job, known.get(job), done=done, seen=seen)
        found[job] = _upstream(state, known[job], found) if state.cause == "vanished" and not state.starts else state
    return found


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
        queue: from `slurm.queue.mine`.
    """
    seen = look([i for mine, (_, complete) in zip(known, runs, strict=True) for i in _open(mine, complete())], queue)
    return [states(run, complete(), seen, known=mine) for mine, (run, complete) in zip(known, runs, strict=True)]


def _upstream(state: State, submission: Submission, before: Mapping[str, State]) -> State:
    """Slurm forgets a job that it cancelled because another ended badly; where there is no accounting, in minutes."""
    bad = {one_word(s.ids) for s in before.values() if s.ids and s.word in ("failed", "blocked", "cancelled")}
    waited = {word.partition(":")[2] for word in submission.dependency.split(",") if word.startswith("afterok:")}
    if not waited & bad:
        return state
    return State(state.job, "blocked", cause="upstream", message=_UPSTREAM, ids=state.ids)


def attempts(record: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The starts, ends and requeues of these ids, in order."""
    return [row for row in read_lines(record / ATTEMPTS) if row["id"] in ids]


def _state(job: str, submission: Submission | None, *, done: bool, seen: Mapping[str, Seen]) -> State:
    if submission is None:
        return State(job, "complete" if done else "not submitted")
    rows = attempts(submission.record, submission.ids)
    starts = sum(row["event"] == "start" and row["rank"] == 0 for row in rows)
    if done:
        return State(job, "complete", ids=submission.ids, starts=starts)
    parts = [part_state(submission, number, rows=rows, seen=seen) for number in range(len(submission.ids))]
    worst = min(parts, key=lambda part: _ORDER.index(part.word))
    nodes = ",".join(sorted({part.nodes for part in parts if part.nodes}))
    ended = sum(part.word == "ended" for part in parts)
    leaving = submission.cancelled and worst.active
    if worst.word == "ended":
        message = "it ended well, but what it should make is not complete"
        worst = State(job, "failed", cause="error", message=message)
    return State(job, worst.word, worst.cause, worst.message, submission.ids, starts, nodes, ended, leaving)


_UPSTREAM = "a job that it waits for did not end well"
_ORDER = ("running", "waiting", "failed", "blocked", "cancelled", "ended")


def part_state(submission: Submission, number: int, *, rows: list[dict[str, Any]], seen: Mapping[str, Seen]) -> State:
    """One part: what Slurm (or the process table) says, then what the attempts say. Word "ended": it ended well."""
    job, job_id = submission.job, submission.ids[number]
    now = seen.get(job_id)
    mine = [row for row in rows if row["id"] == job_id]
    if submission.executor == "local" and submission.alive(number):
        return State(job, "running")
    if now is not None and now.runs:
        return State(job, "running", nodes=now.nodes)
    if now is not None and now.active:
        return State(job, "waiting", message=now.why)
    if submission.cancelled:
        return State(job, "cancelled", cause="cancelled", message="cancelled here")
    if now is not None and now.reason == NEVER and (now.waits or not mine):
        return State(job, "blocked", cause="upstream", message=_UPSTREAM)
    if now is not None and now.reason in HELD:
        return State(job, "failed", cause="held", message=f"Slurm holds it back: {now.reason}")
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
    """The class of a failure and its message: the ranks' own words first, then Slurm's, then the end of the log."""
    failures = failures_of(submission.record, rows[-1]["id"]) if rows else []
    same_start = [f for f in failures if rows and f["restart"] == rows[-1]["restart"]]
    told = root_cause(same_start)
    by_slurm = _BY_STATE.get(now.state) or _BY_STATE.get(now.reason) if now else None
    words = last_words(log)
    if told is not None and str(told["class"]) != "error":
        return str(told["class"]), str(told["message"])
    if line := outgrown(log):
        return "out_of_memory", line
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
        return class_of_exit(int(ended["code"]), log), words
    if any(row["event"] == "terminated" for row in rows[-1:]):
        return "cancelled", "it was asked to end (SIGTERM)"
    if now is not None and now.reason.partition(":")[0].isdigit() and now.state == "FAILED":
        return class_of_exit(int(now.reason.partition(":")[0]), log), words
    if now is not None and now.state == "FAILED":
        return class_of_exit(1, log), words
    return ("killed" if submission.executor == "local" and rows else "vanished"), words
