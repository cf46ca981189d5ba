"""The memorisation check over a sample set: which samples are copies of training images?"""

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.metrics.extraction import Floats, Read
from pipeline.metrics.memorisation import Closeness, closeness, copy_rate, mirrored, pixels
from pipeline.metrics.suite import Measured

QUERIES = 2048  # samples and held-out images looked at, at most: the cost is their number times the training set
_BLOCK = 1024


def measure_copies(
    samples: Read, count: int, reads: Mapping[str, Read], counts: Mapping[str, int], *, cfg: EvaluateConfig
) -> Measured:
    """`copy-rate-pixel`: share of samples suspiciously near to a training image, beside that of held-out images.

    Args:
        samples, count: the sample set.
        reads, counts: splits of the data set; the first is what was trained on, the second, if any, was held out.
    """
    out = Measured()
    names = list(reads)
    train, held = names[0], names[1] if len(names) > 1 else None
    found = _pixel_closeness(samples, count, reads[train], counts[train])
    beside = _pixel_closeness(reads[held], counts[held], reads[train], counts[train]) if held else None
    rate = copy_rate(found, beside, level=cfg.copy_level)
    out.add(
        "copy-rate-pixel",
        rate.rate,
        expected=rate.expected,
        threshold=rate.threshold,
        count=len(found.score),
        nearest_distance=float(np.median(found.distance)),
        nearest_distance_held_out=float(np.median(beside.distance)) if beside else None,
    )
    if beside is None:
        out.words.append("copy-rate-pixel is not calibrated: there are no held-out images (data.split.valid=0)")
    return out


def _pixel_closeness(read: Read, count: int, train: Read, train_count: int) -> Closeness:
    images = read(np.arange(min(count, QUERIES), dtype=np.int64))

    def candidates() -> Iterator[tuple[int, Floats]]:
        for start in range(0, train_count, _BLOCK):
            yield start, pixels(train(np.arange(start, min(start + _BLOCK, train_count), dtype=np.int64)))

    return closeness([pixels(images), pixels(mirrored(images))], candidates, count=train_count)
