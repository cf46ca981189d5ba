"""Following a log: from one submission of a job to its next, until nothing of it is under way."""

import subprocess
import threading
import time

import pytest
from launching import profile, stand_in

from slurm import status
from slurm.__main__ import main
from slurm.ledger import note
from slurm.rank import process_born


def test_following_goes_over_to_the_log_of_the_next_submission(tmp_path, capfd, monkeypatch):
    """A job failed, was submitted again and waits: its old log is all there is, and then there is another."""
    monkeypatch.setattr(status, "ASK_SECONDS", 0.2)
    launch = stand_in(tmp_path, profile("local"), only=("train",))
    record = launch.run.jobs / "train"
    record.mkdir(parents=True)
    (record / "1_0_log.out").write_text("earlier\nthe first try failed\n")
    job = subprocess.Popen(["sleep", "3600"])
    row = {"executor": "local", "snapshot": "", "ids": [str(job.pid)], "born": [process_born(job.pid)]}
    note(launch.run, "submitted", job="train", **row)
    follower = threading.Thread(target=status.show_log, args=(launch, "train"), kwargs={"follow": True, "lines": 1})
    follower.start()
    said = ""
    try:
        for expected, add in (("the first try failed\n", "the second try\n"), ("the second try\n", "its last words\n")):
            said += seen(capfd, expected)
            with (record / f"{job.pid}_0_log.out").open("a") as log:
                log.write(add)
    finally:
        job.kill()
        job.wait()
        follower.join()
    assert said + capfd.readouterr().out == "the first try failed\nthe second try\nits last words\n"


def seen(capfd, text: str) -> str:
    """What was printed until a text came."""
    said, end = "", time.monotonic() + 600
    while text not in said:
        assert time.monotonic() < end, said
        said += capfd.readouterr().out
        time.sleep(0.05)
    return said


def test_what_the_launcher_says_of_itself_is_left_out_unless_it_is_a_trouble(tmp_path, capfd):
    launch = stand_in(tmp_path, profile("local"), only=("train",))
    record = launch.run.jobs / "train"
    record.mkdir(parents=True)
    told = ["submitit INFO (2026-01-01) - Starting with JobEnvironment(job_id=1)", "step 1", "step 2"]
    told += ["submitit WARNING (2026-01-01) - Caught signal SIGUSR2", "submitit ERROR (2026-01-01) - it raised"]
    told += ["submitit INFO (2026-01-01) - Job completed"]
    (record / "1_0_log.out").write_text("\n".join(told) + "\n")
    status.show_log(launch, "train", follow=False, lines=3)
    assert capfd.readouterr().out.splitlines() == told[2:5]


@pytest.mark.parametrize("argv", [["logs", "runs/x", "-n", "many"], ["preflight", "cluster=local", "--wait", "-1"]])
def test_a_number_that_is_none_is_said(argv, capsys):
    assert main(argv) == 2 and "expected a number" in capsys.readouterr().err
