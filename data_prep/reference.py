"""Stage: the domain classifier, and reference moments and features of every split for every feature network.

Each file is keyed by what it was made from: the hash of the images, the protocol, the network. What is there already
for the same key is not made again; a killed stage goes on where it was, block by block.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.config.schema_metrics import DomainConfig
from pipeline.data.reader import Reader
from pipeline.data.shards import ShardDirectory, open_shards
from pipeline.metrics.domain import (
    ATTRIBUTES,
    LABELS,
    ROTATION,
    Examples,
    Shape,
    one_thread,
    save_classifier,
    train_classifier,
)
from pipeline.metrics.extraction import Work, default_device, extract
from pipeline.metrics.extractors import CLASSIFIER, build_extractors, classifier_directory
from pipeline.metrics.features import Extractor
from pipeline.metrics.references import reference_path, save_reference
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json, sha256_file, sweep_partial, write_json
from pipeline.runtime.numerics import set_numerics
from pipeline.runtime.parts import WHOLE, this_world
from pipeline.runtime.progress import progress

RECEIPT = "receipt.json"


def run(cfg: Config) -> None:
    """Make what evaluation compares with, under `<data directory>/reference`. Does nothing where all is there.

    Raises:
        UserError: the training split is empty, or a file of weights is missing or not the expected one.
        Incomplete: the shards are not finished.
    """
    set_numerics()
    data = data_directory(cfg)
    splits = reference_splits(cfg, data)
    directory = data / "reference"
    images = {name: split.manifest.sha256 for name, split in splits.items()}
    if cfg.evaluate.domain.enabled:
        _classifier(cfg, splits, classifier_directory(directory, cfg.evaluate.domain, images), images=images)
    made = []
    for extractor in build_extractors(cfg.evaluate, directory, images, device=default_device()):
        for name, split in splits.items():
            path = reference_path(directory, extractor, name)
            if not _current(path, split):
                _statistics(cfg, split, extractor, path=path)
            made.append(str(path.relative_to(directory)))
    receipt = {"stage": "reference", "images": images, "files": sorted(made)}
    if not (directory / RECEIPT).exists() or read_json(directory / RECEIPT) != receipt:
        write_json(directory / RECEIPT, receipt)


def reference_splits(cfg: Config, data: Path) -> dict[str, ShardDirectory]:
    """The finished, non-empty splits that evaluation asks for. The first one asked for has to be there."""
    found: dict[str, ShardDirectory] = {}
    for name in cfg.evaluate.reference_splits:
        path = data / "shards" / name
        if not found or path.exists():
            split = open_shards(path)
            if split.manifest.count:
                found[name] = split
    if not found:
        raise UserError(f"{data}/shards: the split '{cfg.evaluate.reference_splits[0]}' has no images to compare with.")
    return found


def _current(path: Path, split: ShardDirectory) -> bool:
    """Whether the reference at `path` is finished and of these very images; one of other images is made anew."""
    record = path.with_suffix(".json")
    return record.exists() and path.exists() and read_json(record)["images"] == split.manifest.sha256


def _classifier(
    cfg: Config, splits: Mapping[str, ShardDirectory], directory: Path, *, images: Mapping[str, str]
) -> None:
    """Train and save the domain classifier, unless it is there."""
    if (directory / "classifier.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    sweep_partial(directory)
    names = list(splits)
    train, valid = splits[names[0]], splits[names[1] if len(names) > 1 else names[0]]
    domain = cfg.evaluate.domain
    shape = _shape(train, domain)
    with progress("domain classifier", domain.max_images) as tick, one_thread():
        trained = train_classifier(_examples(train), _examples(valid), shape, cfg=domain, tick=tick)
    save_classifier(trained, directory / CLASSIFIER)
    turns = ["0", "90", "180", "270 degrees"]
    record = {
        "task": shape.task,
        "classes": train.manifest.classes if shape.task == LABELS else turns if shape.task == ROTATION else [],
        "attributes": train.manifest.attributes,
        "images_seen": trained.seen,
        "accuracy": trained.accuracy,
        "accuracy_by_attribute": trained.by_attribute,
        "loss": trained.loss,
        "checked_on": f"{valid.manifest.split} ({valid.manifest.count} images)",
        "trained_on": dict(images),
        "sha256": sha256_file(directory / CLASSIFIER),
    }
    write_json(directory / "classifier.json", record)


def _shape(train: ShardDirectory, domain: DomainConfig) -> Shape:
    """The network for what is known of the images: classes, attributes, both, or nothing."""
    channels, size, _ = train.manifest.shape
    labelled = len(train.manifest.classes) > 1 and bool((np.asarray(train.index["label"]) >= 0).all())
    attributes = len(train.manifest.attributes)
    task = LABELS if labelled else ATTRIBUTES if attributes else ROTATION
    classes = {LABELS: len(train.manifest.classes), ATTRIBUTES: 0, ROTATION: 4}[task]
    return Shape(channels, size, classes, domain.width, domain.features, task, attributes)


def _examples(split: ShardDirectory) -> Examples:
    return Examples(Reader(split).read, np.asarray(split.index["label"], np.int64), split.attributes)


def _statistics(cfg: Config, split: ShardDirectory, extractor: Extractor, *, path: Path) -> None:
    """Moments and features of one split. Several processes share the blocks; the first of them gathers."""
    evaluate = cfg.evaluate
    name = f"{path.stem}-{split.manifest.sha256[:8]}-{evaluate.block}.work"
    work = Work(path.with_name(name), split.manifest.count, evaluate.block, evaluate.batch)
    mine = WHOLE.for_task(this_world())
    for part in [mine, *([WHOLE] if mine.number == 0 and mine != WHOLE else [])]:
        extract(work, Reader(split).read, extractor, of=split.manifest.split, part=part)
    if mine.number:
        return
    save_reference(
        path,
        work,
        extractor,
        split=split.manifest.split,
        images=split.manifest.sha256,
        keep=evaluate.reference_features,
        seed=evaluate.seed,
    )
    shutil.rmtree(work.directory, ignore_errors=True)
