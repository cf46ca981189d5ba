"""The job epilogue, after `srun` in a batch script: say why the job failed, and whether it is to be queued again.

    python -m slurm.epilogue RECORD CODE --retries error=1,rendezvous=3 --backoff 60

It runs outside of the ranks, so it is there whatever became of them. Its exit code is the job's, or AGAIN where the
batch script is to queue the job again: Slurm's commands are not where Python is, or a person submitted the script.

Where jobs may not be queued again, several of them wait in a chain (`cluster.<job>.starts`). One that failed for a
reason that comes again leaves the file of its chain, and those after it end at once.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.runtime.files import append_line
from slurm.failures import POLICIES, class_of_exit, lost_rank, outgrown, own_error, root_cause
from slurm.payload import FAILURES, STOPPED, contained, failures_of
from slurm.rank import attempts, job_id, no_progress, note_attempt

AGAIN = 85
GOES_ON = ("time_limit", "preempted", "node_failure")  # ends after which the next job of a chain goes on
SIGUSR2 = 140  # ended a job that has nothing to save


def main(argv: list[str]) -> int:
    """Look at how this start of the job ended; returns the code that it was given, or `AGAIN`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=Path)
    parser.add_argument("code", type=int)
    parser.add_argument("--retries", default="")
    parser.add_argument("--backoff", type=float, default=60.0)
    parser.add_argument("--chain", type=Path, help="others of the chain look for this file")
    parser.add_argument("--by-hand", action="store_true", help="a person submitted the script: no launcher is in it")
    args = parser.parse_args(argv)
    if args.by_hand and args.code in (STOPPED, SIGUSR2) and cut_by_hand(args.record):
        return AGAIN
    limits = {name: int(number) for name, _, number in (w.partition("=") for w in args.retries.split(",") if w)}
    if args.chain is not None:
        if args.code not in (0, STOPPED, SIGUSR2):
            end_chain(args.record, args.code, args.chain, limits)
    elif args.code and explain(args.record, args.code, limits=limits, backoff=args.backoff) and contained():
        return AGAIN
    return int(args.code)


def end_chain(record: Path, code: int, chain: Path, limits: Mapping[str, int]) -> None:
    """Print class, message and what to do; leave the chain's file, unless the next job of it may end otherwise."""
    name = job_id()
    cause, message = cause_of(record, name, code)
    note_attempt(record, "batch", code=code, id=name, restart=0, rank=-1)
    print(f"slurm: {record.name} failed ({cause}, exit code {code}): {message.splitlines()[-1] if message else ''}")
    if cause in GOES_ON or cause in limits:
        print("slurm: the next job of the chain goes on", flush=True)
    else:
        chain.touch()
        print(f"slurm: {POLICIES[cause].advice}", flush=True)


def cut_by_hand(record: Path) -> bool:
    """Whether a start that was asked to stop is to be followed by another: it is, unless the last ones made nothing."""
    here = {"id": job_id(), "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")), "rank": 0}
    if why := no_progress(record, job_id()):
        failure = {"class": "time_limit", "message": why, "code": STOPPED, "time": time.time()}
        append_line(record / FAILURES, failure | here)
        return False
    note_attempt(record, "requeued", **here)
    return True


def explain(record: Path, code: int, *, limits: Mapping[str, int], backoff: float) -> bool:
    """Print class, message and what to do; note the end; queue the job again where limits allow: whether they do."""
    name, restart = job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    rows = attempts(record, [name])
    here = {"id": name, "restart": restart, "rank": -1}
    told = root_cause([f for f in failures_of(record, name) if f["restart"] == restart])
    refused = told is not None and told["class"] in ("time_limit", "preempted")  # by submitit, after it had said so
    if not refused and any(row["event"] == "requeued" and row["restart"] == restart for row in rows):
        return True  # rank 0 has saved its state and is in the queue again, or asks to be
    note_attempt(record, "batch", code=code, **here)
    cause, message = cause_of(record, name, code)
    print(f"slurm: {record.name} failed ({cause}, exit code {code}): {message.splitlines()[-1] if message else ''}")
    before = sum(row["event"] == "retry" and row["class"] == cause for row in rows)
    if before >= limits.get(cause, 0):
        print(f"slurm: {POLICIES[cause].advice}", flush=True)
        return False
    wait = 0.0 if contained() else backoff * 2**before
    print(f"slurm: queued again in {wait:.0f} s, attempt {before + 1} of {limits[cause]} for {cause}", flush=True)
    note_attempt(record, "retry", **{"class": cause}, **here)
    if not contained():
        requeue(name, wait)
    return True


def cause_of(record: Path, name: str, code: int) -> tuple[str, str]:
    """The class of this start's failure, and its message."""
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    told = root_cause([f for f in failures_of(record, name) if f["restart"] == restart])
    log = record / f"{name}_0_log.out"
    cause = str(told["class"]) if told else class_of_exit(code, log)
    message = str(told["message"]) if told else own_error(record, name)
    if cause in ("error", "killed", "cancelled") and (line := outgrown(log)):
        return "out_of_memory", line
    if cause in ("error", "cancelled") and (lost := lost_rank(log)):
        return lost
    return cause, message


def requeue(name: str, wait: float) -> None:
    """Queue this job again, to start in `wait` seconds. Slurm ends the batch script meanwhile: SIGTERM must not."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        print(f"slurm: cannot queue it again: {done.stderr.strip()}", flush=True)
        return
    if wait >= 1:
        argv = ["scontrol", "update", f"JobId={name}", f"StartTime=now+{wait:.0f}"]
        subprocess.run(argv, capture_output=True, timeout=60, check=False)
    time.sleep(5)  # until Slurm ends us: an exit now could be taken for the job's own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
