"""On a real Slurm: jobs are cut in every way in which clusters cut them, and end as they should.

All scenarios are submitted at once and run beside each other; each test waits for its own.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from launching import ended, kept_steps, profile, real, stand_in, states, wait_for

from slurm import ledger
from slurm.ledger import LEDGER
from slurm.submit import submit_graph
from slurm.watching import tail_rows
from slurm.workflows import Launch

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
CALM = {"exclude": "node2,node4"}  # node2 is where jobs are preempted, node4 is killed
REAL_STEPS = 600


def scenarios(root: Path) -> dict[str, Launch]:
    """One launch for each way to be cut; training is a stand-in of about 15 s, or the real one on two ranks."""
    steady = {"train": "--steps 150 --pace 0.1"}

    def one(name: str, words: str = "--steps 150 --pace 0.1", *, only=("train", "sample"), **settings) -> Launch:
        settings = {"options": CALM} | settings
        return stand_in(root / name, profile("testbed", **settings), only=only, options={"train": words})

    found = {
        "requeued": one("requeued"),
        "cancelled": one("cancelled"),
        "time_limit": one("time_limit", "--steps 450 --pace 0.1", train={"minutes": 1}),
        "time_limit_deaf": one("time_limit_deaf", "--steps 9000 --deaf", train={"minutes": 1}, requeue=False),
        "preempted": one(
            "preempted", "--steps 400 --pace 0.1", options={"nodelist": "node2"}, train={"partition": "preempt"}
        ),
        "preempted_for_good": one(
            "preempted_for_good",
            "--steps 9000 --deaf",
            options={"nodelist": "node2"},
            train={"partition": "preempt"},
            requeue=False,
        ),
        "dead_node": one("dead_node", steady["train"], only=("train",), options={"nodelist": "node4"}),
        "dead_node_for_good": one(
            "dead_node_for_good", "--steps 9000", only=("train",), options={"nodelist": "node4"}, requeue=False
        ),
    }
    for kind in ("bad_config", "non_finite", "out_of_memory", "killed", "disk_full", "error"):
        found[kind] = one(kind, f"--fail {kind}")
    found["real"] = real_training(root / "real", {"nodelist": "node2"}, partition="preempt")
    found["real_whole"] = real_training(root / "real_whole", CALM)
    return found


def real_training(root: Path, options: dict[str, str], **train: object) -> Launch:
    """The pipeline's own training, two ranks, on data that is there."""
    settings = {"duration": f"{REAL_STEPS} steps", "checkpoint_every": f"{REAL_STEPS} steps", "log_every": "25 steps"}
    launch = real(root, profile("testbed", options=options, train={"tasks": 2, **train}), **settings)
    tiny.prepare(launch.cfg)
    jobs = tuple(dataclasses.replace(job, after=()) for job in launch.jobs if job.name == "train")
    return dataclasses.replace(launch, jobs=jobs)


def _id(launch: Launch, job: str = "train") -> str:
    return ledger.submissions(launch.run)[job].ids[0]


def _steps(launch: Launch) -> Callable[[object], bool]:
    return lambda _: (launch.run.path / "steps.txt").exists() and len(kept_steps(launch)) > 5


