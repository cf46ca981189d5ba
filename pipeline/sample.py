"""The sampling job: seeds -> images in shards. Image k is a function of seed k; there are no collectives.

Any number of processes may work on a set (`--part 2/8` makes every eighth shard, beginning with the third); whoever
finds it whole finishes it. A killed job started again makes only the shards that are missing.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import checkpoint, drawing
from pipeline.config.autoencoder import require_latents
from pipeline.config.load import config_from, run_named
from pipeline.config.paths import run_directory, sample_set_name, training_shards
from pipeline.config.schema import Config
from pipeline.data.images import encode
from pipeline.data.latents import image_shape
from pipeline.data.pictures import Pixels, to_uint8, write_picture
from pipeline.data.shards import (
    Layout,
    Manifest,
    Sample,
    ShardDirectory,
    ShardRecord,
    finish,
    open_shards,
    read_manifest,
    read_record,
    reopen,
    shard_name,
    tidy,
    write_shard,
)
from pipeline.drawing import DENOISERS
from pipeline.inference import Make, asked_for, image_maker
from pipeline.runtime.files import read_json, sweep_partial
from pipeline.runtime.progress import progress
from pipeline.runtime.run_dir import COMMIT, RunDir, step_of

GRID_COLUMNS, GRID_ROWS = 16, 32  # images
STRIP = 8  # seeds, and frames of each


@dataclass(frozen=True)
class Part:
    """Shards number % count == number."""

    number: int = 0
    count: int = 1


def main(words: list[str]) -> int:
    """`python -m pipeline sample RUN_DIR [--step N] [--part k/n] [--partial] [key=value ...]`."""
    parser = argparse.ArgumentParser(prog="pipeline sample", description=main.__doc__)
    parser.add_argument("--step", type=int, help="of the checkpoint; default: the newest")
    parser.add_argument("--part", type=_part, default=Part(), metavar="k/n", help="only every n-th shard from the k-th")
    parser.add_argument("--partial", action="store_true", help="finish the set with the shards that are there")
    options, rest = parser.parse_known_args(words)
    cfg = config_from(rest)
    run = RunDir(run_named(rest) or run_directory(cfg))
    sample(cfg, run, step=options.step, part=options.part, finish_partial=options.partial)
    return 0


def _part(text: str) -> Part:
    number, _, count = text.partition("/")
    return Part(int(number), int(count))


def sample(
    cfg: Config, run: RunDir, *, step: int | None = None, part: Part | None = None, finish_partial: bool = False
) -> Path:
    """Make this part of the sample set of a checkpoint; finish the set if it is whole. Returns its directory.

    Raises:
        UserError: where there is no valid checkpoint, or the data it was trained on is not there.
    """
    part = part or Part()
    found = step_of(checkpoint.step_to_read(run, step).name) or 0
    directory = run.samples(found) / sample_set_name(cfg)
    require_latents(cfg)
    data = open_shards(training_shards(cfg) / "train")
    train = data.manifest
    layout = Layout(encoding="png", shape=image_shape(train))
    shards = _shards(cfg)
    if (directory / "manifest.json").is_file():
        if read_manifest(directory).count >= cfg.sample.count:
            _end(cfg, run, directory, step=found)  # a job killed after its manifest left the rest to us
            print(f"{directory} is complete: nothing to do", file=sys.stderr)
            return directory
        reopen(directory)
        for name in ("grid.png", "strip.png"):
            (directory / name).unlink(missing_ok=True)
    if part.count == 1:
        sweep_partial(directory)  # the only writer: what is unfinished is a killed job's
    records = _existing(directory, shards)
    missing = [n for n in sorted(shards.keys() - records.keys()) if n % part.count == part.number]
    if missing and not finish_partial:
        make = image_maker(cfg, run, train, step=found)
        done = sum(record.count for record in records.values())
        with progress("sample", done + sum(len(shards[n]) for n in missing), done=done) as tick:
            for number in missing:
                samples = _samples(cfg, shards[number], make=make, data=data, tick=tick)
                records[number] = write_shard(directory / shard_name(number), samples, layout)
    records = _existing(directory, shards)  # other parts may have finished meanwhile
    if records and (finish_partial or records.keys() == shards.keys()):
        _finish(cfg, run, directory, step=found, records=records, layout=layout, train=train)
    elif not finish_partial:
        print(
            f"{directory}: {len(records)} of {len(shards)} shards are there; other parts make the rest", file=sys.stderr
        )
    return directory


def _shards(cfg: Config) -> dict[int, range]:
    """Seeds of each shard, by number."""
    size, count, first = cfg.sample.images_per_shard, cfg.sample.count, cfg.sample.first_seed
    return {n: range(first + n * size, first + min((n + 1) * size, count)) for n in range(-(-count // size))}


def _existing(directory: Path, shards: dict[int, range]) -> dict[int, ShardRecord]:
    """Shards that are complete on the disk and hold the seeds they should."""
    found: dict[int, ShardRecord] = {}
    for number, seeds in shards.items():
        record = read_record(directory / shard_name(number))
        if record is not None and record.count == len(seeds):
            found[number] = record
    return found


def _samples(
    cfg: Config, seeds: range, *, make: Make, data: ShardDirectory, tick: Callable[[int], None]
) -> Iterator[Sample]:
    for first in range(seeds.start, seeds.stop, cfg.sample.batch):
        batch = torch.arange(first, min(first + cfg.sample.batch, seeds.stop))
        asked = asked_for(cfg, batch, data)
        pixels = to_uint8(make(batch, asked))
        rows = [()] * len(batch) if asked.attributes is None else map(tuple, asked.attributes.tolist())
        for seed, label, row, image in zip(batch.tolist(), asked.labels.tolist(), rows, pixels, strict=True):
            yield Sample(
                key=f"{seed:012d}",
                data=encode(image, "png"),
                extension="png",
                label=None if label < 0 else label,
                attributes=row,
                meta={"seed": seed},
                pixels=image,
            )
        tick(len(batch))


def _finish(
    cfg: Config,
    run: RunDir,
    directory: Path,
    *,
    step: int,
    records: dict[int, ShardRecord],
    layout: Layout,
    train: Manifest,
) -> None:
    """Write the manifest and the grid. Every process that finds the set whole writes the same bytes."""
    made_from: dict[str, Any] = {
        "run": cfg.name,
        "step": step,
        "checkpoint": read_json(run.checkpoint(step) / COMMIT)["files"],
        "sample": cfg.sample.model_dump(mode="json", exclude={"count", "batch"}),
        "seeds": [cfg.sample.first_seed, cfg.sample.first_seed + cfg.sample.count],
        "wanted": cfg.sample.count,
        "seed": cfg.seed,
    }
    if cfg.latents is not None:
        tile = cfg.latents.tile
        made_from["latents"] = {"autoencoder": train.made_from["autoencoder"], "tile": tile, "sha256": train.sha256}
    finish(
        directory,
        records.values(),
        layout,
        classes=train.classes,
        attributes=train.attributes if cfg.model.condition == "attributes" else (),
        protocol=train.protocol,
        split=f"samples-step-{step}",
        made_from=made_from,
    )
    _end(cfg, run, directory, step=step)
    count = sum(record.count for record in records.values())
    asked = "" if count == cfg.sample.count else f" of {cfg.sample.count} asked"
    print(f"{count} images{asked} in {directory}\npicture: {directory / 'grid.png'}", file=sys.stderr)


def _end(cfg: Config, run: RunDir, directory: Path, *, step: int) -> None:
    """What comes after the manifest: the pictures, and no traces of the work."""
    if not (directory / "grid.png").is_file():
        grid(directory)
    if not (directory / "strip.png").is_file() and cfg.model.kind in DENOISERS:
        seeds = torch.arange(min(cfg.sample.count, STRIP)) + cfg.sample.first_seed
        pixels = drawing.strip(drawing.load_model(cfg, run, step=step), seeds, frames=STRIP)
        write_picture(directory / "strip.png", pixels, columns=STRIP)
    tidy(directory, {shard["name"] for shard in read_manifest(directory).shards})


def grid(directory: Path) -> Path:
    """`grid.png` of a sample set: a row for each class, of many classes several in a row, and without any by seed."""
    shards = open_shards(directory)
    labels = np.asarray(shards.index["label"])
    by_class = [np.flatnonzero(labels == c) for c in range(len(shards.manifest.classes))]
    classes = [images for images in by_class if len(images)]
    beside = max(-(-len(classes) // GRID_ROWS), 1)  # classes in one row
    each = min([max(GRID_COLUMNS // beside, 1), *map(len, classes)])
    chosen = np.concatenate([c[:each] for c in classes]) if classes else np.arange(min(GRID_COLUMNS**2, len(labels)))
    images: Pixels = np.stack([_pixels(shards, int(k)) for k in chosen])
    return write_picture(directory / "grid.png", images, columns=each * beside)


def _pixels(shards: ShardDirectory, k: int) -> Pixels:
    row = shards.index[k]
    with shards.shard_path(int(row["shard"])).open("rb") as file:
        file.seek(int(row["offset"]))
        pixels: Pixels = shards.manifest.layout.decode(file.read(int(row["size"])))
    return pixels
