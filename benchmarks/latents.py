"""Training on stored latents against encoding the images at every step: images a second, rounds alternating.

Both train the same denoiser on the same images with the same draws; one reads posterior means and deviations, the other
reads images (raw, so that nothing is decoded) and asks the autoencoder's encoder first.

The ratio is 1 + the encoder's forward pass / the denoiser's step, so it says nothing without both networks. At 64 px,
in processor time of one of two busy cores, batch 8 (4 for the last):

    kl_autoencoder_f4, 1.2 M U-Net         112.2 against 16.4 img/s   6.9x   celeba64's first stage, a denoiser for CPUs
    kl_autoencoder_small_f4, 1.2 M U-Net   108.9 against 64.2 img/s   1.7x   a first stage for CPUs: little is saved
    celeba64_ldm_f4 (31 M denoiser)          5.7 against  4.4 img/s   1.3x   a GPU's pair: the denoiser is what costs

The goal of 2x is one of the first pair, which is the default: the encoder that is worth having, and a denoiser that a
CPU can train.

    python benchmarks/latents.py                                           # 64 px, f4, a 1.2 M U-Net, one core
    python benchmarks/latents.py --experiment celeba64_ldm_f4 --device cuda --batch 128
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from data_prep import encode
from pipeline.config.load import config_from, validated
from pipeline.config.paths import data_directory, protocol_hash, training_shards
from pipeline.config.schema import Config
from pipeline.data.batches import Batch, LoadedBatch, batches
from pipeline.data.images import encode as encode_image
from pipeline.data.reader import Reader
from pipeline.data.shards import Layout, Sample, finish, open_shards, shard_name, write_shard
from pipeline.models.build import build_network, count_parameters
from pipeline.models.pretrained import load_autoencoder
from pipeline.objectives.build import build_objective
from pipeline.objectives.objective import Objective
from pipeline.runtime.files import write_json

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "model"
TARGET = 2.0


def main() -> None:
    """Print images per second of both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="unet_photos32", help="of configs/model: the denoiser")
    parser.add_argument("--autoencoder", default="kl_autoencoder_f4", help="of configs/model")
    parser.add_argument("--experiment", help="one on latents, whose two networks are taken instead")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1, help="of each of the two in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options)


