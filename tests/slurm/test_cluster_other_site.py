"""On another kind of site: the kernel kills what outgrows its memory, preemption is SIGTERM and a grace time, and an
array has two tasks at most.
"""

import os
import subprocess
from pathlib import Path

import pytest
import tiny
from faults import begun, preempt, real_training
from launching import HERE, ended, kept_steps, profile, result, stand_in, uninterrupted, wait_for
from sweeping import accounted, has_ended, starts_of, submitted, wait_until

from slurm import cancel
from slurm.ledger import states_of, submissions
from slurm.queue import LimitReached, limits
from slurm.rank import attempts
from slurm.submit import submit_graph
from slurm.sweep.settings import SweepDir
from slurm.sweep.submit import arrays_of

pytestmark = pytest.mark.cluster
STEPS = 150


@pytest.fixture(scope="module", autouse=True)
def site(cluster):
    """A second cluster beside the first, and whether it confines memory; it goes when these tests have ended."""
    directory = Path(f"/tmp/mudi-site-{os.getpid()}")
    up, down = HERE.parent / "cluster" / "up", HERE.parent / "cluster" / "down"
    argv = [
        up,
        "--dir",
        directory,
        "--nodes",
        "2",
        "--preempt-by-sigterm",
        "--max-array-size",
        "2",
        "--enforce-limits",
    ]
    tried = subprocess.run([*argv, "--confine-memory"], capture_output=True, text=True, check=False)
    if tried.returncode:
        (directory / "site.json").unlink(missing_ok=True)
        subprocess.run(argv, check=True, capture_output=True)
    os.environ["SLURM_CONF"] = str(directory / "etc" / "slurm.conf")
    yield tried
    os.environ["SLURM_CONF"] = str(cluster / "etc" / "slurm.conf")
    subprocess.run([down, "--dir", directory, "--wipe"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def nodes(site) -> list[str]:  # noqa: ARG001 (it sets SLURM_CONF)
    """The names of its nodes."""
    return subprocess.run(["sinfo", "-hN", "-o", "%N", "-p", "main"], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_kernel_kills_what_outgrows_its_memory_and_it_is_not_tried_again(site, tmp_path, tasks):
    if site.returncode:
        pytest.skip(site.stderr.strip())
    cluster = profile("testbed", train={"memory_gb": 0.5, "tasks": tasks})
    launch = stand_in(tmp_path, cluster, only=("train", "sample"), options={"train": "--fail memory"})
    submit_graph(launch)
    now = wait_for(launch, ended)
    assert (now["train"].status, now["train"].cause, now["train"].starts) == ("failed", "out_of_memory", 1)
    assert "memory_gb" in now["train"].advice and now["sample"].cause == "upstream"
    argv = ["sacct", "-n", "-P", "-o", "State", "-j", now["train"].ids[0]]
    assert "OUT_OF_MEMORY" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_preemption_by_sigterm_alone_saves_within_the_grace_time_and_comes_back(nodes, tmp_path):
    taken, calm = ({"nodelist": name} for name in nodes)
    counting = stand_in(
        tmp_path / "counting",
        profile("testbed", options=taken, train={"partition": "preempt"}),
        only=("train", "sample"),
        options={"train": "--steps 50 --pace 0.05 --hold"},
    )
    cut = real_training(tmp_path / "cut", taken, steps=STEPS, partition="preempt")
    whole = real_training(tmp_path / "whole", calm, steps=STEPS)
    for launch in (counting, cut, whole):
        submit_graph(launch)
    wait_for(cut, lambda _: begun(cut) and begun(counting))
    preempt(nodes[0])
    for launch in (counting, cut, whole):
        now = wait_for(launch, ended)
        assert {state.status for state in now.values()} == {"complete"}
    rows = attempts(submissions(cut.run)["train"].record, submissions(cut.run)["train"].ids)
    assert sum(row["event"] == "start" and row["rank"] == 0 for row in rows) == 2
    assert any(row["event"] == "requeued" for row in rows)
    assert tiny.fingerprint(cut.run, STEPS) == tiny.fingerprint(whole.run, STEPS)
    assert tiny.history(cut.run) == tiny.history(whole.run)
    assert kept_steps(counting) == list(range(1, 51)) and result(counting) == uninterrupted(50)


def test_a_sweep_of_more_runs_than_an_array_may_have_is_cut_and_no_more_run_at_once(site, tmp_path, monkeypatch):  # noqa: ARG001
    monkeypatch.setenv("TOY_PACE", "0")
    sweep = submitted(tmp_path, "long", "train.optim.lr=1e-4,1e-3,1e-2", "cluster=testbed", "sweep.at_once=2")
    arrays = arrays_of(sweep)
    assert [array.runs for array in arrays] == [(0, 1), (2,)]
    wait_until(lambda: has_ended(sweep), sweep)
    accounted(sweep)
    starts = {start["id"]: start for start in starts_of(sweep)}
    last = starts.pop(arrays[1].submission.ids[0])
    assert last["time"] >= max(start["ended"] for start in starts.values())


def test_a_limit_on_jobs_in_the_queue_is_said_waited_for_and_retried(nodes, tmp_path, capsys):
    def allow(jobs: int) -> None:
        argv = ["sacctmgr", "-i", "modify", "user", "root", "set", f"MaxSubmitJobs={jobs}"]
        subprocess.run(argv, capture_output=True, check=True)
        wait_until(lambda: limits().submitted == (jobs if jobs > 0 else None), SweepDir(tmp_path))

    def of(patience: float, **settings):
        settings = {"options": {"nodelist": nodes[0]}, "submit_patience_s": patience} | settings
        return stand_in(tmp_path, profile("testbed", **settings), only=("prepare", "train", "sample"))

    allow(2)
    launch = of(0.3, begin="now+900")
    with pytest.raises(LimitReached, match=r"Job sample is not queued: .*[Ll]imit"):
        submit_graph(launch)
    now = states_of([launch])[0]
    assert {name: state.status for name, state in now.items()} == {
        "prepare": "waiting",
        "train": "waiting",
        "sample": "failed",
    }
    assert now["sample"].cause == "limit" and "Again in" in capsys.readouterr().err
    assert "2 jobs in the queue" in str(limits())
    allow(-1)
    cancel.cancel([launch])
    wait_for(launch, ended)
    submit_graph(of(0.3))
    wait_for(launch, lambda now: all(state.status == "complete" for state in now.values()))
