"""The sampling job: seeds -> images in shards. Image k is a function of seed k; there are no collectives.

Any number of processes may work on a set: the tasks of a job share its shards, and `--part 2/8` makes every eighth
shard, beginning with the third. The process that finds the set whole finishes it. A killed job started again makes
only the shards that are missing.
"""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import checkpoint, visualize
from pipeline.config.autoencoder import require_latents
from pipeline.config.needs import require
from pipeline.config.paths import sample_set_name, training_shards
from pipeline.config.schema import Config
from pipeline.config.schema_objectives import objective_kind
from pipeline.data.images import encode
from pipeline.data.latents import image_shape
from pipeline.data.pictures import Pixels, class_names, to_uint8, write_picture
from pipeline.data.shards import (
    Layout,
    Sample,
    ShardDirectory,
    ShardRecord,
    finish,
    open_shards,
    read_manifest,
    read_record,
    records_of,
    shard_name,
    tidy,
    write_record,
    write_shard,
)
from pipeline.inference import Make, asked_for, image_maker, places_taken_for_names
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, read_json
from pipeline.runtime.parts import WHOLE, Part, this_world, writing
from pipeline.runtime.progress import progress
from pipeline.runtime.run_dir import COMMIT, RunDir, Step, existing_run, step_of

GRID_COLUMNS, GRID_ROWS = 16, 32  # images
WAIT_SECONDS = 10.0  # for a manifest that another process writes
STRIP = 8  # seeds, and frames of each
MANIFEST = "manifest.json"
GROWN = "grown-"  # before the name of a shard that holds more seeds than the one that a manifest lists


