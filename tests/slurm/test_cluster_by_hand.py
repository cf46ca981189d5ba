"""On a real Slurm: what people do with their own hands, and whether `status` keeps up with it."""

import dataclasses
import subprocess
from pathlib import Path

import pytest
from faults import begun, real_training
from launching import ended, kept_steps, logs, profile, slurm_cli, stand_in, wait_for

from slurm import cancel, ledger, plan
from slurm.ledger import states_of
from slurm.queue import NEVER, look
from slurm.submit import submit_graph

pytestmark = pytest.mark.cluster
CALM = {"exclude": "node2,node4"}  # where faults.py takes nodes away


@pytest.fixture(autouse=True)
def _on_the_cluster(cluster):
    """All of these need it."""


def scripts_of(launch, folder: Path) -> Path:
    """The scripts of a launch, written; the one that submits them."""
    return plan.write(launch, folder)[-1]


def submitted(script: Path) -> dict[str, str]:
    """Run submit.sh; ids by job."""
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def test_status_cancel_and_retry_know_what_was_submitted_by_hand(tmp_path):
    later = profile("testbed", options=CALM | {"begin": "now+900"}, sample={"parts": 2, "cpus": 1, "memory_gb": 1})
    launch = stand_in(tmp_path, later, only=("train", "sample"))
    submit = scripts_of(launch, tmp_path / "scripts")
    assert {s.status for s in states_of([launch])[0].values()} == {"not submitted"}
    ids = submitted(submit)
    shell = slurm_cli("status", str(launch.run.path))
    assert ids["train"] in shell.stdout and f"{ids['sample']}_[0-1]" in shell.stdout, shell.stdout
    assert {s.status for s in states_of([launch])[0].values()} == {"waiting"}
    assert len(cancel.cancel([launch])) == 2
    wait_for(launch, ended)
    now = states_of([launch])[0]
    assert {name: s.status for name, s in now.items()} == {"train": "cancelled", "sample": "cancelled"}
    submit_graph(stand_in(tmp_path, profile("testbed", options=CALM), only=("train", "sample")))
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))


def test_what_failed_by_hand_while_nobody_looked_is_explained(tmp_path):
    launch = stand_in(
        tmp_path, profile("testbed", options=CALM), only=("train", "sample"), options={"train": "--fail non_finite"}
    )
    ids = submitted(scripts_of(launch, tmp_path / "scripts"))
    wait_until_gone(list(ids.values()))
    now = states_of([launch])[0]
    assert {name: (s.status, s.cause) for name, s in now.items()} == {
        "train": ("failed", "non_finite"),
        "sample": ("blocked", "upstream"),
    }
    assert now["train"].ids == (ids["train"],) and "the loss was not finite" in now["train"].message