def kill_node(name: str) -> None:
    """What a power cut does: slurmd, the managers of its jobs' steps, and the jobs."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            inside = f"SLURMD_NODENAME={name}".encode() in (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().split(b"\0")
            daemon = words[:1] == [b"slurmd"] and name.encode() in words
            if inside or daemon or (b"slurmstepd" in words[0] and children_on(entry, name)):
                os.kill(int(entry.name), signal.SIGKILL)


def children_on(entry: Path, name: str) -> bool:
    """Whether a step's manager has a job's process of that node below it."""
    for children in (entry / "task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if f"SLURMD_NODENAME={name}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    return True
    return False


@pytest.fixture(scope="module")
def running(cluster, tmp_path_factory):  # noqa: ARG001 (the cluster has to be up)
    """Everything submitted, everything that is to be cut has begun, and was cut."""
    found = scenarios(tmp_path_factory.mktemp("faults"))
    for launch in found.values():
        submit_graph(launch)
    for name in ("requeued", "cancelled", "preempted", "dead_node", "dead_node_for_good"):
        wait_for(found[name], _steps(found[name]), seconds=90)
    kill_node("node4")
    subprocess.run(["scontrol", "requeue", _id(found["requeued"])], check=True)
    subprocess.run(["scancel", _id(found["cancelled"])], check=True)
    wait_for(
        found["real"], lambda _: any(row["step"] >= 50 for row in tail_rows(found["real"].run.metrics)), seconds=90
    )
    taker = ["sbatch", "-p", "main", "-w", "node2", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 3"]
    subprocess.run(taker, check=True, capture_output=True)
    return found


@pytest.mark.parametrize("name", ["bad_config", "non_finite", "out_of_memory", "killed", "disk_full", "error"])
def test_each_class_of_failure_is_recognised_and_what_comes_after_is_explained(running, name):
    now = wait_for(running[name], ended)
    assert (now["train"].word, now["train"].cause) == ("failed", name)
    assert now["train"].advice
    assert (now["sample"].word, now["sample"].cause) == ("blocked", "upstream")
    # An unknown error is tried once more, the others are not: cluster.retry of the profile.
    assert now["train"].starts == (2 if name == "error" else 1)


def test_requeued_goes_on_and_keeps_every_step_once_more_than_needed(running):
    now = wait_for(running["requeued"], ended)
    assert now["sample"].word == now["train"].word == "complete" and now["train"].starts == 2
    # `scontrol requeue` gives no warning but SIGTERM: the state was saved all the same.
    assert kept_steps(running["requeued"]) == list(range(1, 151))


def test_cancelled_is_cancelled_and_does_not_rise_again(running):
    now = wait_for(running["cancelled"], ended)
    assert (now["train"].word, now["train"].cause, now["train"].starts) == ("cancelled", "cancelled", 1)
    assert now["sample"].cause == "upstream"


def test_preempted_saves_leaves_and_comes_back(running):
    now = wait_for(running["preempted"], ended)
    assert now["sample"].word == now["train"].word == "complete" and now["train"].starts == 2
    assert kept_steps(running["preempted"]) == list(range(1, 401))


def test_preempted_real_training_on_two_ranks_equals_the_uninterrupted(running):
    cut, whole = (wait_for(running[name], ended, seconds=200) for name in ("real", "real_whole"))
    assert cut["train"].word == whole["train"].word == "complete"
    assert cut["train"].starts == 2 and whole["train"].starts == 1
    found, expected = running["real"].run, running["real_whole"].run
    assert tiny.fingerprint(found, REAL_STEPS) == tiny.fingerprint(expected, REAL_STEPS)
    assert tiny.history(found) == tiny.history(expected)
    # It was asked to stop and saved where it was: no step was trained twice.
    assert len({row["step"] for row in tail_rows(found.metrics) if "loss" in row}) == REAL_STEPS // 25


def test_time_limit_saves_before_it_and_goes_on_after(running):
    now = wait_for(running["time_limit"], ended, seconds=150)
    assert now["sample"].word == now["train"].word == "complete" and now["train"].starts >= 2
    assert kept_steps(running["time_limit"]) == list(range(1, 451))


def test_killed_node_goes_on_when_the_node_is_back(running, cluster):
    lost = running["dead_node_for_good"]
    now = wait_for(lost, ended, seconds=120)
    assert (now["train"].word, now["train"].cause) == ("failed", "node_failure")
    up = Path(__file__).resolve().parents[1] / "cluster" / "up"
    subprocess.run([up, "--dir", cluster], check=True, capture_output=True, timeout=120)
    now = wait_for(running["dead_node"], ended)
    assert now["train"].word == "complete" and now["train"].starts == 2
    # Nothing warned it, so steps since its last save were trained again; the result is the same.
    assert sorted(set(kept_steps(running["dead_node"]))) == list(range(1, 151))


def test_jobs_that_may_not_be_queued_again_say_why_they_ended(running):
    now = wait_for(running["preempted_for_good"], ended)
    assert (now["train"].word, now["train"].cause) == ("failed", "preempted")
    now = wait_for(running["time_limit_deaf"], ended, seconds=150)
    assert (now["train"].word, now["train"].cause) == ("failed", "time_limit")


def test_states_need_nothing_but_the_disk_and_the_queue(running):
    """The ledger is what a new shell reads: nothing is kept in memory."""
    launch = running["requeued"]
    wait_for(launch, ended)
    assert (launch.run.jobs / LEDGER).is_file()
    began = time.monotonic()
    assert states(launch)["train"].word == "complete"
    assert time.monotonic() - began < 5
