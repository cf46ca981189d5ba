"""What runs inside a job: a command line, in a prepared environment, with a record of how it went.

Only argv is pickled, and the classes here are found in the snapshot of the code. The command runs in this process, so
that training's signal handling can pass on to submitit's, which puts the job back into the queue.
"""

import contextlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from pipeline.runtime.files import append_line, read_lines
from slurm.failures import class_of, class_of_exit, last_words
from slurm.rank import (
    CACHE,
    end_with_step,
    fingerprint,
    leave_receipt,
    make_cache,
    no_progress,
    note_attempt,
    process_born,
)

STOPPED = 75  # the training saved its state and asks to be started again
TERMINATED = 143  # SIGTERM that was not followed by a new start
RANK_0_SECONDS = 60.0  # how long other ranks wait for rank 0 to queue the job again, which ends them
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Payload:
    """A callable that submitit pickles: the command of one job, and where to record how it goes."""

    argv: tuple[str, ...]  # module and arguments
    record: str  # the folder runs/<name>/jobs/<job>
    parts: int = 1  # of an array: each of its tasks is given `--part k/n`
    env: tuple[tuple[str, str | None], ...] = ()  # set (or, with None, removed) before anything is imported
    requeue: bool = True  # whether the job may be queued again when it is cut

    def __call__(self) -> int:
        """Run the command. Returns 0, or leaves with its exit code."""
        here = Attempt.current(Path(self.record))
        for name, value in self.env:
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        here.begin()
        array = ("--part", f"{os.environ['SLURM_ARRAY_TASK_ID']}/{self.parts}") if self.parts > 1 else ()
        code = here.run((*self.argv, *array))
        if code == STOPPED and here.rank == 0 and self.requeue:
            here.requeue()  # leaves, where a launcher queues the job again
        elif code == STOPPED and contained():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun's, as soon as rank 0 has left to be queued again
        here.end(code)
        if code and not (code == STOPPED and here.rank > 0):  # another rank's bad end would cut rank 0's requeue short
            raise SystemExit(code)
        return 0

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit queues again: the same command. Training continues from its checkpoint by itself."""
        here = Attempt.current(Path(self.record))
        return DelayedSubmission(self) if self.requeue and here.may_go_on() else None


@dataclass(frozen=True)
class Attempt:
    """One start of a job, as one of its ranks sees it."""

    record: Path
    id: str
    restart: int
    rank: int
    size: int
    local_rank: int
    local_size: int
    log: Path

    @classmethod
    def current(cls, record: Path) -> "Attempt":
        """From the environment that submitit's launcher made."""
        env = submitit.JobEnvironment()
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        size, nodes = env.num_tasks, env.num_nodes
        places = env.global_rank, size, env.local_rank, size // nodes
        return cls(record, env.job_id, restart, *places, env.paths.stdout)

    def note(self, event: str, **more: object) -> None:
        """Add a line to the job's attempts."""
        note_attempt(self.record, event, id=self.id, restart=self.restart, rank=self.rank, **more)

    def may_go_on(self) -> bool:
        """Note that this start is to be followed by another, unless the last ones have made nothing."""
        preempted = self._preempted()
        if not preempted and (why := no_progress(self.record, self.id)):
            self._failed("time_limit", why, STOPPED)
            return False
        self.note("requeued", preempted=preempted)
        return True

    def begin(self) -> None:
        """Prepare signals, process group and ranks; say that this attempt started."""
        if "SLURM_JOB_ID" not in os.environ:
            os.setpgid(0, 0)  # Ctrl-C in the submitting terminal is the submitter's to handle
        signal.signal(signal.SIGTERM, self._terminated)
        if contained():
            signal.signal(signal.SIGUSR2, self._cut)
        if self.rank == 0:  # left by a kill in the middle of submitit's own checkpoint, which would refuse ever after
            for left in self.log.parent.glob(f"{self.id}_submitted.pkl*.save_tmp"):
                left.unlink(missing_ok=True)
        if self.size > 1:
            os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(self.size))
            os.environ.update(LOCAL_RANK=str(self.local_rank), LOCAL_WORLD_SIZE=str(self.local_size))
        make_cache()
        node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
        made = {"made": fingerprint()} if self.rank == 0 else {}
        self.note("start", node=node, pid=os.getpid(), born=process_born(os.getpid()), log=str(self.log), **made)
        end_with_step(lambda why: self._failed("killed", why, 137))

    def run(self, argv: tuple[str, ...]) -> int:
        """Run a module as `python -m` would, in this process; its exit code. Failures are recorded with their class."""
        code = self._code_of(argv)
        if code == 0:
            leave_receipt()  # before anything that may abort
        leave_group()
        return code

    def _code_of(self, argv: tuple[str, ...]) -> int:
        module = argv[0]
        sys.argv = list(argv)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
            if code % 256 not in (0, STOPPED, TERMINATED, 255):
                sys.stderr.flush()
                self._failed(class_of_exit(code, self.log), last_words(self.log), code)
            return code % 256
        except UncompletedJobError as error:  # submitit's: it was cut, and is not to be queued again
            self._failed("preempted" if self._preempted() else "time_limit", str(error), 1)
            return 1
        except BaseException as error:
            traceback.print_exc()
            self._failed(class_of(error), f"{type(error).__name__}: {error}", 1)
            return 1
        return 0

    def end(self, code: int) -> None:
        """Say how this attempt ended, and leave nothing in the node's own folder."""
        self.note("end", code=code)
        if self.local_rank == 0 and (cache := os.environ.get(CACHE)):
            shutil.rmtree(cache, ignore_errors=True)

    def requeue(self) -> None:
        """Ask the launcher to queue this job again, unless the job is being cancelled or has ended."""
        handler = signal.getsignal(signal.SIGUSR2)
        if contained():
            self.may_go_on()  # `slurm.epilogue` reads what is noted, and the batch script does it
        elif callable(handler) and self._still_wanted():
            handler(signal.SIGUSR2, None)

    def _failed(self, name: str, message: str, code: int) -> None:
        place = {"id": self.id, "restart": self.restart, "rank": self.rank, "time": time.time()}
        append_line(self.record / FAILURES, {"class": name, "message": message[-2000:], "code": code} | place)

    def _terminated(self, number: int, _: FrameType | None) -> None:
        """SIGTERM: preemption on clusters that announce it so, or the end of a job that somebody cancelled."""
        if "SLURM_JOB_ID" in os.environ and self.rank > 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(RANK_0_SECONDS)  # a rank that left now would have srun kill rank 0 before it has queued the job
        elif "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if self._preempted():
                self.requeue()
        self.note("terminated", signal=number)
        raise SystemExit(TERMINATED)

    def _cut(self, _: int, __: FrameType | None) -> None:
        """SIGUSR2 where only the batch script can queue the job again: it sees the code that rank 0 leaves with."""
        if self.rank == 0:
            raise SystemExit(STOPPED)

    def _preempted(self) -> bool:
        """Whether Slurm is taking the nodes away: srun sends the same signal when another rank has failed."""
        if contained():
            return False
        if "SLURM_JOB_ID" not in os.environ:
            return False
        found = re.search(r" PreemptTime=(\S+)", _asked("scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]))
        return found is not None and found[1] not in ("None", "N/A", "Unknown")

    def _still_wanted(self) -> bool:
        if "SLURM_JOB_ID" not in os.environ:
            return True
        state = _asked("squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-t", "all", "-o", "%T").strip()
        return state in ("", "RUNNING", "PREEMPTED", "SIGNALING")


def contained() -> bool:
    """Whether we are in a job, but Slurm's commands are not here: Python runs in a container."""
    return "SLURM_JOB_ID" in os.environ and shutil.which("scontrol") is None


def _asked(*argv: str) -> str:
    """What a command of Slurm answers; "" where it does not, or not in time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout
    return ""


def leave_group() -> None:
    """Take a process group of torch apart, where the command made one: left to the interpreter's exit, it may abort."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def failures_of(record: Path, job_id: str) -> list[dict[str, object]]:
    """The failures of the last start of a job, of every rank."""
    rows = [row for row in read_lines(record / FAILURES) if row["id"] == job_id]
    return [row for row in rows if row["restart"] == rows[-1]["restart"]]
