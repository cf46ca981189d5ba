"""Real training on two ranks of a real Slurm, cut in every way: the long proofs."""

import dataclasses
import subprocess
import time
from pathlib import Path

import pytest
import tiny
from faults import kill_node
from launching import LIMIT, ended, logs, profile, real, wait_for

from slurm import ledger
from slurm.progress import tail_rows
from slurm.submit import submit_graph
from slurm.workflows import Launch

pytestmark = [pytest.mark.cluster, pytest.mark.full, pytest.mark.timeout(2 * 3600)]
STEPS = 4000  # more than half a minute, after which the signal of a limit of one minute comes


@pytest.fixture(scope="module")
def trained(cluster, tmp_path_factory):  # noqa: ARG001 (it is up as long as this is used)
    """Submits the training under a name and returns its launch; `node` and further settings are Slurm's."""
    root = tmp_path_factory.mktemp("real")

    def submit(name: str, node: str, *, option: str = "nodelist", **train: object) -> Launch:
        settings = {"duration": f"{STEPS} steps", "checkpoint_every": "200 steps", "log_every": "100 steps"}
        cluster_ = profile("testbed", options={option: node}, train={"tasks": 2, **train})
        launch = real(root, cluster_, name=name, **settings)
        tiny.prepare(launch.cfg)
        jobs = tuple(dataclasses.replace(job, after=()) for job in launch.jobs if job.name == "train")
        launch = dataclasses.replace(launch, jobs=jobs)
        submit_graph(launch)
        return launch

    return submit


@pytest.fixture(scope="module")
def whole(trained):
    """The same training, left alone."""
    launch = trained("whole", "node1")
    now = wait_for(launch, ended)
    assert (now["train"].status, now["train"].starts) == ("complete", 1), logs(launch)
    return launch


def equal(found: Launch, expected: Launch) -> None:
    """To the bit, and step by step."""
    assert tiny.fingerprint(found.run, STEPS) == tiny.fingerprint(expected.run, STEPS)
    assert tiny.history(found.run) == tiny.history(expected.run)


def reached(launch: Launch, step: int) -> None:
    """Wait until a checkpoint of that step is committed."""
    end = time.monotonic() + LIMIT
    while (launch.run.latest_step() or 0) < step:
        assert time.monotonic() < end, logs(launch)
        time.sleep(0.1)


def revive(cluster: Path) -> None:
    """Start the daemons that were killed."""
    up = Path(__file__).resolve().parents[1] / "cluster" / "up"
    subprocess.run([up, "--dir", cluster], check=True, capture_output=True)


def test_cut_by_its_time_limit(whole, trained):
    cut = trained("limited", "node2", minutes=1)
    now = wait_for(cut, ended)
    assert now["train"].status == "complete" and now["train"].starts >= 2, logs(cut)
    equal(cut, whole)
    # It was warned and saved where it was: no step was trained twice.
    assert len([row for row in tail_rows(cut.run.metrics) if "loss" in row]) == STEPS // 100


def test_its_node_dies(whole, trained, cluster):
    cut = trained("orphaned", "node4")
    reached(cut, 600)
    kill_node("node4")
    wait_for(cut, lambda now: now["train"].status != "running")
    revive(cluster)
    now = wait_for(cut, ended)
    assert now["train"].status == "complete" and now["train"].starts == 2, logs(cut)
    equal(cut, whole)


def test_requeued_by_hand(whole, trained):
    cut = trained("requeued", "node2")
    reached(cut, 600)
    subprocess.run(["scontrol", "requeue", ledger.submissions(cut.run)["train"].ids[0]], check=True)
    now = wait_for(cut, ended)
    assert now["train"].status == "complete" and now["train"].starts == 2, logs(cut)
    equal(cut, whole)


def test_cancelled_and_retried(whole, trained):
    cut = trained("cancelled", "node3")
    reached(cut, 600)
    subprocess.run(["scancel", ledger.submissions(cut.run)["train"].ids[0]], check=True)
    now = wait_for(cut, ended)
    assert (now["train"].status, now["train"].cause) == ("cancelled", "cancelled"), logs(cut)
    assert (cut.run.latest_step() or 0) >= 600
    submit_graph(cut)
    now = wait_for(cut, ended)
    assert now["train"].status == "complete", logs(cut)
    equal(cut, whole)


def test_its_slurmd_dies_and_it_is_started_elsewhere_while_it_lives(whole, trained, cluster):
    """Only the daemon dies: Slurm gives the node up and starts the job again, and nobody has ended the first start."""
    cut = trained("doubled", "node1,node2", option="exclude")
    reached(cut, 400)
    node = wait_for(cut, lambda now: now["train"].nodes)["train"].nodes
    pid = (cluster / "run" / f"slurmd.{node}.pid").read_text().split()[0]
    subprocess.run(["kill", "-9", pid], check=True)
    now = wait_for(cut, lambda now: now["train"].starts == 2 or not now["train"].active)
    revive(cluster)
    now = wait_for(cut, ended)
    assert now["train"].status == "complete", logs(cut)
    equal(cut, whole)
