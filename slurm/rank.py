"""One rank of a step of srun: it leaves a receipt when its command has ended well, and ends when its step is lost.

    python -m slurm.rank pipeline train RUN_DIR        in scripts that a person submits

srun's exit code alone does not tell how a job ended. Where the step's manager (slurmstepd) was killed, srun leaves with
0, and the ranks would go on writing. Where a rank aborts in the interpreter's exit, srun leaves with that rank's
signal, though all is saved. The batch script counts the receipts.

Each start is noted with a fingerprint of what the job has made so far. A job whose last starts made nothing is not
queued again: it would be cut at the same place for ever.
"""

import atexit
import contextlib
import hashlib
import os
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.files import TEMPORARY, append_line, read_lines

ATTEMPTS = "attempts.jsonl"  # starts, ends and requeues of a job, in its record
MAKES = "MUDI_MAKES"  # the batch script's variable: the run directory or folder that the job fills
OF_A_RUN = ("checkpoints", "samples", "results", "comparison")  # what a run's jobs make in it
STARTS = 3  # so many starts in a row that made nothing: more time is needed, not another start
RECEIPT = "MUDI_ENDED"  # the batch script's variable: a receipt is this path and a rank's number
LOOK_SECONDS = 1.0
CACHE = "MUDI_NODE_CACHE"  # the batch script's variable: a folder of the node's own, for compile caches


def job_id() -> str:
    """The id of the job around us, as submitit and squeue write it: 17, or 17_3 for a part of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def note_attempt(record: Path, event: str, **row: Any) -> None:
    """Add a line to the attempts of a job."""
    append_line(record / ATTEMPTS, {"event": event, "time": time.time()} | row)


def attempts(record: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The starts, ends and requeues of these ids, in order."""
    return [row for row in read_lines(record / ATTEMPTS) if row["id"] in ids]


def fingerprint() -> str | None:
    """Names and sizes of everything whole that the job around us has made; None where nobody says where it lies."""
    if not (where := os.environ.get(MAKES)):
        return None
    folder = Path(where)
    parts = [folder / name for name in OF_A_RUN] if (folder / "config.yaml").is_file() else [folder]
    found = hashlib.sha256()
    for part in parts:
        for path in sorted(part.rglob("*")):
            with contextlib.suppress(OSError):  # it is being replaced
                if TEMPORARY not in str(path) and path.is_file():
                    found.update(f"{path}\0{path.stat().st_size}\0".encode())
    return found.hexdigest()[:16]


def no_progress(record: Path, name: str) -> str | None:
    """Why this job is not to be queued again: its last starts made nothing. None where it may be.

    Starts that ended because Slurm took the nodes away do not count: more time would not help them.
    """
    rows, now = attempts(record, [name]), fingerprint()
    preempted = {row["restart"] for row in rows if row.get("preempted")}
    counted = 0
    for row in reversed(rows):
        if row["event"] == "start" and row["rank"] == 0:
            if now is None or row.get("made") != now or row["restart"] in preempted:
                break
            counted += 1
    if counted < STARTS:
        return None
    return f"{counted} starts, no step: more minutes. Nothing that a start made was saved before it was cut"


def leave_receipt() -> None:
    """Record that this rank's command has ended well. What comes after changes nothing, nor does srun's SIGTERM."""
    if prefix := os.environ.get(RECEIPT):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another rank's bad exit has srun end all of them
        Path(f"{prefix}.{os.environ['SLURM_PROCID']}").touch()


def make_cache() -> None:
    """Make the node's folder for this start of the job, which this user alone may enter.

    Code is loaded from it, and its name can be guessed: a folder of that name that is not ours is left alone, and
    another one is made.
    """
    if not (where := os.environ.get(CACHE)):
        return
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another rank of this node was first, or somebody else
        path.mkdir(mode=0o700)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return
    other = tempfile.mkdtemp(prefix=f"{path.name}-", dir=path.parent)
    atexit.register(shutil.rmtree, other, ignore_errors=True)
    print(f"slurm: {path} is not this job's own folder: compile caches go to {other}", file=sys.stderr, flush=True)
    for name, value in os.environ.items():
        if value == where or value.startswith(f"{where}/"):
            os.environ[name] = other + value.removeprefix(where)


def end_with_step(say: Callable[[str], None] = lambda _: None) -> None:
    """End this process within seconds after the manager of its step has died. Elsewhere than in a step: do nothing.

    Args:
        say: is told why, before the process is killed.
    """
    manager = manager_of_step()
    if manager is None:
        return
    born = process_born(manager)

    def watch() -> None:
        while process_born(manager) == born:
            time.sleep(LOOK_SECONDS)
        say(f"the manager of this step (slurmstepd, pid {manager}) has died: Slurm knows nothing of its ranks any more")
        with contextlib.suppress(OSError):  # no Slurm in this container: srun sees it in minutes
            step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
            subprocess.Popen(["scancel", "--quiet", step], start_new_session=True)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def manager_of_step() -> int | None:
    """The slurmstepd above this process; None outside of Slurm's steps, or where a container hides it."""
    pid = os.getppid()
    while RECEIPT in os.environ and pid > 1:
        try:
            name, _, fields = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            return None
        if name == "slurmstepd":
            return pid
        pid = int(fields.split()[1])
    return None


def process_born(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" where it does not run. Tells a pid from a later one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def main(argv: list[str]) -> None:
    """Run a module as `python -m` would, in this process."""
    end_with_step(lambda why: print(f"slurm: {why}", file=sys.stderr, flush=True))
    make_cache()
    if (receipt := os.environ.get(RECEIPT)) and os.environ.get("SLURM_PROCID") == "0":
        record, name = Path(receipt).parents[1], job_id()
        place = {"id": name, "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")), "rank": 0}
        place |= {"pid": os.getpid(), "node": os.environ.get("SLURMD_NODENAME", ""), "made": fingerprint()}
        note_attempt(record, "start", log=str(record / f"{name}_0_log.out"), born=process_born(os.getpid()), **place)
    sys.argv = argv
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as leave:
        if leave.code:
            raise
    leave_receipt()


if __name__ == "__main__":
    main(sys.argv[1:])
