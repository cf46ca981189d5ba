"""A data set and an experiment small enough to train in a second, and processes that really run and really die."""

import ctypes
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.load import validated
from pipeline.config.paths import data_directory, protocol_hash
from pipeline.config.schema import Config
from pipeline.data.images import encode
from pipeline.data.shards import Layout, Sample, finish, shard_name, write_shard
from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import COMMIT, RunDir, create_run

Change = Callable[[Config, int], Config]
SIZE, CLASSES = 8, 3
STANDSTILL_SECONDS = 900  # a busy machine may take any time to the end, but not this long between two lines
ATTRIBUTES = ("Large", "Left", "Top")


UNET = {
    "kind": "unet",
    "width": 8,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [4],
    "head_channels": 8,
    "groups": 4,
}
GAME = {  # two networks, and a layer that mixes the images of a group
    "kind": "stylegan",
    "condition": "class",
    "width": 8,
    "width_max": 16,
    "latent": 8,
    "mapping_layers": 1,
    "deviation_group": 2,
}

EVERYTHING = {  # that a game may have; the penalties at some steps alone
    "penalty_every": 2,
    "path_length": 2.0,
    "path_every": 4,
    "style_mixing": 0.9,
    "ada": {"enabled": True, "start": 0.3, "every": 2, "kimg": 0.1},
}

