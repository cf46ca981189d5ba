"""What sweeps on a cluster may also be: limited by GPU hours, several ranks a trial, on one autoencoder's latents."""

import pytest
from launching import slurm_words
from optuna.trial import TrialState
from sweeping import CALM, REAL, accounted, has_ended, said, submitted, toy_value, wait_until

from pipeline.config.paths import latents_directory
from pipeline.runtime.files import read_lines
from slurm.ledger import LEDGER
from slurm.sweep.batches import batches, held, total
from slurm.sweep.driver import trials_of
from slurm.sweep.runs import Run, training_values

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def test_gpu_hours_end_a_grid_and_more_of_them_go_on_with_it(tmp_path):
    words = ("train.optim.lr=1e-4,1e-3,1e-2,1e-1", "cluster=testbed", CALM, "sweep.at_once=2")
    asks = ("cluster.train.gpus=1", "cluster.sample.gpus=1", "cluster.evaluate.gpus=1")
    sweep = submitted(tmp_path, "budget", *words, *asks, "sweep.gpu_hours=1e-6")
    wait_until(lambda: has_ended(sweep), sweep)
    found = accounted(sweep, count=2)  # two may begin before anything is known of what a trial costs
    spent = total(held(sweep))
    assert spent.gpu_hours == pytest.approx(spent.hours) and spent.gpu_hours > 1e-6
    assert all(0 < t.user_attrs["gpu_hours"] < spent.gpu_hours for t in found)
    assert f"{spent.gpu_hours:.2f} of 1e-06 GPU hours" in slurm_words("sweep", "status", str(sweep.path)).stdout
    more = slurm_words("sweep", "extend", str(sweep.path), "sweep.gpu_hours=100")
    assert more.returncode == 0, more.stdout + more.stderr
    wait_until(lambda: has_ended(sweep), sweep)
    found, settings = accounted(sweep, count=4), sweep.settings()
    assert [t.value for t in found] == pytest.approx([toy_value(settings, t) for t in found])


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


@pytest.mark.full
def test_trials_of_one_and_of_two_ranks_share_an_autoencoder_and_its_latents_and_come_to_the_same(tmp_path):
    words = (*REAL, *LATENT, f"latents.autoencoder={tmp_path / 'runs' / 'autoencoder'}")
    words = (*words, "cluster=testbed", CALM, "cluster.train.tasks=1,2", "sweep.metric=fd-domain")
    sweep = submitted(tmp_path, "latents", *words)
    wait_until(lambda: has_ended(sweep), sweep)
    found = trials_of(sweep)
    assert [t.state for t in found] == [TrialState.COMPLETE] * 2, said(sweep)
    assert sorted(b.asks.tasks_per_node for b in batches(sweep)) == [1, 2]
    runs = [Run(sweep, n, 0) for n in range(2)]
    jobs = [row["job"] for run in runs for row in read_lines(run.records.jobs / LEDGER) if row["event"] == "submitted"]
    assert [jobs.count(j) for j in ("prepare", "autoencoder", "encode", "train")] == [1, 1, 1, 2], jobs
    assert len({latents_directory(run.launch().cfg) for run in runs}) == 1
    starts = [read_lines(run.records.starts)[0] for run in runs]
    assert [start["world_size"] for start in starts] == [1, 2]
    losses = [training_values(run.launch(), "valid/loss") for run in runs]
    assert [images for images, _ in losses[0]] == [images for images, _ in losses[1]]
    assert [v for _, v in losses[0]] == pytest.approx([v for _, v in losses[1]], rel=1e-4)
    assert found[0].value == pytest.approx(found[1].value, rel=1e-2)
