"""Shard directories whose sample k is recognised by its pixels, for tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.images import encode
from pipeline.data.shards import Layout, Sample, ShardDirectory, finish, open_shards, shard_name, write_shard

SHAPE = (3, 4, 5)  # [C, H, W]


def pixels_of(number: int, shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, C], another for every number."""
    channels, height, width = shape
    return np.random.default_rng(number).integers(0, 256, (height, width, channels), dtype=np.uint8)


def label_of(number: int) -> int | None:
    """0, 1, 2 in turn, and now and then none."""
    return None if number % 7 == 6 else number % 3


def write_numbered(
    directory: Path,
    sizes: Sequence[int],
    *,
    encoding: str = "raw",
    shape: tuple[int, int, int] = SHAPE,
    attributes: bool = False,
) -> ShardDirectory:
    """Shards of these sizes, samples numbered through."""
    layout = Layout(encoding, shape)
    directory.mkdir(parents=True, exist_ok=True)
    records, first = [], 0
    for number, size in enumerate(sizes):
        samples = (
            Sample(
                f"image{k:05d}",
                encode(pixels_of(k, shape), encoding),
                layout.extension,
                label_of(k),
                attributes=(k % 2, -1) if attributes else (),
            )
            for k in range(first, first + size)
        )
        records.append(write_shard(directory / shard_name(number), samples, layout))
        first += size
    finish(
        directory,
        records,
        layout,
        classes=["a", "b", "c"],
        protocol={"name": "numbered", "hash": "0"},
        split="train",
        attributes=["odd", "unknown"] if attributes else [],
    )
    return open_shards(directory)


def write_latents(directory: Path, values: npt.NDArray[np.generic], *, mirrored: bool = False) -> ShardDirectory:
    """One shard of latents [N, C, H, W] of any type; `mirrored` says that each is stored twice along C."""
    layout = Layout("latent", values.shape[1:], values.dtype.str)
    directory.mkdir(parents=True, exist_ok=True)
    samples = (Sample(f"latent{k}", value.tobytes(), "npy", k) for k, value in enumerate(values))
    record = write_shard(directory / shard_name(0), samples, layout)
    finish(
        directory,
        [record],
        layout,
        classes=[],
        protocol={"name": "numbered", "hash": "0"},
        split="train",
        made_from={"mirrored": mirrored},
    )
    return open_shards(directory)
