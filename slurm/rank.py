"""One rank of a step of srun: it leaves a receipt when its words have ended well, and ends when its step is lost.

    python -m slurm.rank pipeline train RUN_DIR

srun's exit code alone does not tell how a job ended. Where the step's manager (slurmstepd) was killed, srun leaves with
0, and the ranks would go on writing. Where a rank aborts in the interpreter's exit, srun leaves with that rank's
signal, though all is saved. The batch script counts the receipts.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

RECEIPT = "MUDI_ENDED"  # the batch script's variable: a receipt is this path and a rank's number
LOOK_SECONDS = 1.0


def leave_receipt() -> None:
    """Record that the words of this rank have ended well. What comes after changes nothing, nor does srun's SIGTERM."""
    if prefix := os.environ.get(RECEIPT):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another rank's bad exit has srun end all of them
        Path(f"{prefix}.{os.environ['SLURM_PROCID']}").touch()


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


def main(words: list[str]) -> None:
    """Run a module as `python -m` would, in this process."""
    end_with_step(lambda why: print(f"slurm: {why}", file=sys.stderr, flush=True))
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as leave:
        if leave.code:
            raise
    leave_receipt()


if __name__ == "__main__":
    main(sys.argv[1:])
