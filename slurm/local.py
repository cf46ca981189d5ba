"""Run a graph on this machine, in order, in the foreground: each job a submitit local job with its own log."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from slurm import ledger, snapshot
from slurm.adopt import locked
from slurm.board import Board
from slurm.failures import retries_allowed
from slurm.graph import ordered
from slurm.job import Job
from slurm.ledger import State, Submission
from slurm.rank import process_born
from slurm.submit import place, refuse_unwritable
from slurm.watching import last_line, newest_log, training_of
from slurm.workflows import Launch

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0  # a training that is asked to stop saves its state first


class Cancel:
    """Whether Ctrl-C or SIGTERM came."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Cancel":
        self._before = {n: signal.signal(n, self._set) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, _: int, __: FrameType | None) -> None:
        self.asked = True


def run_here(launch: Launch, board: Board) -> int:
    """Run what is not complete; the exit code: 0, 1 where a job failed, 130 where it was cancelled."""
    refuse_unwritable(launch)
    with locked(launch.run), Cancel() as cancel, board:
        code: Path | None = None
        failed: set[str] = set()
        for job in ordered(launch.jobs):
            if launch.complete()[job.name]:
                board.show(job.name, "complete", "it was there already: skipped")
                continue
            if failed & set(job.after) or cancel.asked:
                failed.add(job.name)
                board.show(job.name, "blocked", "a job before it did not end well" if failed else "cancelled")
                continue
            state = ledger.states(launch.run, launch.complete())[job.name]
            if not state.active:
                code = code or snapshot.take(launch.run.path.parent / snapshot.FOLDER)
                place(launch, job, code=code, waits_for={})
            state = _watch(launch, job, board=board, cancel=cancel)
            tries: list[str | None] = []
            while _again(launch, job, state, tries=tries, board=board, cancel=cancel):
                tries.append(state.cause)
                code = code or snapshot.take(launch.run.path.parent / snapshot.FOLDER)
                place(launch, job, code=code, waits_for={})
                state = _watch(launch, job, board=board, cancel=cancel)
            if state.word != "complete":
                failed.add(job.name)
            board.show(job.name, state.word, _said(state))
        return 130 if cancel.asked else int(bool(failed))


def _again(launch: Launch, job: Job, state: State, *, tries: list[str | None], board: Board, cancel: Cancel) -> bool:
    """Whether a job that failed is to be started again: cluster.retry says how often for what may pass. Waits first."""
    retry = launch.cfg.cluster.retry
    allowed = retries_allowed(state.cause, retry) if state.word == "failed" and state.cause else 0
    before = tries.count(state.cause)
    if before >= allowed:
        return False
    wait = retry.backoff_s * 2**before
    board.show(job.name, "waiting", f"{_said(state)}; again in {wait} s, attempt {before + 1} of {allowed}")
    end = time.monotonic() + wait
    while time.monotonic() < end and not cancel.asked:
        time.sleep(POLL_SECONDS)
    return not cancel.asked


def _said(state: State) -> str:
    if state.word == "complete":
        return ""
    last = state.message.strip().splitlines()[-1:] or [""]
    return f"{state.cause}: {last[0]}"


def _watch(launch: Launch, job: Job, *, board: Board, cancel: Cancel) -> State:
    """Until the job's processes have ended; what became of it."""
    submission = ledger.submissions(launch.run)[job.name]
    while _alive(submission):
        if cancel.asked:
            board.show(job.name, "running", "stopping: it saves what it can")
            stop(launch, submission)
            break
        board.show(job.name, "running", detail(launch, job.name))
        time.sleep(POLL_SECONDS)
    return ledger.states(launch.run, launch.complete())[job.name]


def detail(launch: Launch, job: str) -> str:
    """How far a running job is, in a line."""
    trained = launch.trains(job)
    if trained is not None and (training := training_of(trained)) is not None and training.images_per_second:
        return training.words()
    log = newest_log(launch.run.jobs / job)
    return last_line(log)[:100] if log else ""


def _alive(submission: Submission) -> bool:
    # Our own children are zombies until they are waited for, and zombies count as ended.
    return any(submission.alive(number) for number in range(len(submission.ids)))


def stop(launch: Launch, submission: Submission) -> None:
    """Cancel a local job of a run: note it, then `end` it."""
    ledger.note(launch.run, "cancelled", job=submission.job, ids=submission.ids)
    end(submission)


def end(submission: Submission, *, grace: float = GRACE_SECONDS) -> None:
    """Ask a local job to end, wait for it to save, and insist after `grace` seconds."""
    _signal(submission, signal.SIGTERM)
    limit = time.monotonic() + grace
    while _alive(submission) and time.monotonic() < limit:
        time.sleep(POLL_SECONDS)
    if _alive(submission):
        print(f"{submission.job}: killed, as it did not end within {grace:.0f} s", file=sys.stderr)
        _signal(submission, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _signal(submission: Submission, number: int) -> None:
    """To every rank that recorded itself and still runs, and to submitit's controller of them."""
    rows = ledger.attempts(submission.record, submission.ids)
    ranks = [(int(row["pid"]), str(row["born"])) for row in rows if row["event"] == "start"]
    controllers = list(zip(map(int, submission.ids), submission.born, strict=True))
    # The controller passes SIGTERM on; it is told first where nobody has recorded itself yet.
    for pid, born in (ranks or controllers) if number == signal.SIGTERM else controllers + ranks:
        if born and process_born(pid) == born:
            os.kill(pid, number)
