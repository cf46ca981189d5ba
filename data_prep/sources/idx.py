"""MNIST's file format, idx: MNIST itself, Fashion-MNIST, and what copies them."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.archives import place, unpacked
from data_prep.items import Item, Listing, Rejected
from pipeline.config.schema_sources import IdxSource
from pipeline.runtime.errors import Incomplete, UserError

SPLITS = {"train": "train", "t10k": "test"}


def listing(source: IdxSource, directory: Path, folder: Path) -> Listing:
    """The images of every split that is there, by number. Packed files are unpacked beside the listing."""
    there = {
        split: (unpacked(images, directory), unpacked(labels, directory))
        for split, (images, labels) in files(source, folder).items()
    }
    rejected: list[Rejected] = []
    items = (
        item
        for split, (images, labels) in there.items()
        for item in _items(images, labels, split, where=place(images, directory), rejected=rejected)
    )
    return Listing(items, source.classes, rejected=rejected, made_from={"splits": sorted(there)})


def files(source: IdxSource, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Images and labels of every split that is there."""
    del source
    found = {split: _pair(folder, prefix) for prefix, split in SPLITS.items()}
    if not any(found.values()):
        names = ", ".join(f"{prefix}-images-idx3-ubyte[.gz]" for prefix in SPLITS)
        raise UserError(
            f"data.source.path: '{folder}' holds no idx images. Expected {names} and labels-idx1 beside them."
        )
    return {split: pair for split, pair in found.items() if pair}


def _pair(folder: Path, prefix: str) -> tuple[Path, Path] | None:
    """Images and labels; None where the split is not there."""
    pair: list[Path] = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        candidates = [folder / f"{prefix}-{kind}{ending}" for ending in (".gz", "")]
        candidates.append(folder / f"{prefix}-{kind.replace('-idx', '.idx')}")
        path = next((path for path in candidates if path.exists()), None)
        if path is None and pair:
            raise Incomplete(f"{folder} has {pair[0].name} but no {prefix}-{kind}. Put the labels beside the images.")
        if path is None:
            return None
        pair.append(path)
    return pair[0], pair[1]


def _items(images: Path, labels: Path, split: str, *, where: str, rejected: list[Rejected]) -> Iterator[Item]:
    shape, offset = _header(images, dimensions=3)
    (count,), start = _header(labels, dimensions=1)
    numbers = np.fromfile(labels, dtype=np.uint8, offset=start).tolist()
    size = shape[1] * shape[2]
    for row in range(shape[0]):
        key = f"{split}/{row:05d}"
        if row >= count:
            rejected.append(Rejected(key, "image_without_label", f"{labels.name} has {count} labels"))
            continue
        at = ("array", where, offset + row * size, [shape[1], shape[2], 1], "hwc")
        yield Item(key, at, label=numbers[row], split=split)
    for row in range(shape[0], count):
        rejected.append(Rejected(f"{split}/{row:05d}", "label_without_image", f"{images.name} has {shape[0]} images"))


def _header(path: Path, *, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Shape, and the byte where data start. The file must be of unsigned bytes and as long as it says."""
    with path.open("rb") as file:
        start = file.read(4 + 4 * dimensions)
    if start[:3] != b"\0\0\x08" or len(start) < 4 + 4 * dimensions or start[3] != dimensions:
        raise Incomplete(
            f"{path} is not an idx file of {dimensions} dimensions: it starts {start[:4]!r}. Get it again."
        )
    shape = struct.unpack(f">{dimensions}I", start[4:])
    expected = len(start) + int(np.prod(shape))
    if path.stat().st_size != expected:
        raise Incomplete(f"{path} has {path.stat().st_size} bytes, its header says {expected}. Get it again.")
    return shape, len(start)
