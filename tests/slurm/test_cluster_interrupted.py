"""On a real Slurm: jobs are cut in every way in which clusters cut them, and end as they should.

`faults.py` runs beside the tests from the session's start; each test here waits for its own scenario.
"""

import subprocess
import time
from pathlib import Path

import pytest
import tiny
from faults import CUT, REAL_STEPS, STEPS, scenarios
from launching import LIMIT, ended, kept_steps, logs, result, states, uninterrupted, wait_for

from pipeline.runtime.files import read_lines
from slurm.ledger import LEDGER
from slurm.payload import FAILURES
from slurm.progress import tail_rows

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def running(faults):
    """The scenarios, when all that is to be cut was cut."""
    end = time.monotonic() + LIMIT
    while not (faults / CUT).exists():
        assert time.monotonic() < end and "Error" not in (faults / "faults.log").read_text(), "faults.py failed"
        time.sleep(0.5)
    return scenarios(faults)


@pytest.mark.parametrize("name", ["bad_config", "non_finite", "out_of_memory", "killed", "disk_full", "error"])
def test_each_class_of_failure_is_recognised_and_what_comes_after_is_explained(running, name):
    now = wait_for(running[name], ended)
    assert (now["train"].status, now["train"].cause) == ("failed", name)
    assert now["train"].advice
    assert (now["sample"].status, now["sample"].cause) == ("blocked", "upstream")
    # An unknown error is tried once more, the others are not: cluster.retry of the profile.
    assert now["train"].starts == (2 if name == "error" else 1)


@pytest.mark.parametrize("kind", ["taken", "absent", "astray"])
def test_ranks_that_do_not_find_each_other_are_started_again(running, kind):
    launch = running[f"lost_{kind}"]
    now = wait_for(launch, ended)
    assert now["train"].status == "complete" and now["train"].starts >= 2, (now, logs(launch))
    told = read_lines(launch.run.jobs / "train" / FAILURES)
    assert {(row["class"], row["code"]) for row in told if row["restart"] == 0} == {("rendezvous", 78)}
    absent = "ranks [1] of 2 have not arrived"
    messages = {"taken": "rank 0 cannot listen on", "absent": absent, "astray": f"cannot reach|{absent}"}
    assert any(word in row["message"] for row in told for word in messages[kind].split("|"))


def test_ranks_that_never_find_each_other_stop_after_the_profile_s_limit(running):
    now = wait_for(running["lost_absent_for_good"], ended)
    assert (now["train"].status, now["train"].cause, now["train"].starts) == ("failed", "rendezvous", 2)
    assert "ranks [1] of 2 have not arrived" in now["train"].message
    assert now["sample"].cause == "upstream"


def test_requeued_goes_on_and_keeps_every_step_once_more_than_needed(running):
    now = wait_for(running["requeued"], ended)
    assert now["sample"].status == now["train"].status == "complete" and now["train"].starts == 2
    # `scontrol requeue` gives no warning but SIGTERM: the state was saved all the same.
    assert kept_steps(running["requeued"]) == list(range(1, STEPS + 1))
    assert result(running["requeued"]) == uninterrupted(STEPS)


def test_cancelled_is_cancelled_and_does_not_rise_again(running):
    now = wait_for(running["cancelled"], ended)
    assert (now["train"].status, now["train"].cause, now["train"].starts) == ("cancelled", "cancelled", 1)
    assert now["sample"].cause == "upstream"


def test_preempted_saves_leaves_and_comes_back(running):
    now = wait_for(running["preempted"], ended)
    assert now["sample"].status == now["train"].status == "complete" and now["train"].starts == 2
    assert kept_steps(running["preempted"]) == list(range(1, STEPS + 1))
    assert result(running["preempted"]) == uninterrupted(STEPS)


def test_preempted_real_training_on_two_ranks_equals_the_uninterrupted(running):
    cut, whole = (wait_for(running[name], ended) for name in ("real", "real_whole"))
    assert cut["train"].status == whole["train"].status == "complete"
    assert cut["train"].starts == 2 and whole["train"].starts == 1
    found, expected = running["real"].run, running["real_whole"].run
    assert tiny.fingerprint(found, REAL_STEPS) == tiny.fingerprint(expected, REAL_STEPS)
    assert tiny.history(found) == tiny.history(expected)
    # It was asked to stop and saved where it was: no step was trained twice.
    assert len({row["step"] for row in tail_rows(found.metrics) if "loss" in row}) == REAL_STEPS // 25


def test_time_limit_saves_before_it_and_goes_on_after(running):
    now = wait_for(running["time_limit"], ended)
    assert now["sample"].status == now["train"].status == "complete" and now["train"].starts >= 2
    assert kept_steps(running["time_limit"]) == list(range(1, STEPS + 1))
    assert result(running["time_limit"]) == uninterrupted(STEPS)


def test_killed_node_goes_on_when_the_node_is_back(running, cluster):
    lost = running["dead_node_for_good"]
    now = wait_for(lost, ended)
    assert (now["train"].status, now["train"].cause) == ("failed", "node_failure")
    up = Path(__file__).resolve().parents[1] / "cluster" / "up"
    subprocess.run([up, "--dir", cluster], check=True, capture_output=True)
    now = wait_for(running["dead_node"], ended)
    assert now["train"].status == "complete" and now["train"].starts == 2
    # Nothing warned it, so steps since its last save were trained again; the result is the same.
    assert sorted(set(kept_steps(running["dead_node"]))) == list(range(1, STEPS + 1))
    assert result(running["dead_node"]) == uninterrupted(STEPS)


def test_jobs_that_may_not_be_queued_again_say_why_they_ended(running):
    now = wait_for(running["preempted_for_good"], ended)
    assert (now["train"].status, now["train"].cause) == ("failed", "preempted")
    now = wait_for(running["time_limit_deaf"], ended)
    assert (now["train"].status, now["train"].cause) == ("failed", "time_limit")


def test_states_need_nothing_but_the_disk_and_the_queue(running):
    """The ledger is what a new shell reads: nothing is kept in memory."""
    launch = running["requeued"]
    wait_for(launch, ended)
    assert (launch.run.jobs / LEDGER).is_file()
    assert states(launch)["train"].status == "complete"
