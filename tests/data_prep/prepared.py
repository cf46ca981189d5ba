"""Small data sets made and prepared for the tests of this folder."""

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep import listing, shard
from data_prep.commands import data_config
from data_prep.items import Rejected, read_rejected
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.shards import ShardDirectory, open_shards
from pipeline.runtime.files import TEMPORARY


def forked(work: Callable[..., object], *args: object, **named: object) -> ForkProcess:
    """A process of its own that does `work`: forked, so that nothing is imported anew, and silent."""

    def quiet() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work(*args, **named)

    process = multiprocessing.get_context("fork").Process(target=quiet)
    process.start()
    return process


def ended(*processes: ForkProcess) -> list[int | None]:
    """The exit codes of processes, when all have ended."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def config(data_dir: Path, *overrides: str, data: str = "folder") -> Config:
    """The config of `data=...` with overrides."""
    return data_config([f"data={data}", f"data_dir={data_dir}", *overrides])


def picture(seed: int, *, width: int = 24, height: int = 20) -> Image.Image:
    """A smooth coloured picture that no other seed gives."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def folder_of_pictures(root: Path, count: int, *, classes: int = 2) -> Path:
    """PNG files, `count` in all, in one folder a class."""
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / f"{number:05d}.png")
    return root


def prepare(cfg: Config, *, workers: int = 1) -> Path:
    """Fetch and shard; returns the directory of the shards."""
    listing.run(cfg)
    shard.run(cfg, workers=workers)
    return data_directory(cfg) / "shards"


def split_of(cfg: Config, name: str = "train") -> ShardDirectory:
    """A prepared split."""
    return open_shards(data_directory(cfg) / "shards" / name)


def image_of(split: ShardDirectory, number: int) -> np.ndarray:
    """Pixels of one sample, uint8 [H, W, C]."""
    row = split.index[number]
    content = split.shard_path(int(row["shard"])).read_bytes()
    return split.manifest.layout.decode(content[row["offset"] : row["offset"] + row["size"]])


def rejected_of(cfg: Config) -> dict[str, Rejected]:
    """Key -> why it was rejected."""
    rows = read_rejected(data_directory(cfg) / "shards" / "rejected.jsonl")
    return {row.key: row for row in rows}


def content_of(directory: Path) -> dict[str, str]:
    """Relative name -> sha256 of every finished file below a directory."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and TEMPORARY not in path.name)
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
