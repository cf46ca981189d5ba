"""Two hundred jobs of a grid: how long submitting takes, what the controller does meanwhile, and nobody stays behind.

    python benchmarks/slurm.py [--runs 200] [--at-once 32] [--ways ...] [--no-wait]     after tests/cluster/up

submit    a graph for each run, one job each: what `mudi submit` of many runs does
sweep     the same number of trials as one array: what `mudi sweep submit` does; each trains, samples and evaluates
submitit  the same number of jobs, one by one through submitit alone
array     one array by sbatch alone

What the jobs do is small stand-ins', so that the launcher and the controller are measured and not the training.
With --no-wait none of them starts (the partition is down meanwhile) and they are cancelled once they are submitted.
Processor seconds are those of the submitter and of whatever it starts: a busy machine does not add to them.

Measured with --no-wait on two cores that others used too.
--ways submit submitit array, under a load of 13 to 18:
    200 runs, mudi submit        submitted after 29.2 s, 1.5 s of them processor time, 0.4 s of slurmctld's
    200 jobs, submitit alone                     65.9 s, 1.2 s,                        0.5 s
    array of 200, sbatch alone                    0.1 s, 0.0 s,                        0.0 s
    status of the 200 runs takes 1.7 s
--ways sweep, under a load of 5 to 6: a sweep of 200 trials is submitted in 4.4 s, 1.8 s of them processor time.
"""

# ruff: noqa: E402 (the path of the stand-ins comes before their import)
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "slurm")]
os.environ["PYTHONPATH"] = str(ROOT / "tests" / "slurm")

import submitit
from launching import profile, slurm_cli, stand_in
from rich.console import Console
from rich.table import Table
from sweeping import CALM, has_ended, submitted

from slurm import status
from slurm.queue import listed
from slurm.submit import submit_all
from slurm.sweep.settings import SweepDir

WAYS = ("submit", "sweep", "submitit", "array")


def controller_seconds() -> float:
    """CPU seconds of slurmctld so far."""
    directory = Path(os.environ["SLURM_CONF"]).parents[1]
    pid = (directory / "run" / "slurmctld.pid").read_text().split()[0]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def partition(state: str) -> None:
    """Whether queued jobs start."""
    subprocess.run(["scontrol", "update", "PartitionName=main", f"State={state}"], check=True)


def drain(before: set[str], *, seconds: float = 900.0) -> None:
    """Wait until nothing is under way but what was before."""
    began = time.monotonic()
    while any(seen.active and seen.id not in before for seen in listed()) and time.monotonic() - began < seconds:
        time.sleep(1.0)


def own_seconds() -> float:
    """CPU seconds of this process and of those it started and waited for, so far."""
    return sum(os.times()[:4])


def measured(name: str, act, *, wait: bool) -> tuple[str, float, float, float, float]:
    """Name, seconds to submit, CPU seconds of that, seconds until all have ended, CPU seconds of the controller."""
    before = {seen.id for seen in listed()}
    partition("UP" if wait else "DOWN")
    spent, cpu, began = controller_seconds(), own_seconds(), time.monotonic()
    act()
    submitted, cpu = time.monotonic() - began, own_seconds() - cpu
    if not wait:
        new = sorted({seen.id.partition("_")[0] for seen in listed() if seen.id not in before})
        subprocess.run(["scancel", *new], check=True)
        partition("UP")
    drain(before)
    return name, submitted, cpu, time.monotonic() - began, controller_seconds() - spent


def ours(folder: Path, runs: int) -> list:
    """A launch for each run of the grid."""
    cluster = profile("testbed", train={"cpus": 1, "memory_gb": 0.5})
    options = {"train": "--steps 2 --pace 0.01"}
    return [
        stand_in(folder / "grid", cluster, name=f"run{k:03d}", only=("train",), options=options) for k in range(runs)
    ]


def as_a_sweep(folder: Path, runs: int, at_once: int) -> SweepDir:
    """A grid over the seed, submitted by a shell that then is gone."""
    os.environ["TOY_PACE"] = "0.01"
    overrides = ["cluster=testbed", CALM, f"seed=range(0,{runs})", f"sweep.at_once={at_once}"]
    return submitted(folder, "grid", *overrides)


def with_submitit(folder: Path, runs: int) -> None:
    """The plain way: one executor, one job after the other."""
    executor = submitit.SlurmExecutor(folder / "submitit")
    executor.update_parameters(time=10, cpus_per_task=1, mem="512M", stderr_to_stdout=True)
    for _ in range(runs):
        executor.submit(time.sleep, 0.02)


def with_an_array(runs: int, at_once: int) -> None:
    """One sbatch call; nothing but `true` runs."""
    argv = ["sbatch", f"--array=0-{runs - 1}%{at_once}", "--mem=512", "-o", "/dev/null", "--wrap", "srun true"]
    subprocess.run(argv, check=True, capture_output=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--no-wait", dest="wait", action="store_false", help="cancel what was submitted")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    os.environ.setdefault("SLURM_CONF", "/tmp/mudi-cluster/etc/slurm.conf")
    folder = Path(tempfile.mkdtemp(prefix="mudi-grid-"))
    console = Console(width=120)
    rows, notes = [], []
    try:
        if "submit" in args.ways:
            launches = ours(folder, args.runs)
            rows.append(measured(f"{args.runs} runs, mudi submit", lambda: submit_all(launches), wait=args.wait))
            began = time.monotonic()
            complete = sum(s["train"].status == "complete" for s in status.states_of(launches))
            notes.append(f"{complete} of {args.runs} complete; status of all took {time.monotonic() - began:.2f} s")
            if args.wait:
                rows.append(measured("submitted again (all complete)", lambda: submit_all(launches), wait=True))
        if "sweep" in args.ways:
            name = f"{args.runs} trials, mudi sweep"
            rows.append(measured(name, lambda: as_a_sweep(folder, args.runs, args.at_once), wait=args.wait))
            sweep = SweepDir(folder / "sweeps" / "grid")
            told = slurm_cli("sweep", "status", str(sweep.path)).stdout
            notes.append(f"sweep: {'ended' if has_ended(sweep) else 'not ended'}, {told.count('complete')} x complete")
        if "submitit" in args.ways:
            name = f"{args.runs} jobs, submitit alone"
            rows.append(measured(name, lambda: with_submitit(folder, args.runs), wait=args.wait))
        if "array" in args.ways:
            name = f"array of {args.runs}, sbatch alone"
            rows.append(measured(name, lambda: with_an_array(args.runs, args.at_once), wait=args.wait))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ended = "all ended after s" if args.wait else "all cancelled after s"
    table = Table("", "submitted after s", "CPU s of that", ended, "slurmctld CPU s")
    for name, *numbers in rows:
        table.add_row(name, *(f"{number:.1f}" for number in numbers))
    console.print(table)
    console.print("\n".join(notes))


if __name__ == "__main__":
    main()
