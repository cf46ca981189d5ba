"""The shard stage: the images of a listing, cropped and encoded, in byte-deterministic tar shards.

Each shard is a function of the listing, the protocol and its number, so that processes, the tasks of a Slurm array
and restarts after a kill may make them in any order. Whoever finds every shard there writes index and manifest. Which
item goes into which split and which shard are pure functions of the listing and the protocol.
"""

import functools
import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from data_prep.archives import array_image, open_image, read_bytes
from data_prep.crop import square, square_of_jpeg
from data_prep.items import Item, Items, Rejected, Unusable, read_rejected, write_rejected
from data_prep.listing import source_directory
from data_prep.sources import glyphs
from data_prep.stage import cores, finished, run_parallel, run_stage
from pipeline.config.paths import data_directory, protocol_hash
from pipeline.config.prepared import BY_RULE
from pipeline.config.schema import Config
from pipeline.config.schema_data import DataConfig, SplitRule
from pipeline.config.schema_sources import GlyphSource, split_name
from pipeline.data.images import Pixels, encode
from pipeline.data.png import deflate_version
from pipeline.data.shards import (
    BATCH,
    Layout,
    Manifest,
    Sample,
    ShardRecord,
    finish,
    read_manifest,
    read_record,
    shard_name,
    write_shard,
)
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, read_lines
from pipeline.runtime.parts import writing
from pipeline.runtime.progress import progress

VERSION = 1  # raised when the same settings would give other bytes
# What may give other bytes: decoders, compressors.
VERSIONS = {"pillow": PIL.__version__, "simplejpeg": version("simplejpeg"), "deflate": deflate_version()}


@dataclass(frozen=True)
class ShardJob:
    """One shard to be made of the items with these numbers. It is the same whoever makes it."""

    split: str
    number: int
    items: tuple[int, ...]

    @property
    def name(self) -> str:
        """train/000012.tar"""
        return f"{self.split}/{shard_name(self.number)}"


@dataclass(frozen=True)
class Plan:
    """Item numbers of each split, in the listing's order, and who is left out by rule.

    `labels`: for each class that is kept, in order, its number in the listing; a label is a place in it.
    """

    splits: dict[str, npt.NDArray[np.uint32]]
    left_out: tuple[Rejected, ...]
    labels: tuple[int, ...]

    def jobs(self, images_per_shard: int) -> Iterator[ShardJob]:
        """Every shard of every split. Shard k holds listed items k * images_per_shard and on: it does not depend on
        which of them turn out to be unusable, so that shards are made independently.
        """
        for split, numbers in self.splits.items():
            for number, start in enumerate(range(0, len(numbers), images_per_shard)):
                yield ShardJob(split, number, tuple(numbers[start : start + images_per_shard].tolist()))


def make_plan(items: Iterable[Item], data: DataConfig, classes: Sequence[str]) -> Plan:
    """Divide the items as the protocol says. A split that would be empty is an error."""
    listed = data.split.kept_keys()
    keys: list[str] = []
    official: list[str] = []
    places, chosen, labels = [], [], []
    for item in items:
        keys.append(item.key if data.split.least else "")
        official.append(sys.intern(_official(item, data)) if data.split.rule == "official" else "train")
        places.append(hash_place(item.group or item.key) if data.split.rule == "hash" else 0.0)
        chosen.append(hash_place(f"subset/{item.group or item.key}") if data.split.subset else 0.0)
        labels.append(_label(item, classes))
    label_array = np.array(labels, dtype=np.int32)
    by_hash = data.split.rule == "hash"
    found = hash_splits(np.array(places), label_array, data.split) if by_hash else np.array(official)
    wanted = np.ones(len(keys), dtype=bool) if listed is None else _listed(keys, listed)
    left_out = [Rejected(keys[n], "not_listed", "not in split.keep") for n in np.flatnonzero(~wanted).tolist()]
    if data.split.subset is not None:
        inside = _subset(np.array(chosen), wanted, data.split.subset)
        out = np.flatnonzero(wanted & ~inside).tolist()
        left_out += [Rejected(keys[n], "not_in_subset", "not in split.subset") for n in out]
        wanted = inside
    kept, small = _without_small_classes(label_array, keys, classes, wanted=wanted, least=data.split.min_per_class)
    counts = Counter(label_array[wanted].tolist())
    large = tuple(label for label in range(len(classes)) if counts[label] >= data.split.least)
    names = {name: (name,) for name in sorted(set(found.tolist()))}
    merged = {name: data.split.merge[name] for name in sorted(data.split.merge)} or names
    splits = {name: np.flatnonzero(np.isin(found, parts) & kept).astype(np.uint32) for name, parts in merged.items()}
    _check_splits(data, {name: len(numbers) for name, numbers in splits.items()})
    return Plan({name: numbers for name, numbers in splits.items() if len(numbers)}, (*left_out, *small), large)


