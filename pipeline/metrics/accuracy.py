"""Conditional accuracy: is a sample recognised as the class that was asked for?"""

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


def wilson(right: float, count: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927): sensible also at 0 and 1, where the normal one has no width."""
    z, p = 1.959963984540054, right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)
