"""How jobs stand, told from what the queue says and what is on the disk, in moments that are hard to meet for real."""

import dataclasses
import os
import time

import pytest
from launching import profile, stand_in

from pipeline.runtime.files import append_line
from slurm import ledger
from slurm.failures import LOST_STEP, lost_rank, own_error
from slurm.ledger import SCRIPTS, note, states, states_of_all, strays, submissions
from slurm.payload import FAILURES
from slurm.plan import beyond, crowded
from slurm.queue import NEVER, Limits, Seen, minutes_of
from slurm.rank import ATTEMPTS, MAKES, fingerprint, no_progress, note_attempt
from slurm.status import explain


@pytest.fixture
def launch(tmp_path):
    """Training and sampling, the second after the first, submitted as 7 and 8."""
    made = stand_in(tmp_path, profile("testbed"), only=("train", "sample"))
    row = {"executor": "slurm", "born": [], "snapshot": ""}
    note(made.run, "submitted", job="train", ids=["7"], dependency=None, **row)
    note(made.run, "submitted", job="sample", ids=["8"], dependency="afterok:7", **row)
    return made


def statuses(launch, *seen: Seen) -> dict[str, tuple[str, str | None]]:
    """State and cause of every job."""
    found = states(launch.run, launch.complete(), {s.id: s for s in seen})
    return {name: (state.status, state.cause) for name, state in found.items()}


def test_what_ends_while_status_looks_is_complete(launch):
    """Slurm was asked when the job had ended, the disk had been looked at before that."""
    looks = iter([{"train": False, "sample": False}, {"train": True, "sample": False}])
    queue = [Seen("7", "COMPLETED"), Seen("8", "PENDING")]
    (found,) = states_of_all([(launch.run, lambda: next(looks))], [submissions(launch.run)], queue)
    assert [state.status for state in found.values()] == ["complete", "waiting"]


def test_what_is_submitted_while_status_looks_has_not_vanished(launch):
    known = submissions(launch.run)
    note(launch.run, "submitted", job="train", ids=["9"], executor="slurm", born=[], snapshot="")
    (found,) = states_of_all([(launch.run, launch.complete)], [known], [Seen("7", "RUNNING"), Seen("8", "PENDING")])
    assert [state.status for state in found.values()] == ["running", "waiting"]


def test_who_cancelled_what_had_yet_to_start_is_told_apart(launch):
    by_hand, by_slurm = Seen("7", "CANCELLED", "Priority"), Seen("8", "CANCELLED", NEVER)
    assert statuses(launch, by_hand, by_slurm) == {
        "train": ("cancelled", "cancelled"),
        "sample": ("blocked", "upstream"),
    }


def test_what_ended_well_for_other_settings_waits_for_what_was_submitted_since(launch):
    """Only the first job that failed has something to say; it is not the later ones' failure."""
    note(launch.run, "submitted", job="train", ids=["9"], executor="slurm", born=[], snapshot="")
    ended = Seen("8", "COMPLETED")
    assert statuses(launch, ended, Seen("9", "FAILED", "2:0"))["sample"] == ("blocked", "upstream")
    assert statuses(launch, ended, Seen("9", "RUNNING"))["sample"] == ("not submitted", None)
    # As after a longer training, of which samples are still to be made.
    longer = states(launch.run, {"train": True, "sample": False}, {"8": ended, "9": Seen("9", "COMPLETED")})
    assert (longer["train"].status, longer["sample"].status) == ("complete", "not submitted")
    note(launch.run, "submitted", job="sample", ids=["10"], executor="slurm", born=[], snapshot="")
    assert statuses(launch, Seen("10", "COMPLETED"), Seen("9", "COMPLETED"))["sample"] == ("failed", "error")