def compare(root: Path, options: argparse.Namespace) -> None:
    """Prepare noise as images, encode it once, and time both ways."""
    model, autoencoder = of_experiment(options) if options.experiment else of_models(options)
    cfg = config(root, model, size=options.size, batch=options.batch)
    prepare(cfg, options.images)
    save(cfg, autoencoder)
    start = time.perf_counter()
    encode.run(cfg)
    encoding = time.perf_counter() - start
    torch.manual_seed(0)
    objective = build_objective(cfg, open_shards(training_shards(cfg) / "train").manifest)
    network = objective.networks["denoiser"].to(options.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    ways = {
        "cached": cached(cfg, objective, device=options.device),
        "encoding": encoded(cfg, objective, device=options.device),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, data in ways.items():
            seconds = timed(lambda d=data: step(objective, optimizer, next(d)), options)  # type: ignore[misc]
            if number:  # the first round chooses algorithms
                times[name].append(seconds)
    speed = {name: options.batch * options.steps / statistics.median(values) for name, values in times.items()}
    ratios = [b / a for a, b in zip(times["cached"], times["encoding"], strict=True)]
    print(
        f"{options.size} px, {options.experiment or f'{options.autoencoder}, {options.model}'}, "
        f"denoiser of {count_parameters(network) / 1e6:.2f} M, batch "
        f"{options.batch}, {options.device}, {torch.get_num_threads()} threads:\n"
        f"cached latents {speed['cached']:.1f} img/s, encoding at every step {speed['encoding']:.1f} img/s, "
        f"ratio {statistics.median(ratios):.2f}x (rounds {min(ratios):.2f} to {max(ratios):.2f}; target {TARGET:g}x)\n"
        f"encoding once: {options.images / encoding:.1f} img/s with every core and loading included"
    )


def of_models(options: argparse.Namespace) -> tuple[dict[str, object], dict[str, object]]:
    """Settings of the two named networks, the denoiser with as many levels as the smallest latents have."""
    model, autoencoder = (
        yaml.safe_load((CONFIGS / f"{n}.yaml").read_text()) for n in (options.model, options.autoencoder)
    )
    if "attention" in model and model["kind"] == "unet":
        model |= {"attention": [4], "multipliers": model["multipliers"][:3]}
    return model, autoencoder


def of_experiment(options: argparse.Namespace) -> tuple[dict[str, object], dict[str, object]]:
    """Settings of both networks of an experiment on latents."""
    cfg = config_from([f"experiment={options.experiment}", f"data.image_size={options.size}"])
    assert cfg.latents is not None and cfg.latents.experiment is not None
    first = config_from([f"experiment={cfg.latents.experiment}", f"data.image_size={options.size}"])
    return cfg.model.model_dump(mode="json"), first.model.model_dump(mode="json")


def config(root: Path, model: dict[str, object], *, size: int, batch: int) -> Config:
    """An unconditional experiment on latents, in a folder."""
    return validated(
        {
            "name": "benchmark",
            "data_dir": str(root / "data"),
            "data": {"name": "noise", "source": {"kind": "glyphs"}, "image_size": size, "encoding": "raw"},
            "model": {**model, "condition": "none"},
            "latents": {"autoencoder": str(root / "autoencoder")},
            "diffusion": {"sigma_data": 1.0},
            "train": {"global_batch": batch, "flip": False},
            "cluster": {"name": "local"},
        }
    )


def prepare(cfg: Config, count: int) -> None:
    """Raw shards of noise: what is in an image changes no time."""
    rng, size = np.random.default_rng(0), cfg.data.image_size
    directory, layout = data_directory(cfg) / "shards" / "train", Layout("raw", (3, size, size))
    samples = []
    for k in range(count):
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        samples.append(Sample(f"{k:06d}", encode_image(pixels, "raw"), "npy", pixels=pixels))
    record = write_shard(directory / shard_name(0), samples, layout)
    protocol = {"name": cfg.data.name, "hash": protocol_hash(cfg.data)}
    finish(directory, [record], layout, classes=[], protocol=protocol, split="train")


def save(cfg: Config, settings: dict[str, object]) -> None:
    """An autoencoder with random weights, as a folder of ours."""
    from pydantic import TypeAdapter

    from pipeline.config.schema_model import ModelConfig

    shape = (3, cfg.data.image_size, cfg.data.image_size)
    torch.manual_seed(0)
    network = build_network(TypeAdapter(ModelConfig).validate_python(settings), shape=shape)
    assert cfg.latents is not None
    folder = cfg.latents.autoencoder
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors"
    )
    write_json(folder / "settings.json", {"model": settings, "shape": shape})


def batches_of(cfg: Config, path: Path, objective: Objective) -> Iterator[list[LoadedBatch]]:
    """Training batches of a directory."""
    train = cfg.train
    return batches(
        Reader(open_shards(path)),
        seed=cfg.seed,
        start_step=0,
        global_batch=train.global_batch,
        rank=0,
        world_size=1,
        micro_batch=train.global_batch,
        draws=objective.draws,
    )


def cached(cfg: Config, objective: Objective, *, device: str) -> Iterator[Batch]:
    """What training reads."""
    for (batch,) in batches_of(cfg, training_shards(cfg) / "train", objective):
        yield batch.to(device)


def encoded(cfg: Config, objective: Objective, *, device: str) -> Iterator[Batch]:
    """The same, made from images when it is asked for."""
    assert cfg.latents is not None
    network = load_autoencoder(cfg.latents.autoencoder).to(device)

    @torch.no_grad()
    def both(images: Tensor) -> Tensor:
        posterior = network.encode(images)
        return torch.cat([posterior.mean, posterior.std], dim=1)

    for (loaded,) in batches_of(cfg, data_directory(cfg) / "shards" / "train", objective):
        batch = loaded.to(device)
        yield replace(batch, images=both(batch.images))


def step(objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One optimiser step."""
    loss = objective.loss("denoiser", objective.networks, batch)["loss"].mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def timed(work: Callable[[], None], options: argparse.Namespace) -> float:
    """Seconds of some steps: of this process's processor on a CPU, which others do not disturb, of the clock else."""
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    start = clock()
    for _ in range(options.steps):
        work()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
