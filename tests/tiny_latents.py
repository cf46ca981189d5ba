"""An autoencoder of the tiny squares, fitted for a second, as a run directory; and experiments on its latents."""

from pathlib import Path
from typing import Any

import tiny
import torch

from data_prep import encode
from pipeline import checkpoint
from pipeline.config.load import validated
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.pictures import from_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.models.autoencoder import KLAutoencoder
from pipeline.models.build import build_network
from pipeline.runtime.files import write_json
from pipeline.runtime.run_dir import FINISHED, RunDir, create_run

AUTOENCODER = {
    "kind": "kl_autoencoder",
    "width": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "latent_channels": 3,
    "groups": 4,
    "attention": False,
}
DENOISER = {**tiny.UNET, "attention": [2]}


def autoencoder(cfg: Config, *, name: str = "squares_f2", steps: int = 0, seed: int = 0) -> RunDir:
    """A finished run of an autoencoder of the images of `cfg`, with `steps` steps of plain regression behind it."""
    its = validated(
        {**tiny.config(cfg.data_dir.parent, name=name, model=AUTOENCODER).model_dump(mode="json"), "seed": seed}
    )
    torch.manual_seed(seed)
    network = build_network(its.model, shape=(1, tiny.SIZE, tiny.SIZE))
    assert isinstance(network, KLAutoencoder)
    if steps:
        fit(network, cfg, steps=steps)
    return save(its, network)


def fit(network: KLAutoencoder, cfg: Config, *, steps: int) -> None:
    reader = Reader(open_shards(data_directory(cfg) / "shards" / "train"))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        images = from_uint8(reader.read(torch.randint(0, reader.count, (32,)).numpy()))
        noise = torch.randn(len(images), network.latent_channels, 4, 4)
        posterior = network.encode(images)
        reconstructed = network.decode(posterior.sample(noise))
        optimizer.zero_grad()
        ((reconstructed - images).square().mean() + 1e-4 * posterior.kl().mean()).backward()
        optimizer.step()


def save(cfg: Config, network: torch.nn.Module, *, step: int = 5) -> RunDir:
    """Weights as the last checkpoint of a finished run."""
    run = create_run(cfg)
    weights = network.state_dict()
    tensors = {"network.autoencoder": weights, "ema.autoencoder": weights}
    checkpoint.write(run.checkpoint(step), checkpoint.Snapshot(tensors, {"step": step}))
    write_json(run.checkpoints / FINISHED, {"step": step})
    return run


def config(
    root: Path, run: Path, *, name: str = "latent", latents: dict[str, Any] | None = None, **train: Any
) -> Config:
    """An experiment on the latents of a folder or run."""
    model = train.pop("model", DENOISER)
    plain = tiny.config(root, name=name, model={**tiny.UNET, "attention": []}).model_dump(mode="json")
    asked = {"autoencoder": str(run), "dtype": "fp32", "batch": 8, "images_per_shard": 12, **(latents or {})}
    return validated(
        {
            **plain,
            "model": model,
            "latents": asked,
            "diffusion": {"sigma_data": 1.0},
            "train": {**plain["train"], **train},
        }
    )


def prepared(root: Path, *, steps: int = 0, **settings: Any) -> Config:
    """Images, autoencoder, latents: ready to train."""
    plain = tiny.config(root)
    tiny.prepare(plain)
    cfg = config(root, autoencoder(plain, steps=steps).path, **settings)
    encode.run(cfg, workers=1)
    return cfg