def _label(item: Item, classes: Sequence[str]) -> int:
    """The item's class, or -1 for none."""
    if item.label is not None and item.label >= len(classes):
        raise UserError(
            f"data.source: '{item.key}' has label {item.label}, expected 0 to {len(classes) - 1}, as there are "
            f"{len(classes)} classes. Correct the label, or give every class a name in data.source.classes."
        )
    return -1 if item.label is None else max(item.label, -1)


def _official(item: Item, data: DataConfig) -> str:
    if item.split is not None:
        return split_name(item.split)
    advice = {
        "celeba": "Put list_eval_partition.txt (Kaggle: .csv) beside the images",
        "folder": "Keep images in train/, valid/, test/ and set data.source.splits=true, or give the table a column "
        "'split' with a word in each row; or use split.rule=hash",
    }
    raise UserError(
        f"data.split.rule=official, but the source does not say which split '{item.key}' is in. "
        f"{advice.get(data.source.kind, 'Use split.rule=hash')}."
    )


def hash_place(group: str) -> float:
    """A number in [0, 1) that only the group's name decides: the same on every machine."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def hash_splits(
    places: npt.NDArray[np.float64], labels: npt.NDArray[np.int32], rule: SplitRule
) -> npt.NDArray[np.str_]:
    """train, valid or test for each item. Places below `valid` are valid, the next `test` are test.

    With `by_class` the groups of each class are ranked by place, and the first of them taken: every class has its
    share, but an image that is added may move another.
    """
    ranks = places.copy()
    for label in np.unique(labels) if rule.by_class else ():
        members = labels == label
        groups, position = np.unique(places[members], return_inverse=True)
        ranks[members] = (position + 0.5) / len(groups)
    return np.where(ranks < rule.valid, "valid", np.where(ranks < rule.valid + rule.test, "test", "train"))


def _listed(keys: Sequence[str], listed: frozenset[str]) -> npt.NDArray[np.bool_]:
    """Which items the list of `split.keep` names. A name that no image has is an error: the list is of other data."""
    unknown = sorted(listed - set(keys))
    if unknown:
        raise UserError(
            f"data.split.keep: {len(unknown)} of {len(listed)} keys are of no image, such as '{unknown[0]}'; the first "
            f"image of the source is '{keys[0] if keys else ''}'. Write the keys as they stand in source/items.jsonl."
        )
    return np.array([key in listed for key in keys], dtype=bool)


def _subset(places: npt.NDArray[np.float64], wanted: npt.NDArray[np.bool_], subset: float) -> npt.NDArray[np.bool_]:
    """Which of the `wanted` items `split.subset` keeps: those of the lowest places, a number or a share of them."""
    count = int(wanted.sum())
    number = subset if isinstance(subset, int) else max(round(subset * count), 1)
    if number > count:
        raise UserError(f"data.split.subset: found {subset}, but there are {count} images. Use fewer, or leave it out.")
    order = np.argsort(np.where(wanted, places, 2.0), kind="stable")
    inside = np.zeros(len(wanted), dtype=bool)
    inside[order[:number]] = True
    return inside


def _without_small_classes(
    labels: npt.NDArray[np.int32],
    keys: Sequence[str],
    classes: Sequence[str],
    *,
    wanted: npt.NDArray[np.bool_],
    least: int,
) -> tuple[npt.NDArray[np.bool_], tuple[Rejected, ...]]:
    """Which items are `wanted` and in classes of at least `least` such images, and the others with the reason."""
    if not least:
        return wanted, ()
    left_out = []
    counts = Counter(labels[wanted].tolist())
    kept = np.array([counts[label] >= least for label in labels.tolist()], dtype=bool)
    for number in np.flatnonzero(~kept & wanted).tolist():
        label = int(labels[number])
        name = classes[label] if label >= 0 else "none"
        reason = f"class '{name}' has {counts[label]} images, split.min_per_class is {least}"
        left_out.append(Rejected(keys[number], "small_class", reason))
    return kept & wanted, tuple(left_out)


def _check_splits(data: DataConfig, counts: dict[str, int]) -> None:
    wanted = ["train"]
    if data.split.rule == "hash" and not data.split.merge:
        wanted += [name for name in ("valid", "test") if getattr(data.split, name) > 0]
    for name in wanted:
        if not counts.get(name):
            found = ", ".join(f"{k}: {v}" for k, v in counts.items()) or "none at all"
            advice = f"Set data.split.{name}=0 for a small data set"
            if name == "train":
                advice = f"Say what to train on: data.split.merge={{train: [{next(iter(counts), 'train')}]}}"
            raise UserError(f"data.split: no image is in '{name}' (found {found}). Expected at least one. {advice}.")


def shards_directory(cfg: Config) -> Path:
    """Where the splits' shard directories lie."""
    return data_directory(cfg) / "shards"