def test_a_run_that_was_trained_further_by_hand_has_not_failed(launch):
    """Its submission ended well, and what it made is not enough any more."""
    record, ended = launch.run.jobs / "train", {"7": Seen("7", "COMPLETED"), "8": Seen("8", "COMPLETED")}
    place = {"id": "7", "restart": 0, "rank": 0, "log": str(record / "7_0_log.out")}
    append_line(record / ATTEMPTS, place | {"event": "start", "time": 10.0})
    append_line(record / ATTEMPTS, place | {"event": "end", "code": 0, "time": 20.0})
    append_line(launch.run.starts, {"time": 11.0})
    lacking = {"train": False, "sample": False}
    assert states(launch.run, lacking, ended)["train"].cause == "error"  # as where its checkpoints were removed
    append_line(launch.run.starts, {"time": 30.0})
    now = states(launch.run, lacking, ended)
    assert [(s.status, s.cause) for s in now.values()] == [("not submitted", None)] * 2
    assert "trained further by hand, to step" in explain(launch, now["train"])


def test_what_slurm_has_forgotten_is_explained_by_the_job_before_it(launch):
    """As on a cluster without accounting, some minutes later."""
    place = {"id": "7", "restart": 0, "rank": 0, "time": time.time()}
    record = launch.run.jobs / "train"
    append_line(record / ATTEMPTS, place | {"event": "start", "log": str(record / "7_0_log.out")})
    append_line(record / FAILURES, place | {"class": "non_finite", "message": "the loss", "code": 76})
    append_line(record / ATTEMPTS, place | {"event": "end", "code": 76})
    assert statuses(launch) == {"train": ("failed", "non_finite"), "sample": ("blocked", "upstream")}


def test_what_was_cancelled_and_still_saves_says_so(launch):
    note(launch.run, "cancelled", job="train", ids=["7"])
    found = states(launch.run, launch.complete(), {"7": Seen("7", "RUNNING", nodes="n1"), "8": Seen("8", "PENDING")})
    assert found["train"].leaving and found["train"].active and not found["sample"].leaving
    assert "cancelled: it saves and ends" in explain(launch, found["train"])


def test_of_jobs_that_somebody_submitted_twice_one_is_taken_the_one_that_runs(launch):
    comment = f"mudi {launch.key('sample')} {launch.run.jobs / 'sample'}"
    queue = [
        Seen(i, state, comment=comment) for i, state in (("20_0", "RUNNING"), ("20_1", "PENDING"), ("21_0", "PENDING"))
    ]
    (stray,) = strays(launch, queue)
    assert (stray.job, stray.ids) == ("sample", ("20_0", "20_1"))
    assert not strays(launch, [Seen("8", "RUNNING", comment=comment)])


def test_a_log_tells_of_scripts_that_were_submitted_and_have_ended(launch):
    record = launch.run.jobs / "sample"
    record.mkdir(parents=True)
    for name in (
        "8_0_log.out",
        "30_0_log.out",
        "31_0_0_log.out",
        "31_10_0_log.out",
        "31_2_0_log.out",
        "notes_0_log.out",
    ):
        (record / name).touch()
    assert not strays(launch, [])  # without scripts, logs are the launcher's own
    note(launch.run, SCRIPTS, overrides=[], cwd="/")
    (stray,) = strays(launch, [])
    assert stray.ids == ("31_0", "31_2", "31_10")
    assert ledger.ids_of(launch.run) == {"7", "8"}


@pytest.mark.parametrize(
    ("first", "cause"),
    [("Killed", "killed"), ("Segmentation fault (core dumped)", "error"), ("Exited with exit code 1", None)],
)
def test_the_first_rank_that_a_start_lost_explains_the_others(tmp_path, first, cause):
    log = tmp_path / "log"
    before = "submitit INFO - Starting with JobEnvironment(1)\nsrun: error: node1: task 0: Killed\n"
    now = f"submitit INFO - Starting with JobEnvironment(1)\nsrun: error: node1: task 1: {first}\n"
    log.write_text(before + now + "srun: error: node1: task 0: Terminated\n")
    found = lost_rank(log)
    assert (found and found[0]) == cause
    log.write_text(before + now + f"{LOST_STEP} 0 1\nslurm: train failed\n")
    assert lost_rank(log) == ("killed", f"{LOST_STEP} 0 1")


