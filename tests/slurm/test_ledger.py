"""How jobs stand, told from what the queue says and what is on the disk, in moments that are hard to meet for real."""

import time

import pytest
from launching import profile, stand_in

from pipeline.runtime.files import append_line
from slurm import ledger
from slurm.failures import LOST_STEP, lost_rank
from slurm.ledger import SCRIPTS, note, states, states_of_all, strays, submissions
from slurm.payload import FAILURES
from slurm.queue import NEVER, Seen
from slurm.rank import ATTEMPTS
from slurm.status import explain


@pytest.fixture
def launch(tmp_path):
    """Training and sampling, the second after the first, submitted as 7 and 8."""
    made = stand_in(tmp_path, profile("testbed"), only=("train", "sample"))
    row = {"executor": "slurm", "born": [], "snapshot": ""}
    note(made.run, "submitted", job="train", ids=["7"], dependency=None, **row)
    note(made.run, "submitted", job="sample", ids=["8"], dependency="afterok:7", **row)
    return made


def words(launch, *seen: Seen) -> dict[str, tuple[str, str | None]]:
    """State and cause of every job."""
    found = states(launch.run, launch.complete(), {s.id: s for s in seen})
    return {name: (state.word, state.cause) for name, state in found.items()}


def test_what_ends_while_status_looks_is_complete(launch):
    """Slurm was asked when the job had ended, the disk had been looked at before that."""
    looks = iter([{"train": False, "sample": False}, {"train": True, "sample": False}])
    queue = [Seen("7", "COMPLETED"), Seen("8", "PENDING")]
    (found,) = states_of_all([(launch.run, lambda: next(looks))], [submissions(launch.run)], queue)
    assert [state.word for state in found.values()] == ["complete", "waiting"]


def test_what_is_submitted_while_status_looks_has_not_vanished(launch):
    known = submissions(launch.run)
    note(launch.run, "submitted", job="train", ids=["9"], executor="slurm", born=[], snapshot="")
    (found,) = states_of_all([(launch.run, launch.complete)], [known], [Seen("7", "RUNNING"), Seen("8", "PENDING")])
    assert [state.word for state in found.values()] == ["running", "waiting"]


def test_who_cancelled_what_had_yet_to_start_is_told_apart(launch):
    by_hand, by_slurm = Seen("7", "CANCELLED", "Priority"), Seen("8", "CANCELLED", NEVER)
    assert words(launch, by_hand, by_slurm) == {"train": ("cancelled", "cancelled"), "sample": ("blocked", "upstream")}


def test_what_slurm_has_forgotten_is_explained_by_the_job_before_it(launch):
    """As on a cluster without accounting, some minutes later."""
    place = {"id": "7", "restart": 0, "rank": 0, "time": time.time()}
    record = launch.run.jobs / "train"
    append_line(record / ATTEMPTS, place | {"event": "start", "log": str(record / "7_0_log.out")})
    append_line(record / FAILURES, place | {"class": "non_finite", "message": "the loss", "code": 76})
    append_line(record / ATTEMPTS, place | {"event": "end", "code": 76})
    assert words(launch) == {"train": ("failed", "non_finite"), "sample": ("blocked", "upstream")}


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
    note(launch.run, SCRIPTS, words=[], cwd="/")
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
