"""The memorisation check over a sample set: which samples are copies of training images?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.metrics.extraction import Floats, Read
from pipeline.metrics.memorisation import Blocks, Closeness, closeness, copy_rate, mirrored, pixels
from pipeline.metrics.suite import Measured
from pipeline.runtime.progress import progress

QUERIES = 2048  # samples and held-out images looked at, at most: the cost is their number times the training set
_BLOCK = 1024


@dataclass(frozen=True)
class Images:
    """A set of images by number: `read(indices)` -> uint8 [B, H, W, C]."""

    read: Read
    count: int

    @property
    def queries(self) -> npt.NDArray[np.uint8]:
        """The first images, at most QUERIES."""
        return self.read(np.arange(min(self.count, QUERIES), dtype=np.int64))


@dataclass(frozen=True)
class Worst:
    """A sample, the training image nearest to it, and how near they are against the threshold (below 1: a copy)."""

    sample: int
    train: int
    ratio: float


@dataclass(frozen=True)
class InFeatures:
    """A network's features to search in: of the samples and of held-out images as they are and mirrored, [N, D] each,
    and of training images, with their numbers."""

    network: str
    samples: Sequence[Floats]
    held_out: Sequence[Floats] | None
    train: Floats
    numbers: npt.NDArray[np.int64]


def measure_copies(
    samples: Images,
    train: Images,
    held_out: Images | None,
    *,
    features: InFeatures | None,
    cfg: EvaluateConfig,
    device: str,
) -> tuple[Measured, list[Worst]]:
    """`copy-rate-pixel` and, given features, `copy-rate-<network>`.

    Each is the share of samples suspiciously near to a training image, to be read beside that of held-out images.
    Returns the numbers, and the `cfg.worst` samples that are nearest in pixels, worst first.
    """
    out, sets = Measured(), [samples] if held_out is None else [samples, held_out]
    with progress("copies of training images, in pixels", len(sets) * train.count) as tick:
        queries = [images.queries for images in sets]
        search = _Search(lambda: _pixel_blocks(train, tick), train.count, device)
        found = [search.closeness([pixels(some), pixels(mirrored(some))]) for some in queries]
    worst = _measure(out, "copy-rate-pixel", found, searched=train.count, cfg=cfg)
    if features is not None:
        search = _Search(lambda: [(0, features.train)], len(features.train), device)
        views = [features.samples] if features.held_out is None else [features.samples, features.held_out]
        name, found = f"copy-rate-{features.network}", [search.closeness(some) for some in views]
        nearest = _measure(out, name, found, searched=search.count, cfg=cfg)
        worst += [Worst(w.sample, int(features.numbers[w.train]), w.ratio) for w in nearest]
    if held_out is None:
        out.notes.append("copy rates are not calibrated: there are no held-out images (data.split.valid=0)")
    return out, _first_of_each(worst)[: cfg.worst]


@dataclass(frozen=True)
class _Search:
    """What is searched: the vectors of the training images."""

    candidates: Blocks
    count: int
    device: str

    def closeness(self, views: Sequence[Floats]) -> Closeness:
        """How near images, or their mirror images, are to the training images."""
        return closeness(views, self.candidates, count=self.count, device=self.device)


def _measure(
    out: Measured, name: str, found: Sequence[Closeness], *, searched: int, cfg: EvaluateConfig
) -> list[Worst]:
    """`found`: of the samples, and of held-out images where there are any."""
    samples, beside = found[0], found[1] if len(found) > 1 else None
    rate = copy_rate(samples, beside, level=cfg.copy_level)
    out.add(
        name,
        rate.rate,
        expected=rate.expected,
        threshold=rate.threshold,
        count=len(samples.score),
        searched=searched,
        nearest_distance=float(np.median(samples.distance)),
        nearest_distance_held_out=float(np.median(beside.distance)) if beside is not None else None,
    )
    ratio = samples.score / max(rate.threshold, 1e-12)
    order = np.argsort(ratio, kind="stable")[: cfg.worst]
    return [Worst(int(k), int(samples.index[k]), float(ratio[k])) for k in order]


def _first_of_each(worst: list[Worst]) -> list[Worst]:
    """Worst first, each sample once."""
    seen: dict[int, Worst] = {}
    for entry in sorted(worst, key=lambda w: (w.ratio, w.sample)):
        seen.setdefault(entry.sample, entry)
    return list(seen.values())


def _pixel_blocks(train: Images, tick: Callable[[int], None]) -> Iterator[tuple[int, Floats]]:
    for start in range(0, train.count, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, train.count), dtype=np.int64)
        yield start, pixels(train.read(numbers))
        tick(len(numbers))