def run(cfg: Config, *, workers: int | None = None, part: tuple[int, int] = (0, 1)) -> Mapping[str, Any]:
    """Make the shards of `cfg.data`. `part` (k, n): only shards with number % n == k, as one task of an array.

    Returns the receipt, or {} where other parts are not done yet. Output bytes depend neither on `workers` nor `part`.
    """
    receipt = finished(source_directory(cfg))
    if receipt is None:
        raise Incomplete(
            f"{source_directory(cfg)} is not finished. Run `mudi prepare fetch` with the same overrides first."
        )
    inputs = {
        "protocol": cfg.data.identity(),
        "items": receipt["sha256"],
        # Labels are counted without the classes that min_per_class drops, which they were not in version 1.
        "versions": {"stage": VERSION + bool(cfg.data.split.least), **VERSIONS},
    }
    return run_stage(
        "shard",
        shards_directory(cfg),
        inputs,
        work=lambda directory: _shard(cfg, directory, workers=workers, part=part),
    )


def _shard(cfg: Config, directory: Path, *, workers: int | None, part: tuple[int, int]) -> Mapping[str, Any] | None:
    items = Items(source_directory(cfg))
    plan = plan_of(cfg)
    jobs = list(plan.jobs(cfg.data.images_per_shard))
    listed = read_rejected(source_directory(cfg) / "rejected.jsonl")
    check_rejected(cfg.data, listed, kept=len(items), path=source_directory(cfg) / "rejected.jsonl")
    missing = [job for place, job in enumerate(jobs) if place % part[1] == part[0] and not _done(directory, job)]
    total = sum(len(job.items) for job in jobs)
    places = {label: place for place, label in enumerate(plan.labels)}
    work = functools.partial(make_shard, data=cfg.data, source=source_directory(cfg), target=directory, places=places)
    done = total - sum(len(job.items) for job in missing)
    with writing(directory), progress(f"shard {cfg.data.name}", total, done=done) as tick:
        for made in run_parallel(work, missing, workers=min(workers or cores(), max(len(missing), 1))):
            tick(made)
        return complete(cfg, directory, plan, jobs=jobs)


def plan_of(cfg: Config) -> Plan:
    """Which item of the finished listing goes into which split and shard."""
    items = Items(source_directory(cfg))
    return make_plan(items, cfg.data, items.classes)


