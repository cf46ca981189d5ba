"""Conditional accuracy: is a sample recognised as what was asked for, its class or its attributes?"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers, its 95% interval, and the same by class (None where a class was never asked for)."""

    value: float
    low: float
    high: float
    count: int
    by_class: tuple[float | None, ...]


def conditional_accuracy(logits: npt.NDArray[np.floating], asked: npt.NDArray[np.integer]) -> Accuracy:
    """Accuracy of the most probable class against the class asked for.

    Args:
        logits: [N, K].
        asked: [N] integers; negative ones (no class asked for) are left out.
    Raises:
        ValueError: where no image has a class.
    """
    known = asked >= 0
    if not known.any():
        raise ValueError("no sample was asked for a class")
    right = (np.argmax(logits[known], axis=1) == asked[known]).astype(np.float64)
    classes = asked[known]
    by_class = tuple(
        float(right[classes == k].mean()) if (classes == k).any() else None for k in range(logits.shape[1])
    )
    low, high = wilson(float(right.sum()), len(right))
    return Accuracy(float(right.mean()), low, high, len(right), by_class)


@dataclass(frozen=True)
class AttributeAccuracy:
    """Mean over attributes of the share of right answers, its 95% interval, and each attribute's (None: never asked).

    `count`: samples that were asked for at least one attribute.
    """

    value: float
    low: float
    high: float
    count: int
    by_attribute: tuple[Accuracy | None, ...]


def attribute_accuracy(logits: npt.NDArray[np.floating], asked: npt.NDArray[np.integer]) -> AttributeAccuracy:
    """How often an attribute that was asked for (1) or excluded (0) is seen so; every attribute counts the same.

    Args:
        logits: [N, A], positive where the classifier sees the attribute.
        asked: [N, A] of 0, 1 and negative values (not asked), which are left out.
    Raises:
        ValueError: where nothing was asked.
    """
    known = asked >= 0
    if not known.any():
        raise ValueError("no sample was asked for an attribute")
    right = ((logits > 0) == (asked == 1)) & known
    counts, sums = known.sum(axis=0), right.sum(axis=0)
    each = tuple(
        Accuracy(s / n, *wilson(float(s), int(n)), int(n), ()) if n else None
        for s, n in zip(sums.tolist(), counts.tolist(), strict=True)
    )
    shares = sums / np.maximum(counts, 1)
    value = float(shares[counts > 0].mean())
    # Answers of one sample are not independent, samples are: the error is that of a sum over samples.
    moved = np.where(known, (right - shares) / np.maximum(counts, 1), 0.0).sum(axis=1) / (counts > 0).sum()
    half = 1.959963984540054 * float(np.sqrt((moved**2).sum()))
    total = int(known.any(axis=1).sum())
    return AttributeAccuracy(value, max(value - half, 0.0), min(value + half, 1.0), total, each)


def wilson(right: float, count: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927): sensible also at 0 and 1, where the normal one has no width."""
    z, p = 1.959963984540054, right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    # At a share of 0 or 1 the interval ends there, but for a rounding that would leave the share outside.
    return max(min(centre - half, p), 0.0), min(max(centre + half, p), 1.0)