def test_a_script_finds_relative_paths_wherever_it_is_submitted(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    launch = stand_in(Path(), profile("testbed", options=CALM), only=("prepare",))
    assert not launch.cfg.data_dir.is_absolute()
    script = plan.write(launch, tmp_path / "scripts")[0]
    subprocess.run(["sbatch", "-W", script], cwd="/", check=True, capture_output=True)
    assert launch.complete()["prepare"]


def wait_until_gone(ids) -> None:
    """Until neither waits nor runs, and the accounting knows it."""
    subprocess.run(
        [
            "sbatch",
            "-W",
            "-p",
            "main",
            "-t",
            "1",
            "-o",
            "/dev/null",
            "-d",
            f"afterany:{':'.join(ids)}",
            "--wrap",
            "true",
        ],
        check=True,
        capture_output=True,
    )


def test_scripts_of_two_ranks_go_on_though_srun_ends_the_slower_one(tmp_path):
    launch = real_training(tmp_path, CALM, steps=150)
    (train,) = launch.jobs
    late = dataclasses.replace(train, argv=("lost_ranks", "late", str(launch.run.path)))
    launch = dataclasses.replace(launch, jobs=(late,))
    ids = submitted(scripts_of(launch, tmp_path / "scripts"))
    wait_for(launch, lambda _: begun(launch))
    subprocess.run(["scancel", "--signal=USR2", ids["train"]], check=True)  # what Slurm sends before the time limit
    states_of([launch])
    now = wait_for(launch, lambda now: now["train"].status in ("complete", "failed"))
    assert now["train"].status == "complete", now
    assert launch.run.latest_step() == 150 and len(launch.run.starts.read_text().splitlines()) == 2


@pytest.mark.parametrize("by_hand", [True, False])
def test_of_two_ranks_one_is_killed_and_the_other_ended_for_it(tmp_path, by_hand):
    cluster = profile("testbed", options=CALM, train={"tasks": 2})
    launch = stand_in(tmp_path, cluster, only=("train", "sample"), options={"train": "--fail lost"})
    if by_hand:  # both ranks are ended by a signal, and the larger one is the job's: SIGTERM
        wait_until_gone(submitted(scripts_of(launch, tmp_path / "scripts")).values())
        states_of([launch])
    else:
        submit_graph(launch)
    now = wait_for(launch, ended)
    assert (now["train"].status, now["train"].cause) == ("failed", "killed")
    assert "task 1: Killed" in now["train"].message and now["sample"].cause == "upstream"


def test_cancelled_by_hand_before_it_started_is_cancelled_and_what_waited_for_it_is_blocked(tmp_path):
    later = profile("testbed", options=CALM | {"begin": "now+900"})
    launch = stand_in(tmp_path, later, only=("train", "sample"))
    submit_graph(launch)
    ids = {name: s.ids[0] for name, s in ledger.submissions(launch.run).items()}
    subprocess.run(["scancel", ids["train"]], check=True)
    now = wait_for(launch, ended)
    assert {name: s.cause for name, s in now.items()} == {"train": "cancelled", "sample": "upstream"}
    accounted = look(list(ids.values()), [])  # what is left when the queue has forgotten them
    assert (accounted[ids["train"]].reason, accounted[ids["sample"]].reason) == ("0:0", NEVER)


def test_cancel_and_submit_again_at_once_starts_when_the_first_has_saved(tmp_path):
    cluster = profile("testbed", options=CALM)
    options = {"train": "--steps 80 --pace 0.1"}
    launch = stand_in(tmp_path, cluster, only=("train", "sample"), options=options)
    submit_graph(launch)
    wait_for(launch, lambda now: now["train"].status == "running" and (launch.run.path / "steps.txt").exists())
    (first,) = ledger.submissions(launch.run)["train"].ids
    cancel.cancel([launch])
    before = submit_graph(launch)
    assert before["train"].leaving or before["train"].status == "cancelled"  # it may have been quick
    (second,) = ledger.submissions(launch.run)["train"].ids
    assert second != first
    wait_for(launch, lambda now: all(s.status == "complete" for s in now.values()))
    assert kept_steps(launch) == list(range(1, 81))  # never two at once


@pytest.mark.parametrize(
    "settings", [{"requeue": False}, {"max_timeouts": 0, "train": {"minutes": 10}}], ids=["never", "not so often"]
)
def test_what_is_cut_and_may_not_go_on_says_so_and_goes_on_when_asked_to(tmp_path, settings):
    options = {"train": "--steps 40 --hold"}
    launch = stand_in(tmp_path, profile("testbed", options=CALM, **settings), only=("train",), options=options)
    submit_graph(launch)
    wait_for(launch, lambda _: begun(launch))
    subprocess.run(["scancel", "--signal=USR2", ledger.submissions(launch.run)["train"].ids[0]], check=True)
    now = wait_for(launch, ended)
    assert (now["train"].status, now["train"].cause, now["train"].starts) == ("failed", "time_limit", 1), now
    assert "slurm: train failed (time_limit, exit code 1): Job not requeued because" in logs(launch)
    submit_graph(launch)  # what `retry` does
    wait_for(launch, lambda now: now["train"].status == "complete")
    assert kept_steps(launch) == list(range(1, 41))
