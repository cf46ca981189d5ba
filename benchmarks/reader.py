"""How fast shuffled 64 px images leave the disk, next to what one would use instead, on one core.

    python benchmarks/reader.py [--images 4096] [--rounds 5]

Every contender reads the same images from its own format and gives shuffled uint8 batches of 256; rounds are
interleaved, so that a change of the machine's mood meets all of them, and the medians of images per second of CPU
time (all threads of the process) are compared. webdataset is installed with this project; the others are compared
where they are: pip install litdata mosaicml-streaming (in another environment: they pin much).
"""

import argparse
import importlib.metadata
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from reader_formats import (
    Pixels,
    photographs,
    read_litdata,
    read_mosaicml,
    read_ours,
    read_webdataset,
    write_litdata,
    write_mosaicml,
    write_ours,
)

SECONDS = 0.5  # of CPU time a measurement takes at least: a fast reader needs many epochs for a steady figure
TARGETS = {("raw", "webdataset png"): 50.0, ("png", "webdataset png"): 1.5}


@dataclass
class Contender:
    """A way to read one encoding, and what was measured of it."""

    name: str
    package: str
    encoding: str
    write: Callable[[Path, Pixels, str], None]
    read: Callable[[Path, int], Iterator[Pixels]]
    rates: list[float] = field(default_factory=list)

    def measure(self, directory: Path, first_epoch: int, images: Pixels) -> None:
        """Whole epochs for half a second: images per second of CPU time, opening included; their content is checked."""
        count, epoch = 0, first_epoch
        began = time.process_time()
        while time.process_time() - began < SECONDS:
            count += self._one_epoch(directory, epoch, images)
            epoch += 1
        self.rates.append(count / (time.process_time() - began))

    def _one_epoch(self, directory: Path, epoch: int, images: Pixels) -> int:
        total, count = 0, 0
        for batch in self.read(directory, epoch):
            count += len(batch)
            total += int(batch[:, 0, 0, 0].sum(dtype=np.int64))
        if count != len(images) or total != int(images[:, 0, 0, 0].sum(dtype=np.int64)):
            raise RuntimeError(f"{self.name} gave {count} images of {len(images)}, or others")
        return count


def contenders() -> list[Contender]:
    """Ours first; webdataset reads our own shards."""
    ways = {
        "ours": ("mudi", write_ours, read_ours),
        "webdataset": ("webdataset", write_ours, read_webdataset),
        "litdata": ("litdata", write_litdata, read_litdata),
        "mosaicml-streaming": ("mosaicml-streaming", write_mosaicml, read_mosaicml),
    }
    return [
        Contender(f"{name} {encoding}", package, encoding, write, read)
        for name, (package, write, read) in ways.items()
        for encoding in ("raw", "png")
    ]


def prepared(root: Path, images: Pixels) -> dict[str, tuple[Contender, Path]]:
    """Those whose data could be written; a library that is not there is passed over with the reason."""
    ready = {}
    for contender in contenders():
        directory = root / contender.name.replace(" ", "-")
        try:
            contender.write(directory, images, contender.encoding)
            next(contender.read(directory, 0))
        except ModuleNotFoundError as error:
            print(f"skipped: {contender.name}: {error} (pip install {contender.package})")
        else:
            ready[contender.name] = (contender, directory)
    return ready


def report(rates: dict[str, float]) -> None:
    """Images per second of each, and how many times as fast ours are."""
    width = max(map(len, rates))
    print(f"{'':{width}}  {'images/s':>9}  {'ours raw':>9}  {'ours png':>9}   of that")
    for name, rate in rates.items():
        ratios = "  ".join(f"{rates[f'ours {encoding}'] / rate:8.1f}x" for encoding in ("raw", "png"))
        print(f"{name:{width}}  {rate:9.0f}  {ratios}")
    for (encoding, other), target in TARGETS.items():
        if other in rates:
            ratio = rates[f"ours {encoding}"] / rates[other]
            verdict = "met" if ratio >= target else "MISSED"
            print(f"{encoding} against {other}: {ratio:.1f}x, target {target:g}x: {verdict}")


def main() -> None:
    """Write every format to a temporary directory, measure in turn, print."""
    arguments = argparse.ArgumentParser(description="Reading speed of one core, side by side.")
    arguments.add_argument("--images", type=int, default=4096)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    shared = Path(os.environ.get("MUDI_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    archive = shared / "data/flowers102_64.tar"
    images = photographs(archive, given.images)
    print(
        f"{len(images)} images of 64 px, {'Oxford Flowers' if archive.exists() else 'synthetic'}, {given.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as root:
        ready = prepared(Path(root), images)
        packages = sorted({contender.package for contender, _ in ready.values()} - {"mudi"} | {"pillow", "numpy"})
        print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages))
        for round_number in range(given.rounds):
            for contender, directory in ready.values():
                contender.measure(directory, 1000 * round_number, images)
        report({name: statistics.median(contender.rates) for name, (contender, _) in ready.items()})


if __name__ == "__main__":
    main()
