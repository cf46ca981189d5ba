"""Real training on two ranks of a real Slurm, cut by its time limit and by the death of its node: the long proofs."""

import dataclasses
import subprocess
import time
from pathlib import Path

import pytest
import tiny
from faults import kill_node
from launching import ended, logs, profile, real, wait_for

from slurm.submit import submit_graph
from slurm.watching import tail_rows
from slurm.workflows import Launch

pytestmark = [pytest.mark.cluster, pytest.mark.full, pytest.mark.timeout(600)]
STEPS = 4000


@pytest.fixture(scope="module")
def trained(cluster, tmp_path_factory):  # noqa: ARG001 (it is up as long as this is used)
    """Submits the training under a name and returns its launch; `node` and further settings are Slurm's."""
    root = tmp_path_factory.mktemp("real")

    def submit(name: str, node: str, **train: object) -> Launch:
        settings = {"duration": f"{STEPS} steps", "checkpoint_every": "200 steps", "log_every": "100 steps"}
        cluster_ = profile("testbed", options={"nodelist": node}, train={"tasks": 2, **train})
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
    now = wait_for(launch, ended, seconds=400)
    assert (now["train"].word, now["train"].starts) == ("complete", 1), logs(launch)
    return launch


def equal(found: Launch, expected: Launch) -> None:
    """To the bit, and step by step."""
    assert tiny.fingerprint(found.run, STEPS) == tiny.fingerprint(expected.run, STEPS)
    assert tiny.history(found.run) == tiny.history(expected.run)


def test_cut_by_its_time_limit(whole, trained):
    cut = trained("limited", "node2", minutes=1)
    now = wait_for(cut, ended, seconds=400)
    assert now["train"].word == "complete" and now["train"].starts >= 2, logs(cut)
    equal(cut, whole)
    # It was warned and saved where it was: no step was trained twice.
    assert len([row for row in tail_rows(cut.run.metrics) if "loss" in row]) == STEPS // 100


def test_its_node_dies(whole, trained, cluster):
    cut = trained("orphaned", "node4")
    end = time.monotonic() + 120
    while (cut.run.latest_step() or 0) < 600:
        assert time.monotonic() < end, logs(cut)
        time.sleep(0.1)
    kill_node("node4")
    wait_for(cut, lambda now: now["train"].word != "running", seconds=120)
    up = Path(__file__).resolve().parents[1] / "cluster" / "up"
    subprocess.run([up, "--dir", cluster], check=True, capture_output=True, timeout=120)
    now = wait_for(cut, ended, seconds=400)
    assert now["train"].word == "complete" and now["train"].starts == 2, logs(cut)
    equal(cut, whole)