def _done(directory: Path, job: ShardJob) -> bool:
    path = directory / job.name
    return (path.parent / "manifest.json").exists() or read_record(path) is not None


def make_shard(job: ShardJob, *, data: DataConfig, source: Path, target: Path, places: Mapping[int, int]) -> int:
    """Write one shard. Returns how many items were looked at. What is unusable stands in the shard's record.

    `places`: a label of the listing -> the label of the sample.
    """
    items = Items(source)
    notes: list[dict[str, str]] = []
    samples = _samples(job, items, data, notes=notes, places=places)
    write_shard(target / job.name, samples, layout(data), notes=notes)
    return len(job.items)


def layout(data: DataConfig) -> Layout:
    """Encoding and shape of a protocol's images."""
    return Layout(data.encoding, (data.channels, data.image_size, data.image_size))


def _samples(
    job: ShardJob, items: Items, data: DataConfig, *, notes: list[dict[str, str]], places: Mapping[int, int]
) -> Iterator[Sample]:
    """The usable images of a shard, in order. Keys are item numbers: unique, short, and without dots."""
    extension = layout(data).extension
    usable = _usable(zip(job.items, items.take(job.items), strict=True), items, data, notes)
    while batch := list(itertools.islice(usable, BATCH)):
        encoded = [encode(pixels, data.encoding, data.quality) for _, _, pixels in batch]
        for (number, item, pixels), content in zip(batch, encoded, strict=True):
            meta = {**item.meta, "source": item.key}
            known = None if data.encoding == "jpeg" else pixels  # a JPEG's statistics are those of what it decodes to
            label = None if item.label is None else places.get(item.label)  # a label below 0 is none
            yield Sample(f"{number:08d}", content, extension, label, meta, item.attributes, known)


def _usable(
    numbered: Iterable[tuple[int, Item]], items: Items, data: DataConfig, notes: list[dict[str, str]]
) -> Iterator[tuple[int, Item, Pixels]]:
    """Items with their pixels; notes of those that have none, and of what was converted."""
    for number, item in numbered:
        try:
            pixels, converted = image_pixels(item, data, items.root)
        except Unusable as why:
            notes.append(asdict(Rejected(item.key, why.kind, why.reason)))
            continue
        notes.extend({"key": item.key, "converted": kind} for kind in converted)
        yield number, item, pixels


def image_pixels(item: Item, data: DataConfig, root: Path) -> tuple[Pixels, list[str]]:
    """One item through the protocol: uint8 [S, S, C] and what was converted. Raises `Unusable`."""
    if item.at[0] == "glyph" and isinstance(data.source, GlyphSource):
        _, font, letter, scale = item.at
        ink = glyphs.draw(root / font, letter, scale=scale, size=data.image_size)
        span = data.source.ink - data.source.paper
        grey = np.rint(data.source.paper + span * (ink / 255.0)).astype(np.uint8)
        return np.repeat(grey[:, :, None], data.channels, axis=2), []
    if item.at[0] == "array":
        return square(array_image(item.at, root), data)
    content = read_bytes(item.at, root)
    quick = square_of_jpeg(content, data)
    return (quick, []) if quick is not None else square(open_image(content), data)


def complete(cfg: Config, directory: Path, plan: Plan, *, jobs: list[ShardJob]) -> Mapping[str, Any] | None:
    """Index, manifests and the list of the rejected, where every shard is there; None where some are not.

    Several processes may come here at the same time: they write equal files, atomically.
    """
    records: dict[str, list[ShardRecord | None]] = {split: [] for split in plan.splits}
    for job in jobs:
        records[job.split].append(read_record(directory / job.name))
    if all(record for rows in records.values() for record in rows):
        whole = {split: [record for record in rows if record] for split, rows in records.items()}
        _write_rejected(cfg, directory, plan, whole)
        for split in sorted(whole):
            _finish_split(cfg, directory / split, whole[split], plan)
    elif not all((directory / split / "manifest.json").exists() or all(records[split]) for split in records):
        return None
    else:  # another process, or a killed one, got as far as the manifests of some splits
        for split, rows in records.items():
            if not (directory / split / "manifest.json").exists():
                _finish_split(cfg, directory / split, [record for record in rows if record], plan)
    facts = _facts(directory, sorted(plan.splits))
    for record in directory.glob("*/*.record.json"):  # one that wrote a shard anew while others finished left its own
        record.unlink(missing_ok=True)
    return facts


