"""The long form: a 12-trial grid and a 20-trial search through random kills and a dead node; latents for all trials."""

import os
import subprocess
import time
from pathlib import Path
from random import Random

import pytest
from faults import kill_node
from launching import HERE
from sweeping import CALM, REAL, Killer, accounted, has_ended, starts_of, submitted, toy_value, wait_until

from pipeline.config.paths import latents_directory
from pipeline.runtime.files import read_lines
from slurm.sweep.report import ranked
from slurm.sweep.runs import Run, training_values
from slurm.sweep.settings import SweepDir
from slurm.sweep.study import TRIAL, open_study
from slurm.sweep.submit import arrays_of

MINUTES = 150  # for a sweep
LEAST_KILLED = 4  # processes, or a quiet machine would be done before enough has gone wrong
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
    a start on the dead node was lost. `often`: the probability of a kill every two seconds, after the first four."""
    killer, pause, dead = Killer(sweep, seed=seed, most=10), Random(seed), False

    def ended() -> bool:
        nonlocal dead
        if len(killer.killed) < LEAST_KILLED or pause.random() < often:
            killer.strike()
        under_way = [start for start in starts_of(sweep) if start["ended"] is None]
        if not dead and len(killer.killed) >= 3 and any(start["node"] == "node4" for start in under_way):
            dead = True
            kill_node("node4")
        time.sleep(2.0)
        return has_ended(sweep)

    wait_until(ended, sweep, seconds=60 * minutes)
    return killer.killed, dead


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
    overrides = (*(GRID if kind == "grid" else SEARCH), *ONE_A_NODE, *(REAL if program == "pipeline" else ()))
    sweep = submitted(tmp_path, kind, *overrides)
    killed, dead = disturbed(sweep, seed=len(kind), minutes=MINUTES, often=0.1 if program == "pipeline" else 1)
    found, settings = accounted(sweep), sweep.settings()
    assert len(killed) >= LEAST_KILLED and dead, (killed, dead)
    if kind == "search":
        told = open_study(sweep, settings).trials
        assert sorted(t.user_attrs[TRIAL] for t in told) == list(range(20))
        assert {t.user_attrs[TRIAL]: t.value for t in told} == {t.number: t.value for t in found}
    if program == "toy":
        expected = [toy_value(settings, t.params) for t in found]
    elif kind == "grid":
        peace = submitted(tmp_path, "peace", *overrides)
        wait_until(lambda: has_ended(peace), peace, seconds=60 * MINUTES)
        expected = [t.value for t in accounted(peace)]
    else:  # what a search tries depends on what has ended: its trials are compared with a grid of the same parameters
        rows = str([dict(t.params) for t in found]).replace("'", '"')
        peace = submitted(tmp_path, "peace", *ONE_A_NODE, *REAL, f"sweep.rows={rows}")
        wait_until(lambda: has_ended(peace), peace, seconds=60 * MINUTES)
        expected = [t.value for t in accounted(peace)]
    assert [t.value for t in found] == pytest.approx(expected, rel=1e-12)
    assert ranked(found, settings)[0].number == min(range(len(expected)), key=lambda n: expected[n])


LATENT = (
    "latents.experiment=glyphs16",
    'latents.overrides=["model=kl_autoencoder_tiny","model.condition=none","sample.sampler.guidance.scale=1",'
    '"train.global_batch=8","train.duration=20 steps"]',
    "latents.images_per_shard=64",
    "model.attention=[4]",
    "diffusion.sigma_data=1",
    "sample.sampler.clip=null",
    "evaluate.domain.max_images=1000",
    "train.global_batch=32",
)


def test_trials_of_one_and_of_two_ranks_share_an_autoencoder_and_its_latents_and_come_to_the_same(tmp_path):
    overrides = (*REAL, *LATENT, f"latents.autoencoder={tmp_path / 'runs' / 'autoencoder'}")
    overrides = (*overrides, "cluster=testbed", CALM, "cluster.train.tasks=1,2", "sweep.metric=fd-domain")
    sweep = submitted(tmp_path, "latents", *overrides)
    wait_until(lambda: has_ended(sweep), sweep)
    found = accounted(sweep)
    assert sorted(array.asks.tasks_per_node for array in arrays_of(sweep)) == [1, 2]  # an array for each
    runs = [Run(sweep, n, 0) for n in range(2)]
    (ledger,) = (sweep.path / "shared").glob("*/jobs/ledger.jsonl")
    jobs = [row["job"] for row in read_lines(ledger) if row["event"] == "submitted"]
    assert [jobs.count(j) for j in ("prepare", "autoencoder", "encode")] == [1, 1, 1], jobs
    assert len({latents_directory(run.launch().cfg) for run in runs}) == 1
    starts = [read_lines(run.launch().run.starts)[0] for run in runs]
    assert [start["world_size"] for start in starts] == [1, 2]
    losses = [training_values(run.launch(), "valid/loss") for run in runs]
    assert [images for images, _ in losses[0]] == [images for images, _ in losses[1]]
    assert [v for _, v in losses[0]] == pytest.approx([v for _, v in losses[1]], rel=1e-4)
    assert found[0].value == pytest.approx(found[1].value, rel=1e-2)