@dataclass(frozen=True)
class SampleSet:
    """One set of samples: what decides it, where it stands, and the seeds of each of its shards by number."""

    cfg: Config
    run: RunDir
    step: int
    data: ShardDirectory

    @property
    def directory(self) -> Path:
        """Where the set stands, whole or not."""
        return self.run.samples(self.step) / sample_set_name(self.cfg)

    @property
    def layout(self) -> Layout:
        """Of its images."""
        return Layout(encoding="png", shape=image_shape(self.data.manifest))

    @cached_property
    def shards(self) -> dict[int, range]:
        """Seeds of each shard, by number."""
        asked = self.cfg.sample
        size, count, first = asked.images_per_shard, asked.count, asked.first_seed
        return {n: range(first + n * size, first + min((n + 1) * size, count)) for n in range(-(-count // size))}

    def complete(self) -> bool:
        """Whether a manifest lists as many images as are asked for."""
        return sum(self._listed().values()) >= self.cfg.sample.count

    def present(self) -> list[int]:
        """Numbers of the shards that are on the disk with the seeds they should hold."""
        listed = self._listed()
        return [n for n in self.shards if listed.get(shard_name(n)) == len(self.shards[n]) or self._record(n)]

    def path(self, number: int) -> Path:
        """Where to write a shard. What a manifest lists is not touched: its larger successor waits under another name
        until the whole set is there."""
        name = shard_name(number)
        return self.directory / (GROWN + name if name in self._listed() else name)

    def records(self) -> dict[int, ShardRecord]:
        """The records of all shards that are present, by number; those of a finished set are made again."""
        found = {n: record for n in self.shards if (record := self._record(n))}
        listed = self._listed()
        if any(shard_name(n) in listed for n in self.shards.keys() - found.keys()):
            whole = {record.name: record for record in records_of(self.directory)}
            for number, seeds in self.shards.items():
                record = whole.get(shard_name(number))
                if number not in found and record is not None and record.count == len(seeds):
                    found[number] = record
        return found

    def _listed(self) -> dict[str, int]:
        """Images of each shard that the manifest lists, by name; {} where the set is not finished."""
        try:
            return {shard["name"]: shard["count"] for shard in read_manifest(self.directory).shards}
        except Incomplete:
            if (self.directory / MANIFEST).is_file():  # there, and not readable
                raise
            return {}

    def _record(self, number: int) -> ShardRecord | None:
        """The record that the writer of a shard left, where it holds the seeds it should."""
        for name in (shard_name(number), GROWN + shard_name(number)):
            record = read_record(self.directory / name)
            if record is not None and record.count == len(self.shards[number]):
                return replace(record, name=shard_name(number))
        return None


def main(
    overrides: list[str], *, step: Step = None, part: Part = WHOLE, partial: bool = False, png: Path | None = None
) -> None:
    """`mudi sample`."""
    run, cfg = existing_run(overrides)
    require(cfg, "sample")
    directory = sample(cfg, run, step=step, part=part, finish_partial=partial)
    classes = open_shards(training_shards(cfg) / "train").manifest.classes
    if this_world().main and (said := places_taken_for_names(cfg.sample.classes, classes)):
        print(said, file=sys.stderr)
    if png is None or not this_world().main:
        return
    if not (directory / MANIFEST).is_file():
        print(f"--png: no file is written before the set is whole: say it again then ({directory})", file=sys.stderr)
        return
    written, count = write_pngs(directory, png), len(open_shards(directory).index)
    there = f"; {count - written} were there already" if written < count else ""
    print(f"{written} PNG files written to {png}{there}", file=sys.stderr)


def sample(cfg: Config, run: RunDir, *, step: Step = None, part: Part = WHOLE, finish_partial: bool = False) -> Path:
    """Make this part of the sample set of a checkpoint, or this task's share of it; finish the set if it is whole.

    Nothing is written before the settings have been checked and the model is built, and a finished set that is to grow
    stays as it is until the larger one is complete. Returns the set's directory.

    Raises:
        UserError: where there is no valid checkpoint, or the data it was trained on is not there.
    """
    found = step_of(checkpoint.step_to_read(run, cfg.sample.step if step is None else step).name) or 0
    require_latents(cfg)
    data = open_shards(training_shards(cfg) / "train")
    asked_for(cfg, torch.tensor([cfg.sample.first_seed]), data)  # raises for what the data has not
    images = SampleSet(cfg, run, found, data)
    if images.complete():
        with writing(images.directory):
            _end(images)  # a job killed after its manifest left the rest to us
        print(f"{images.directory} is complete: nothing to do", file=sys.stderr)
    elif finish_partial:
        if this_world().main:  # other tasks may see other shards
            _finish_partial(images)
    else:
        mine = part.for_task(this_world())
        missing = sorted(n for n in images.shards.keys() - set(images.present()) if mine.has(n))
        make = image_maker(cfg, run, data.manifest, step=found) if missing else None
        with writing(images.directory):
            if make is not None:
                _make_shards(images, missing, make)
            _finish_whole(images)
    return images.directory


def _make_shards(images: SampleSet, missing: list[int], make: Make) -> None:
    """Write the shards with these numbers, but for those that another process has written meanwhile."""
    done = sum(len(images.shards[n]) for n in images.present())
    with progress("sample", done + sum(len(images.shards[n]) for n in missing), done=done) as tick:
        for number in missing:
            if number in images.present():
                tick(len(images.shards[number]))
            else:
                write_shard(images.path(number), _samples(images, number, make=make, tick=tick), images.layout)


def _finish_whole(images: SampleSet) -> None:
    """Finish the set where every shard is there and nobody else has done it."""
    present = images.present()
    records = images.records() if len(present) == len(images.shards) else {}
    if images.complete():
        _end(images)
    elif len(records) == len(images.shards):
        _finish(images, records)
    else:
        print(
            f"{images.directory}: {len(present)} of {len(images.shards)} shards are there; other parts or tasks make "
            "the rest",
            file=sys.stderr,
        )


def _finish_partial(images: SampleSet) -> None:
    """Finish the set with the shards that are there."""
    records = images.records()
    if not records:
        raise Incomplete(f"{images.directory} has no finished shard yet. Make some first, without --partial.")
    with writing(images.directory):
        _finish(images, records)


def _samples(images: SampleSet, number: int, *, make: Make, tick: Callable[[int], None]) -> Iterator[Sample]:
    cfg, seeds = images.cfg, images.shards[number]
    for first in range(seeds.start, seeds.stop, cfg.sample.batch):
        batch = torch.arange(first, min(first + cfg.sample.batch, seeds.stop))
        asked = asked_for(cfg, batch, images.data)
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


def _finish(images: SampleSet, records: Mapping[int, ShardRecord]) -> None:
    """Write the manifest and the pictures; a smaller set that was finished before is replaced only now.

    Every process that finds the set whole writes the same bytes.
    """
    directory = images.directory
    for record in records.values():
        write_record(directory / record.name, record)  # from here on a kill loses nothing: all is there to finish
    if not images.complete():  # another process may have finished it meanwhile
        for name in (MANIFEST, "grid.png", "strip.png"):
            (directory / name).unlink(missing_ok=True)
    for record in records.values():
        grown = directory / (GROWN + record.name)
        with contextlib.suppress(FileNotFoundError):
            grown.replace(directory / record.name)
        tidy(directory, [grown.name])
    train = images.data.manifest
    finish(
        directory,
        records.values(),
        images.layout,
        classes=train.classes,
        attributes=train.attributes if images.cfg.model.condition == "attributes" else (),
        protocol=train.protocol,
        split=f"samples-step-{images.step}",
        made_from=_made_from(images),
    )
    _end(images)
    asked, count = images.cfg.sample.count, sum(record.count for record in records.values())
    of = "" if count == asked else f" of {asked} asked"
    print(f"{count} images{of} in {directory}\npicture: {directory / 'grid.png'}", file=sys.stderr)


def _made_from(images: SampleSet) -> dict[str, Any]:
    """What decides every image of the set."""
    cfg, train = images.cfg, images.data.manifest
    made_from: dict[str, Any] = {
        "run": cfg.name,
        "step": images.step,
        "checkpoint": read_json(images.run.checkpoint(images.step) / COMMIT)["files"],
        "sample": cfg.sample.model_dump(mode="json", exclude={"count", "batch"}),
        "seeds": [cfg.sample.first_seed, cfg.sample.first_seed + cfg.sample.count],
        "wanted": cfg.sample.count,
        "seed": cfg.seed,
    }
    if cfg.latents is not None:
        tile = cfg.latents.tile
        made_from["latents"] = {"autoencoder": train.made_from["autoencoder"], "tile": tile, "sha256": train.sha256}
    return made_from


def _end(images: SampleSet) -> None:
    """What comes after the manifest: the pictures, and no traces of the work.

    Another process that found the set whole may be writing the same manifest again: it is waited for.
    """
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return _draw(images)
        except Incomplete:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _draw(images: SampleSet) -> None:
    cfg, directory = images.cfg, images.directory
    if not (directory / "grid.png").is_file():
        grid(directory)
    if not (directory / "strip.png").is_file() and objective_kind(cfg).diffusion:
        seeds = torch.arange(min(cfg.sample.count, STRIP)) + cfg.sample.first_seed
        pixels = visualize.strip(visualize.load_model(cfg, images.run, step=images.step), seeds, frames=STRIP)
        names = class_names(images.data.manifest.classes, asked_for(cfg, seeds, images.data).labels.tolist())
        write_picture(directory / "strip.png", pixels, columns=STRIP, names=names)
    tidy(directory, (shard["name"] for shard in read_manifest(directory).shards))


def write_pngs(directory: Path, folder: Path) -> int:
    """Each image of a finished sample set as a file, `000042-rose.png` for seed 42. Returns how many were written; what
    is there stays.

    Raises:
        UserError: where a file of that name holds another image.
    """
    shards, written = open_shards(directory), 0
    names = [re.sub(r"[^\w.-]+", "_", name) for name in shards.manifest.classes]
    first = int(shards.manifest.made_from["seeds"][0])
    with progress("png", len(shards.index)) as tick, writing(folder):
        for k, row in enumerate(shards.index):
            label = int(row["label"])
            path = folder / f"{first + k:06d}{f'-{names[label]}' if label >= 0 else ''}.png"
            data = _stored(shards, k)
            if not path.is_file():
                with atomic_path(path) as partial:
                    partial.write_bytes(data)
                written += 1
            elif path.read_bytes() != data:
                raise UserError(f"--png: {path} is there and holds another image. Give another folder, or empty it.")
            tick(1)
    return written


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
    drawn = class_names(shards.manifest.classes, [c for c, found in enumerate(by_class) if len(found)])
    names = [", ".join(filter(None, drawn[k : k + beside])) for k in range(0, len(drawn), beside)]
    return write_picture(directory / "grid.png", images, columns=each * beside, names=names)


def _pixels(shards: ShardDirectory, k: int) -> Pixels:
    pixels: Pixels = shards.manifest.layout.decode(_stored(shards, k))
    return pixels


def _stored(shards: ShardDirectory, k: int) -> bytes:
    """The file of an image, as it stands in its shard."""
    row = shards.index[k]
    with shards.shard_path(int(row["shard"])).open("rb") as file:
        file.seek(int(row["offset"]))
        return file.read(int(row["size"]))