AUTOENCODER = {"kind": "kl_autoencoder", "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
WITH_DISCRIMINATOR = {  # joins in the middle of a step, and reconstructs degraded images
    "adversarial_weight": 0.5,
    "adversarial_start": "20 images",
    "discriminator": {"layers": 1, "width": 8},
    "degradation": {"noise": 0.3, "blur": 0.5, "mask": 0.3, "share": 0.5},
}
VAE = {"kind": "vae", "condition": "class", "width": 8, "multipliers": [1, 2], "latent": 6, "groups": 4}


def config(root: Path, *, name: str = "tiny", model: dict[str, Any] = UNET, **train: Any) -> Config:
    """An experiment on 8 px images in `root`; `train` overrides single settings of training."""
    source: dict[str, Any] = {"kind": "glyphs"}
    if model.get("condition") == "attributes":
        source = {"kind": "folder", "path": str(root), "attribute_columns": ATTRIBUTES}
    return validated(
        {
            "name": name,
            "seed": 7,
            "data_dir": str(root / "data"),
            "runs_dir": str(root / "runs"),
            "data": {
                "name": "squares",
                "source": source,
                "image_size": SIZE,
                "channels": 1,
                "encoding": "raw",
            },
            "model": model,
            "adversarial": EVERYTHING if model["kind"] == "stylegan" else {},
            "autoencoder": WITH_DISCRIMINATOR if model["kind"] == "kl_autoencoder" else {},
            "train": {
                "duration": "12 steps",
                "global_batch": 8,
                "optim": {"lr": 3e-3, "warmup": "4 steps"},
                "ema": {"half_life": "1 kimg", "power_widths": [0.1]},
                "log_every": "2 steps",
                "checkpoint_every": "3 steps",
                **train,
            },
            "sample": {"count": 24, "batch": 8, "images_per_shard": 8, "sampler": {"steps": 3}},
            "cluster": {"name": "local"},
        }
    )


def revalidated(cfg: Config, **changes: Any) -> Config:
    """The config with settings changed: values, or mappings of single settings of a group."""
    values = cfg.model_dump(mode="json")
    for name, change in changes.items():
        values[name] = {**values[name], **change} if isinstance(change, dict) else change
    return validated(values)


def prepare(cfg: Config, *, count: int = 60, attributes: bool = False) -> None:
    """Write its data: bright squares whose size is the class, at places that differ; with ATTRIBUTES where asked."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("valid", 15)):
        directory = data_directory(cfg) / "shards" / split
        layout = Layout(encoding="raw", shape=(1, SIZE, SIZE))
        samples = []
        for k in range(images):
            label = k % CLASSES
            pixels = np.zeros((SIZE, SIZE, 1), np.uint8)
            top, left = rng.integers(0, SIZE - 2 - label, size=2)
            pixels[top : top + 2 + label, left : left + 2 + label] = 220 + k % 30
            values = (int(label == 2), int(left < 3), int(top < 3)) if attributes else ()
            image = encode(pixels, "raw")
            samples.append(Sample(f"{split}{k:04d}", image, "npy", label=label, attributes=values, pixels=pixels))
        half = images // 2
        records = [
            write_shard(directory / shard_name(0), samples[:half], layout),
            write_shard(directory / shard_name(1), samples[half:], layout),
        ]
        protocol = {"name": cfg.data.name, "hash": protocol_hash(cfg.data)}
        names = {"classes": ["small", "middle", "large"], "attributes": list(ATTRIBUTES) if attributes else []}
        finish(directory, records, layout, protocol=protocol, split=split, **names)


def processes() -> ForkServerContext:
    """Processes forked from a server that has torch loaded and nothing else: quick to start, with no history.

    Torch loads its compiler with the first optimiser, which would take each of them more than a second.
    """
    context = multiprocessing.get_context("forkserver")
    torch_parts = ["torch._inductor", "torch.distributed.nn", "torch.distributed.fsdp"]
    context.set_forkserver_preload(["pipeline.train.loop", "pipeline.sample", *torch_parts])
    return context


def _rank(cfg: Config, rank: int, *, world_size: int, port: int, log: str, change: Change | None) -> None:
    with Path(log).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world_size)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    import torch

    from pipeline.train import loop

    torch.set_num_threads(1)
    if change is not None:
        cfg = change(cfg, rank)
    code = loop.train(cfg, create_run(cfg))
    if left := [name for name in threads() if "gloo" in name]:
        sys.exit(f"threads outlive the process group, and may abort the interpreter's end: {left}")
    sys.stdout.flush()
    ctypes.pythonapi.Py_Exit(code)  # as an interpreter ends; multiprocessing would leave without taking it apart


def threads() -> list[str]:
    """Names of this process's threads, those of C++ included."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def start(cfg: Config, *, world_size: int = 1, change: Change | None = None) -> Sequence[Any]:
    """Start the ranks of a training run as processes of their own; their output goes to `<name>.log` beside the run.

    `change(cfg, rank)` is called in each of them first. It may alter anything and returns the config to train with.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    create_run(cfg)
    log = str(cfg.runs_dir / f"{cfg.name}.log")
    ranks = [
        processes().Process(
            target=_rank,
            args=(cfg, rank),
            kwargs={"world_size": world_size, "port": port, "log": log, "change": change},
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def run(cfg: Config, *, world_size: int = 1, change: Change | None = None) -> RunDir:
    """Train to the end on that many ranks; an error where they write nothing for STANDSTILL_SECONDS."""
    ranks, found = start(cfg, world_size=world_size, change=change), RunDir(cfg.runs_dir / cfg.name)
    written, since = 0, time.monotonic()
    while any(process.is_alive() for process in ranks) and time.monotonic() - since < STANDSTILL_SECONDS:
        multiprocessing.connection.wait([process.sentinel for process in ranks if process.is_alive()], timeout=1)
        size = found.metrics.stat().st_size if found.metrics.exists() else 0
        if size != written:
            written, since = size, time.monotonic()
    codes = [process.exitcode for process in ranks]
    assert codes == [0] * world_size, (codes, (cfg.runs_dir / f"{cfg.name}.log").read_text())
    return found


def fingerprint(run: RunDir, step: int) -> dict[str, str]:
    """sha256 of every tensor file of a checkpoint: weights, EMAs, optimiser."""
    files = json.loads((run.checkpoint(step) / COMMIT).read_text())["files"]
    return {name: record["sha256"] for name, record in files.items() if name.endswith(".safetensors")}


def history(run: RunDir) -> list[dict[str, float]]:
    """What training logged, less what belongs to the clock on the wall."""
    rows = [
        {k: v for k, v in row.items() if k not in ("start", "time") and not k.startswith(("speed/", "save/"))}
        for row in read_lines(run.metrics)
    ]
    return [row for row in rows if len(row) > 1]
