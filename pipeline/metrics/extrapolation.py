"""How sure a Frechet distance is, and what it would be with infinitely many samples."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from pipeline.metrics.frechet import Target
from pipeline.metrics.moments import Moments, merged, moments

ENOUGH = 10_000
POINTS = 15


@dataclass(frozen=True)
class Interval:
    """A 95% interval and the standard error it comes from."""

    low: float
    high: float
    error: float
    blocks: int


@dataclass(frozen=True)
class Limit:
    """The distance at infinitely many samples, and the line's points: (samples, distance)."""

    value: float
    points: tuple[tuple[int, float], ...]


def jackknife(groups: list[Moments], target: Target) -> Interval | None:
    """95% interval of the distance, from leaving out one block of seeds after another (Efron & Stein 1981).

    Blocks by themselves would not do: the bias of a Frechet distance depends on the number of images, which is nearly
    the same here. None where there are fewer than two blocks of two images.
    """
    groups = [group for group in groups if group.count]
    if len(groups) < 2 or sum(g.count for g in groups) - max(g.count for g in groups) < 2:
        return None
    values = np.array([target.quick(merged(g for k, g in enumerate(groups) if k != out)) for out in range(len(groups))])
    count = len(groups)
    error = float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))
    centre = target.quick(merged(groups))
    half = float(stdtrit(count - 1, 0.975)) * error  # of Student's t; scipy.stats loads for a second
    return Interval(max(centre - half, 0.0), centre + half, error, count)


def at_infinity(features: npt.NDArray[np.floating], target: Target, *, seed: int) -> Limit | None:
    """FID-infinity (Chong & Forsyth 2020): distances at growing numbers of samples are a line in 1 / number.

    The subsets are random, fixed by `seed`; from 5,000 images (or half of a smaller set) to all. None where half of the
    set has no more images than dimensions: the line is then none.
    """
    count, dimensions = features.shape
    smallest = 5000 if count >= ENOUGH else count // 2
    if smallest <= dimensions:
        return None
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(smallest, count, POINTS).astype(int))
    points = [(int(n), target.quick(moments(features[rng.permutation(count)[:n]]))) for n in sizes]
    line = np.polyfit([1 / n for n, _ in points], [value for _, value in points], 1)
    return Limit(float(line[1]), tuple(points))
