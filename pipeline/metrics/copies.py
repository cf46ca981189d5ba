"""The memorisation check over a sample set: which samples are copies of training images?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.metrics.extraction import Floats, Read, features_of
from pipeline.metrics.features import Extractor
from pipeline.metrics.memorisation import Blocks, Closeness, closeness, copy_rate, mirrored, pixels
from pipeline.metrics.references import Reference
from pipeline.metrics.suite import Measured, spaces_of

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


def measure_copies(
    samples: Images,
    train: Images,
    held_out: Images | None,
    *,
    extractor: Extractor | None,
    reference: Reference | None,
    cfg: EvaluateConfig,
    device: str,
) -> tuple[Measured, list[Worst]]:
    """`copy-rate-pixel` and, given a network and its features of the training images, `copy-rate-<network>`.

    Each is the share of samples suspiciously near to a training image, to be read beside that of held-out images.
    Returns the numbers, and the `cfg.worst` samples that are nearest in pixels, worst first.
    """
    out = Measured()
    of_pixels = _Search(pixels, lambda: _pixel_blocks(train), train.count, device)
    worst = _measure(out, "copy-rate-pixel", of_pixels, samples=samples, held_out=held_out, cfg=cfg)
    if extractor is not None and reference is not None:
        space = next(iter(s for s, what in spaces_of(extractor).items() if what.full))
        kept, numbers = reference.features(space), reference.indices()
        vectors = _vectors(extractor, space, batch=cfg.batch, device=device)
        search = _Search(vectors, lambda: [(0, kept)], len(kept), device)
        found = _measure(out, f"copy-rate-{extractor.name}", search, samples=samples, held_out=held_out, cfg=cfg)
        worst += [Worst(w.sample, int(numbers[w.train]), w.ratio) for w in found]
    if held_out is None:
        out.words.append("copy rates are not calibrated: there are no held-out images (data.split.valid=0)")
    return out, _first_of_each(worst)[: cfg.worst]


@dataclass(frozen=True)
class _Search:
    """A space to search in: images -> vectors, and the vectors of the training images."""

    vectors: Callable[[npt.NDArray[np.uint8]], Floats]
    candidates: Blocks
    count: int
    device: str

    def closeness(self, images: npt.NDArray[np.uint8]) -> Closeness:
        """How near images [N, H, W, C], or their mirror images, are to the training images."""
        views = [self.vectors(images), self.vectors(mirrored(images))]
        return closeness(views, self.candidates, count=self.count, device=self.device)


def _measure(
    out: Measured, name: str, search: _Search, *, samples: Images, held_out: Images | None, cfg: EvaluateConfig
) -> list[Worst]:
    found = search.closeness(samples.queries)
    beside = search.closeness(held_out.queries) if held_out is not None else None
    rate = copy_rate(found, beside, level=cfg.copy_level)
    out.add(
        name,
        rate.rate,
        expected=rate.expected,
        threshold=rate.threshold,
        count=len(found.score),
        searched=search.count,
        nearest_distance=float(np.median(found.distance)),
        nearest_distance_held_out=float(np.median(beside.distance)) if beside is not None else None,
    )
    ratio = found.score / max(rate.threshold, 1e-12)
    order = np.argsort(ratio, kind="stable")[: cfg.worst]
    return [Worst(int(k), int(found.index[k]), float(ratio[k])) for k in order]


def _first_of_each(worst: list[Worst]) -> list[Worst]:
    """Worst first, each sample once."""
    seen: dict[int, Worst] = {}
    for entry in sorted(worst, key=lambda w: (w.ratio, w.sample)):
        seen.setdefault(entry.sample, entry)
    return list(seen.values())


def _pixel_blocks(train: Images) -> Iterator[tuple[int, Floats]]:
    for start in range(0, train.count, _BLOCK):
        yield start, pixels(train.read(np.arange(start, min(start + _BLOCK, train.count), dtype=np.int64)))


def _vectors(extractor: Extractor, space: str, *, batch: int, device: str) -> Callable[[npt.NDArray[np.uint8]], Floats]:
    def vectors(images: npt.NDArray[np.uint8]) -> Floats:
        indices = np.arange(len(images), dtype=np.int64)
        found = features_of(indices, lambda k: images[k], extractor, batch=batch, device=device)
        return np.asarray(found[space].numpy())

    return vectors
