"""On a real Slurm: Python runs where Slurm's commands are not, as in a container; the batch script is outside of it."""

import subprocess
import sys

import pytest
from faults import begun, real_training
from launching import kept_steps, profile, result, slurm_cli, stand_in, uninterrupted, wait_for

from slurm import ledger
from slurm.submit import submit_graph

pytestmark = pytest.mark.cluster
CALM = {"exclude": "node2,node4"}  # where faults.py takes nodes away
INSIDE = f"env PATH=/nowhere {sys.executable}"


@pytest.fixture(autouse=True)
def _on_the_cluster(cluster):
    """All of these need it."""


def cut(launch) -> None:
    """What Slurm sends before the time limit."""
    subprocess.run(["scancel", "--signal=USR2", ledger.submissions(launch.run)["train"].ids[0]], check=True)


def test_a_cut_job_is_queued_again_and_so_is_one_that_failed_in_passing(tmp_path):
    cluster = profile("testbed", options=CALM, python=INSIDE)
    cut_in_two = stand_in(tmp_path / "cut", cluster, only=("train",), options={"train": "--steps 40 --hold"})
    failing = stand_in(tmp_path / "failing", cluster, only=("train",), options={"train": "--fail error --once"})
    for launch in (cut_in_two, failing):
        submit_graph(launch)
    wait_for(cut_in_two, lambda _: begun(cut_in_two))
    cut(cut_in_two)
    for launch in (cut_in_two, failing):
        now = wait_for(launch, lambda now: not now["train"].active)
        assert (now["train"].status, now["train"].starts) == ("complete", 2), now
    assert kept_steps(cut_in_two) == list(range(1, 41)) and result(cut_in_two) == uninterrupted(40)


def test_two_ranks_of_real_training_go_on(tmp_path):
    launch = real_training(tmp_path, CALM, steps=150, python=INSIDE)
    submit_graph(launch)
    wait_for(launch, lambda _: begun(launch))
    cut(launch)
    now = wait_for(launch, lambda now: not now["train"].active)
    assert (now["train"].status, now["train"].starts) == ("complete", 2), now


def test_preflight_sends_the_signal_from_outside(tmp_path):
    overrides = [
        "cluster=testbed",
        "cluster.internet=false",
        "cluster.internet_probe=127.0.0.1:9",
        f"cluster.python={INSIDE}",
    ]
    overrides += ["++cluster.options.exclude=node2\\,node4", f"runs_dir={tmp_path}", f"data_dir={tmp_path}"]
    done = slurm_cli("preflight", *overrides)
    assert done.returncode == 0 and "s to arrive" in done.stdout, done.stdout + done.stderr
