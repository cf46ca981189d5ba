"""Latent diffusion of real photographs, by one graph: autoencoder, latents, model, samples, scores."""

import json
import tarfile
from pathlib import Path

import pytest
from test_end_to_end import graph_here, mudi

from pipeline.config.paths import latents_directory
from slurm.workflows import Launch

SMALL = [
    "model.condition=none",
    "data.image_size=16",
    "model.width=16",
    "model.attention=[4]",
    "model.head_channels=16",
    "latents.batch=16",
    "latents.images_per_shard=40",
    "train.duration=30 steps",
    "train.global_batch=16",
    "train.validate_every=30 steps",
    "train.preview_every=30 steps",
    "train.checkpoint_every=30 steps",
    "sample.count=32",
    "sample.sampler.steps=4",
    "evaluate.domain.max_images=400",
    "evaluate.kid_subset_size=20",
]
AUTOENCODER = [
    "train.duration=40 steps",
    "train.global_batch=16",
    "train.validate_every=40 steps",
    "train.preview_every=40 steps",
    "train.checkpoint_every=40 steps",
    "train.ema.half_life=100 images",
]


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Launch]:
    """Every job of the graph, with the command it would be queued with, one after the other in this process."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "flowers").mkdir()
    with tarfile.open(shared / "data" / "flowers102_64.tar") as archive:
        for member in archive.getmembers()[:160]:
            archive.extract(member, root / "flowers", filter="data")
    overrides = ["experiment=photos32_ldm_f4", "cluster=local", "name=tiny", f"data.source.path={root}/flowers"]
    overrides += [
        f"data_dir={root}/data",
        f"runs_dir={root}/runs",
        *SMALL,
        f"latents.overrides={json.dumps(AUTOENCODER)}",
    ]
    return root, graph_here(*overrides)


def test_one_graph_goes_from_photographs_to_scores(made):
    root, launch = made
    assert all(launch.complete().values()) and len(launch.jobs) >= 7
    (result,) = [json.loads(p.read_text()) for p in (root / "runs" / "tiny" / "results").glob("*.json")]
    assert result["metrics"]["fd-domain"] > 0
    receipt = json.loads((latents_directory(launch.cfg) / "receipt.json").read_text())
    its = result["samples"]["made_from"]["latents"]["autoencoder"]
    assert its["sha256"] == receipt["inputs"]["autoencoder"]["sha256"]
    samples = json.loads(next(root.glob("runs/tiny/samples/*/*/manifest.json")).read_text())
    assert (samples["count"], samples["shape"], samples["kind"]) == (32, [3, 16, 16], "images")


def test_its_jobs_do_nothing_when_called_again(made):
    root, launch = made
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.suffix in (".tar", ".safetensors")}
    for job in launch.jobs:
        if job.name in ("autoencoder", "encode", "train", "sample"):
            mudi(*job.argv)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.suffix in (".tar", ".safetensors")} == before
