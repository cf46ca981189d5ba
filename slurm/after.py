"""The last line of a batch script: say why the job failed, and queue it again where its class of failure allows.

    python -m slurm.after RECORD CODE --retries error=1,rendezvous=3 --backoff 60

It runs after `srun`, outside of the ranks, so it is there whatever became of them. Its exit code is the job's, or AGAIN
where the batch script is to queue the job again, as Slurm's commands are not where Python is.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.files import append_line, read_lines
from slurm.failures import POLICIES, class_of_exit, last_words, lost_rank, outgrown, root_cause
from slurm.payload import ATTEMPTS, contained, failures_of

AGAIN = 85


def main(words: list[str]) -> int:
    """Look at how this start of the job ended; returns the code that it was given, or `AGAIN`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("code", type=int)
    parser.add_argument("--retries", default="")
    parser.add_argument("--backoff", type=float, default=60.0)
    args = parser.parse_args(words)
    limits = {name: int(number) for name, _, number in (w.partition("=") for w in args.retries.split(",") if w)}
    if args.code and explain(args.record, args.code, limits=limits, backoff=args.backoff) and contained():
        return AGAIN
    return int(args.code)


def job_id() -> str:
    """The id of the job around us, as submitit and squeue write it: 17, or 17_3 for a part of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def explain(record: Path, code: int, *, limits: Mapping[str, int], backoff: float) -> bool:
    """Print class, message and what to do; note the end; queue the job again where limits allow: whether they do."""
    name, restart = job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    rows = [row for row in read_lines(record / ATTEMPTS) if row["id"] == name]
    here = {"id": name, "restart": restart, "rank": -1, "time": time.time()}
    told = root_cause([f for f in failures_of(record, name) if f["restart"] == restart])
    refused = told is not None and told["class"] in ("time_limit", "preempted")  # by submitit, after it had said so
    if not refused and any(row["event"] == "requeued" and row["restart"] == restart for row in rows):
        return True  # rank 0 has saved its state and is in the queue again, or asks to be
    append_line(record / ATTEMPTS, {"event": "batch", "code": code, **here})
    log = record / f"{name}_0_log.out"
    cause = str(told["class"]) if told else class_of_exit(code, log)
    message = str(told["message"]) if told else last_words(log, size=500)
    if cause in ("error", "killed", "cancelled") and (line := outgrown(log)):
        cause, message = "out_of_memory", line
    elif cause in ("error", "cancelled") and (lost := lost_rank(log)):
        cause, message = lost
    print(f"slurm: {record.name} failed ({cause}, exit code {code}): {message.splitlines()[-1] if message else ''}")
    before = sum(row["event"] == "retry" and row["class"] == cause for row in rows)
    if before >= limits.get(cause, 0):
        print(f"slurm: {POLICIES[cause].advice}", flush=True)
        return False
    wait = 0.0 if contained() else backoff * 2**before
    print(f"slurm: queued again in {wait:.0f} s, attempt {before + 1} of {limits[cause]} for {cause}", flush=True)
    append_line(record / ATTEMPTS, {"event": "retry", "class": cause, **here})
    if not contained():
        requeue(name, wait)
    return True


def requeue(name: str, wait: float) -> None:
    """Queue this job again, to start in `wait` seconds. Slurm ends the batch script meanwhile: SIGTERM must not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        print(f"slurm: cannot queue it again: {done.stderr.strip()}", flush=True)
        return
    if wait >= 1:
        words = ["scontrol", "update", f"JobId={name}", f"StartTime=now+{wait:.0f}"]
        subprocess.run(words, capture_output=True, timeout=60, check=False)
    time.sleep(5)  # until Slurm ends us: an exit now could be taken for the job's own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