def test_a_rank_s_own_error_is_told_and_not_sruns_last_line(tmp_path):
    """As a person's scripts leave it: logs alone. Rank 1 failed first, rank 0 lost its partner, then srun said so."""
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    f()\n'
    (tmp_path / "7_1_log.out").write_text(f"step 3\n{trace}ValueError: images differ in size\n")
    end = "srun: error: node2: task 1: Exited with exit code 1\nslurm: train failed (error, exit code 1): x\n"
    (tmp_path / "7_0_log.out").write_text(f"step 3\n{trace}RuntimeError: Connection closed by peer\n{end}")
    os.utime(tmp_path / "7_1_log.out", (1, 1))
    assert own_error(tmp_path, "7") == "ValueError: images differ in size"
    (tmp_path / "7_1_log.out").write_text("error: train.optim.lr: found -1\nsrun: error: node1: task 0: Killed\n")
    (tmp_path / "7_0_log.out").unlink()
    assert own_error(tmp_path, "7") == "error: train.optim.lr: found -1"
    assert own_error(tmp_path, "8") == ""


@pytest.mark.parametrize(
    ("seen", "status", "cause", "active"),
    [
        (Seen("7", "PENDING", "JobHeldUser"), "held", "held_by_user", True),
        (Seen("7", "PENDING", "JobHeldAdmin"), "held", "held", False),
        (Seen("7", "PENDING", "QOSMaxWallDurationPerJobLimit"), "held", "refused", False),
        (Seen("7", "PENDING", "AssocMaxJobsLimit"), "waiting", None, True),
        (Seen("7", "SUSPENDED", "None", "n1"), "suspended", None, True),
    ],
)
def test_what_waits_for_good_is_told_apart_from_what_will_start(launch, seen, status, cause, active):
    state = states(launch.run, launch.complete(), {"7": seen, "8": Seen("8", "PENDING", "Dependency")})["train"]
    assert (state.status, state.cause, state.active) == (status, cause, active)
    assert state.stuck == (status == "held")


def test_starts_that_save_nothing_are_counted_in_a_row(tmp_path, monkeypatch):
    run, record = tmp_path / "run", tmp_path / "job"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    monkeypatch.setenv(MAKES, str(run))

    def start(restart: int, **cut: bool) -> str | None:
        note_attempt(record, "start", id="7", restart=restart, rank=0, made=fingerprint())
        (run / f"log-{restart}").touch()  # not progress
        told = no_progress(record, "7")
        note_attempt(record, "requeued", id="7", restart=restart, rank=0, **cut)
        return told

    assert start(0) is None and start(1) is None
    (run / "checkpoints" / "step-1").touch()
    assert start(2) is None and start(3) is None
    assert start(4) == "3 starts, no step: more minutes. Nothing that a start made was saved before it was cut"
    assert start(5, preempted=True) is not None and start(6) is None  # a start that lost its node says nothing
    monkeypatch.delenv(MAKES)
    assert no_progress(record, "7") is None


def test_limits_are_compared_with_what_jobs_ask_for(launch):
    site = Limits(array_size=2, submitted=1, longest={"main": 30, "": 30})
    parts = dataclasses.replace(launch.jobs[1], resources=launch.jobs[1].resources.model_copy(update={"parts": 3}))
    problems = "\n".join(beyond(launch.cfg, [launch.jobs[0], parts], site))
    assert "cluster.train.minutes: found 60, expected at most 30" in problems
    assert "cluster.sample.parts: found 3, expected at most 2 (MaxArraySize)" in problems
    assert "4 jobs, but only 1 at a time" in crowded([launch.jobs[0], parts], site)
    assert not list(beyond(launch.cfg, launch.jobs, Limits())) and not crowded(launch.jobs, Limits())
    times = {"UNLIMITED": None, "1-00:00:00": 1440, "02:30:00": 150, "45:00": 45, "2-12": 3600}
    assert {text: minutes_of(text) for text in times} == times