def _write_rejected(cfg: Config, directory: Path, plan: Plan, records: dict[str, list[ShardRecord]]) -> None:
    """rejected.jsonl and converted.jsonl, and an error where too many or all are rejected."""
    notes = [note for split in sorted(records) for record in records[split] for note in record.notes]
    unusable = [Rejected(**note) for note in notes if "converted" not in note]
    rejected = [*read_rejected(source_directory(cfg) / "rejected.jsonl"), *plan.left_out, *unusable]
    with atomic_path(directory / "rejected.jsonl") as partial:
        write_rejected(partial, rejected)
    with atomic_path(directory / "converted.jsonl") as partial, partial.open("w") as file:
        file.writelines(json.dumps(note, sort_keys=True) + "\n" for note in notes if "converted" in note)
    counts = {split: sum(record.count for record in records[split]) for split in records}
    check_rejected(cfg.data, rejected, kept=sum(counts.values()), path=directory / "rejected.jsonl")
    for split, expected in (cfg.data.counts or {}).items():
        if counts.get(split, 0) != expected:
            raise UserError(
                f"data.counts: '{split}' of {cfg.data.name} has {counts.get(split, 0)} images, the protocol says "
                f"{expected}. Is the source whole? To go on with what there is, set data.counts=null "
                "(another hash: numbers made from it are not those of the protocol)."
            )


def check_rejected(data: DataConfig, rejected: list[Rejected], *, kept: int, path: Path) -> None:
    """A `UserError` where more than `max_rejected` of the images are unusable, with the reasons counted.

    Rows of a table of labels whose image is not there count as well.
    """
    counted = Counter(row.kind for row in rejected if row.kind not in BY_RULE)
    number = sum(counted.values())
    if kept and number <= data.max_rejected * (number + kept):
        return
    first = next((row for row in rejected if row.kind not in BY_RULE), None)
    kinds = ", ".join(f"{kind}: {count}" for kind, count in counted.most_common()) or "none"
    rows = counted["label_without_image"]
    what = "images" if not rows else "rows of the table" if rows == number else "images and rows of the table"
    raise UserError(
        f"{number} of {number + kept} {what} of '{data.name}' are unusable ({kinds}), "
        f"allowed is data.max_rejected={data.max_rejected:g}. "
        f"{f'First: {first.key}: {first.reason}. ' if first else ''}All are listed in {path}. "
        "Repair the source, or allow more."
    )


def _finish_split(cfg: Config, directory: Path, records: list[ShardRecord], plan: Plan) -> Manifest:
    items = Items(source_directory(cfg))
    return finish(
        directory,
        records,
        layout(cfg.data),
        classes=[items.classes[label] for label in plan.labels],
        attributes=items.attributes,
        protocol={"name": cfg.data.name, "hash": protocol_hash(cfg.data)},
        split=directory.name,
        made_from={**VERSIONS, "items": (finished(source_directory(cfg)) or {}).get("sha256", "")},
    )


def _facts(directory: Path, splits: list[str]) -> dict[str, Any]:
    """For the receipt: what there is, by split, and a hash over all of it."""
    manifests = {split: read_manifest(directory / split) for split in splits}
    kinds = Counter(row.kind for row in read_rejected(directory / "rejected.jsonl"))
    converted = Counter(note["converted"] for note in read_lines(directory / "converted.jsonl"))
    return {
        "splits": {split: {"count": m.count, "sha256": m.sha256} for split, m in manifests.items()},
        "rejected": dict(sorted(kinds.items())),
        "converted": dict(sorted(converted.items())),
    }
