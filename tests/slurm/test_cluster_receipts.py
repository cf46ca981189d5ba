"""On a real Slurm: whether a job's command ended well is told by the ranks themselves, not by srun's exit code."""

import os
import signal
import time
from pathlib import Path

import pytest
from faults import begun
from launching import LIMIT, kept_steps, logs, profile, stand_in, wait_for
from test_cluster_by_hand import CALM, scripts_of, submitted

from slurm import ledger
from slurm.ledger import states_of
from slurm.submit import submit_graph

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def kill_manager_of_step(job: str) -> None:
    """What an administrator or the kernel may do: the job's ranks live on, and nobody tells srun how they end."""
    name = f"slurmstepd: [{job}.0]"
    (manager,) = [p for p in Path("/proc").glob("[0-9]*") if read(p / "cmdline").startswith(name)]
    os.kill(int(manager.name), signal.SIGKILL)


def read(path: Path) -> str:
    """A file of /proc; "" where the process has gone."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def ranks_of(run: Path) -> list[Path]:
    """The processes that have this run among their arguments."""
    return [p for p in Path("/proc").glob("[0-9]*") if "SLURM_PROCID=" in read(p / "environ") and on(p, run)]


def wait_until_ended(run: Path) -> None:
    """Until no rank of a job of this run lives."""
    end = time.monotonic() + LIMIT
    while ranks_of(run):
        assert time.monotonic() < end, "the rank lives on without its step"
        time.sleep(0.1)


def on(process: Path, run: Path) -> bool:
    """Whether a process is a rank of a job of this run: submitit names its record, a script the run."""
    return str(run) in read(process / "cmdline") and read(process / "comm").startswith("python")


def queue(launch, folder: Path, *, by_hand: bool) -> str:
    """Submit a launch, or the scripts that are written for it; the id of its training."""
    if by_hand:
        return submitted(scripts_of(launch, folder))["train"]
    submit_graph(launch)
    return ledger.submissions(launch.run)["train"].ids[0]


def wait_for_end(launch) -> dict:
    """The states of all jobs when nothing is under way; what was submitted by hand is found in the queue."""
    states_of([launch])
    return wait_for(launch, lambda now: not any(s.active for s in now.values()))


def test_a_step_that_vanished_fails_its_job_ends_its_ranks_and_starts_nothing_after_it(tmp_path):
    cluster, options = profile("testbed", options=CALM), {"train": "--steps 9000 --pace 0.1"}
    made = {  # side by side: srun takes a minute to see it
        by_hand: stand_in(tmp_path / str(by_hand), cluster, only=("train", "sample"), options=options)
        for by_hand in (False, True)
    }
    jobs = {by_hand: queue(launch, tmp_path / "scripts", by_hand=by_hand) for by_hand, launch in made.items()}
    for by_hand, launch in made.items():
        wait_for(launch, lambda _, launch=launch: begun(launch))
        assert ranks_of(launch.run.path)
        kill_manager_of_step(jobs[by_hand])
    for launch in made.values():
        wait_until_ended(launch.run.path)
        steps = kept_steps(launch)
        now = wait_for_end(launch)
        assert (now["train"].status, now["train"].cause) == ("failed", "killed"), (now, logs(launch))
        assert (now["sample"].status, now["sample"].cause) == ("blocked", "upstream")
        assert kept_steps(launch) == steps


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_rank_that_aborts_when_its_command_has_ended_well_stops_nothing(tmp_path, by_hand):
    cluster = profile("testbed", options=CALM, train={"tasks": 2})
    launch = stand_in(tmp_path, cluster, only=("train", "sample"), options={"train": "--abort"})
    queue(launch, tmp_path / "scripts", by_hand=by_hand)
    now = wait_for_end(launch)
    assert {name: s.status for name, s in now.items()} == {"train": "complete", "sample": "complete"}, logs(launch)
