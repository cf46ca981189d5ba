"""The long form: a 12-trial grid and a 20-trial search through random kills and a dead node, and without them.

With the toy the undisturbed search is simulated; with real tiny models it is the same sweep run again in peace.
"""

import os
import subprocess
import time
from pathlib import Path
from random import Random

import pytest
from faults import kill_node
from launching import HERE
from sweeping import REAL, Killer, accounted, expected_search, has_ended, submitted, toy_value, wait_until

from pipeline.runtime.files import read_lines
from slurm.sweep.folder import SweepDir

MINUTES = 150  # for a sweep
pytestmark = [
    pytest.mark.full,
    pytest.mark.cluster,
    pytest.mark.timeout(130 * MINUTES),
    pytest.mark.usefixtures("cluster"),
]
GRID = ("train.optim.lr=1e-4,1e-3,1e-2,1e-1", "train.global_batch=32,64,128")
SEARCH = (
    "train.optim.lr=tag(log,interval(1e-5,1e-1))",
    "train.global_batch=32,64,128",
    "sweep.strategy.startup=6",
    "sweep.trials=20",
)
ONE_A_NODE = ("cluster=testbed", "cluster.train.memory_gb=10", "sweep.at_once=4")  # so that the dead node has a trial


def disturbed(sweep: SweepDir, *, seed: int, minutes: float, often: float) -> tuple[list[str], bool]:
    """Wait for the end while processes are killed and node4 dies with a trial on it; what was killed, and whether
    a start on the dead node was lost. `often`: the probability of a kill every two seconds."""
    killer, pause, dead = Killer(sweep, seed=seed, most=10), Random(seed), False

    def ended() -> bool:
        nonlocal dead
        if pause.random() < often:
            killer.strike()
        if not dead and len(killer.killed) >= 3 and any(s["node"] == "node4" for s in under_way(sweep)):
            dead = True
            kill_node("node4")
        time.sleep(2.0)
        return has_ended(sweep)

    wait_until(ended, sweep, seconds=60 * minutes)
    return killer.killed, dead


def under_way(sweep: SweepDir) -> list[dict]:
    rows = [row for path in sweep.jobs.glob("batch-*/attempts.jsonl") for row in read_lines(path)]
    over = {(r["id"], r["restart"]) for r in rows if r["event"] != "start"}
    return [r for r in rows if r["event"] == "start" and (r["id"], r["restart"]) not in over]


@pytest.fixture
def _node_comes_back(cluster):
    """The dead node is for the next test to use."""
    yield
    env = os.environ | {"MUDI_CLUSTER_DIR": str(cluster)}
    subprocess.run([HERE.parent / "cluster" / "up"], env=env, check=True, timeout=300, capture_output=True)
    subprocess.run(["scontrol", "update", "NodeName=node4", "State=RESUME"], check=False, capture_output=True)


@pytest.mark.parametrize("program", ["toy", "pipeline"])
@pytest.mark.parametrize("kind", ["grid", "search"])
@pytest.mark.usefixtures("_node_comes_back")
def test_every_trial_is_there_once_and_the_best_is_the_same(tmp_path: Path, program, kind):
    words = (*(GRID if kind == "grid" else SEARCH), *ONE_A_NODE, *(REAL if program == "pipeline" else ()))
    sweep = submitted(tmp_path, kind, *words)
    killed, dead = disturbed(sweep, seed=len(kind), minutes=MINUTES, often=0.1 if program == "pipeline" else 1)
    found = accounted(sweep, count=12 if kind == "grid" else 20)
    assert len(killed) >= 4 and dead, (killed, dead)
    if program == "pipeline":
        peace = submitted(tmp_path, "peace", *words)
        wait_until(lambda: has_ended(peace), peace, seconds=60 * MINUTES)
        expected = [(t.params, t.value) for t in accounted(peace, count=len(found))]
    elif kind == "search":
        settings = sweep.settings()
        simulated = expected_search(settings, lambda t: toy_value(settings, t), path=tmp_path / "simulated")
        expected = [(t.params, t.value) for t in simulated]
    else:
        expected = [(t.params, toy_value(sweep.settings(), t)) for t in found]
    assert [t.params for t in found] == [params for params, _ in expected]
    assert [t.value for t in found] == pytest.approx([value for _, value in expected], rel=1e-12)
    assert min(found, key=lambda t: t.value).number == min(range(len(expected)), key=lambda n: expected[n][1])
