"""Every way in which a cluster cuts jobs, all at once, on the test cluster; run as a process beside the tests.

    python tests/slurm/faults.py FOLDER

It submits the scenarios, waits until those that are to be cut have begun, and cuts them. Then it ends.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (0, 1, 2)]

import tiny
from launching import LIMIT, kept_steps, profile, real, stand_in

from slurm import ledger
from slurm.progress import tail_rows
from slurm.submit import submit_graph
from slurm.workflows import Launch

CALM = {"exclude": "node2,node4"}  # node2 is where jobs are preempted, node4 is killed
REAL_STEPS = 300
STEPS = 200  # of a stand-in
CUT_STEPS = f"--steps {STEPS} --pace 0.05 --hold"
CUT = "all-is-cut"  # a file that says so


def scenarios(root: Path) -> dict[str, Launch]:
    """One launch for each way to be cut; training is a stand-in that waits for it, or the real one on two ranks."""

    def one(name: str, overrides: str = CUT_STEPS, *, only=("train", "sample"), **settings) -> Launch:
        settings = {"options": CALM} | settings
        return stand_in(root / name, profile("testbed", **settings), only=only, options={"train": overrides})

    found = {
        "requeued": one("requeued"),
        "cancelled": one("cancelled", "--steps 9000 --pace 0.1"),
        "time_limit": one("time_limit", CUT_STEPS, train={"minutes": 1}),
        "time_limit_deaf": one("time_limit_deaf", "--steps 9000 --deaf", train={"minutes": 1}, requeue=False),
        "preempted": one("preempted", options={"nodelist": "node2"}, train={"partition": "preempt"}),
        "preempted_for_good": one(
            "preempted_for_good",
            "--steps 9000 --deaf",
            options={"nodelist": "node2"},
            train={"partition": "preempt"},
            requeue=False,
        ),
        "dead_node": one("dead_node", only=("train",), options={"nodelist": "node4"}),
        "dead_node_for_good": one(
            "dead_node_for_good",
            "--steps 9000 --pace 0.1",
            only=("train",),
            options={"nodelist": "node4"},
            requeue=False,
        ),
    }
    for kind in ("bad_config", "non_finite", "out_of_memory", "killed", "disk_full", "error"):
        found[kind] = one(kind, f"--fail {kind}")
    for kind in ("taken", "absent", "astray", "absent_for_good"):
        found[f"lost_{kind}"] = lost_ranks(root / f"lost_{kind}", kind)
    found["real"] = real_training(root / "real", {"nodelist": "node2"}, partition="preempt")
    found["real_whole"] = real_training(root / "real_whole", CALM)
    return found


def real_training(
    root: Path, options: dict[str, str], *, steps: int = REAL_STEPS, python: str | None = None, **train: object
) -> Launch:
    """The pipeline's own training, two ranks, on data that is there."""
    settings = {"duration": f"{steps} steps", "checkpoint_every": f"{steps} steps", "log_every": "25 steps"}
    launch = real(root, profile("testbed", options=options, python=python, train={"tasks": 2, **train}), **settings)
    tiny.prepare(launch.cfg)
    jobs = tuple(dataclasses.replace(job, after=()) for job in launch.jobs if job.name == "train")
    return dataclasses.replace(launch, jobs=jobs)


def lost_ranks(root: Path, kind: str) -> Launch:
    """Four steps of real training on two ranks that do not find each other; see `lost_ranks.py`."""
    never = kind.endswith("for_good")  # these fail however long they wait; the others find each other on a slow machine
    retry = {"error": 0, "rendezvous": 1 if never else 3, "backoff_s": 0}
    limit = 12 if never else 60
    cluster = profile("testbed", options=CALM, train={"tasks": 2}, rendezvous_s=limit, retry=retry)
    launch = real(root, cluster, duration="4 steps")
    tiny.prepare(launch.cfg)
    train, sample = (next(job for job in launch.jobs if job.name == name) for name in ("train", "sample"))
    train = dataclasses.replace(train, argv=("lost_ranks", kind, str(launch.run.path)), after=())
    return dataclasses.replace(launch, jobs=(train, sample) if never else (train,))


def _id(launch: Launch, job: str = "train") -> str:
    return ledger.submissions(launch.run)[job].ids[0]


def begun(launch: Launch) -> bool:
    """Whether a training is in the middle of its steps: the stand-in's sixth, the real one's first 25."""
    if launch.run.metrics.exists() and not (launch.run.path / "steps.txt").exists():
        return any(row["step"] >= 25 for row in tail_rows(launch.run.metrics))
    return (launch.run.path / "steps.txt").exists() and len(kept_steps(launch)) > 5


def preempt(node: str) -> None:
    """A job of a higher partition takes a whole node."""
    argv = ["sbatch", "-p", "main", "-w", node, "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 3"]
    subprocess.run(argv, check=True, capture_output=True)


def kill_node(name: str) -> None:
    """What a power cut does: slurmd, the managers of its jobs' steps, and the jobs; of this cluster alone."""
    ours = f"SLURM_CONF={os.environ['SLURM_CONF']}"
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            daemon = argv[0] == b"slurmd" and name.encode() in argv
            inside = f"SLURMD_NODENAME={name}" in environment(entry)
            if ours in environment(entry) and (
                daemon or inside or (b"slurmstepd" in argv[0] and is_above(entry, name))
            ):
                os.kill(int(entry.name), signal.SIGKILL)


def environment(entry: Path) -> set[str]:
    """Of a process, by its entry in /proc."""
    return set((entry / "environ").read_bytes().decode(errors="replace").split("\0"))


def is_above(entry: Path, name: str) -> bool:
    """Whether a step's manager has a process of a job on that node below it."""
    for children in (entry / "task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if f"SLURMD_NODENAME={name}" in environment(Path("/proc") / child):
                    return True
    return False


def cut_all(root: Path) -> None:
    """Submit everything and cut what is to be cut once it has begun."""
    found = scenarios(root)
    for launch in found.values():
        submit_graph(launch)
    waiting = {
        "requeued": lambda: subprocess.run(["scontrol", "requeue", _id(found["requeued"])], check=True),
        "cancelled": lambda: subprocess.run(["scancel", _id(found["cancelled"])], check=True),
    }
    together = {"dead_node": {"dead_node", "dead_node_for_good"}, "taken_node": {"preempted", "real"}}
    now: set[str] = set()
    end = time.monotonic() + LIMIT
    while (waiting or together) and time.monotonic() < end:
        now |= {name for name, launch in found.items() if begun(launch)}
        for name in set(waiting) & now:
            waiting.pop(name)()
        if together.get("dead_node", {"?"}) <= now:
            together.pop("dead_node")
            kill_node("node4")
        if together.get("taken_node", {"?"}) <= now:
            together.pop("taken_node")
            preempt("node2")
        time.sleep(0.2)
    assert not waiting and not together, (waiting, together, now)


if __name__ == "__main__":
    cut_all(Path(sys.argv[1]))
    (Path(sys.argv[1]) / CUT).touch()
