"""Quality and diversity apart: precision and recall, density and coverage, from balls around feature vectors.

Both take the space near a set to be the balls around its points that reach to the k-th nearest other point. Distances
are computed block by block in float64, so memory does not grow with the square of the number of images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating]
DENSITY_NEIGHBOURS = 5  # as published
BLOCK = 1024  # rows whose distances to all others are in memory at once


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision: share of samples near the real images. Recall: share of real images near the samples."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Density: real balls around a sample over k (may exceed 1). Coverage: share of real balls that hold a sample."""

    density: float
    coverage: float


def precision_recall(
    samples: Floats, reference: Floats, *, k: int = 3, block: int = BLOCK, reaches: Tensor | None = None
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1 to 3).

    Args:
        samples, reference: features [N, D], [M, D], both more than k.
        reaches: the reference's `radii` for this k [M], where they are known.
    """
    x, y = _tensor(samples), _tensor(reference)
    (x_radius,) = radii(samples, (k,), block=block)
    y_radius = radii(reference, (k,), block=block)[0] if reaches is None else reaches
    precision, recall = 0, torch.zeros(len(y), dtype=torch.bool)
    for part in torch.split(x, block):
        precision += int((_squared(part, y) <= y_radius).any(1).sum())
    for start in range(0, len(y), block):
        recall[start : start + block] = (_squared(y[start : start + block], x) <= x_radius).any(1)
    return PrecisionRecall(precision / len(x), float(recall.double().mean()))


def density_coverage(
    samples: Floats,
    reference: Floats,
    *,
    k: int = DENSITY_NEIGHBOURS,
    block: int = BLOCK,
    reaches: Tensor | None = None,
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, eqs. 2 and 3). Only real images have balls: an outlier among the samples
    cannot widen one. Arguments as of `precision_recall`."""
    x, y = _tensor(samples), _tensor(reference)
    radius = radii(reference, (k,), block=block)[0] if reaches is None else reaches
    inside, nearest = 0, torch.full((len(y),), torch.inf, dtype=torch.float64)
    for part in torch.split(x, block):
        squared = _squared(part, y)
        inside += int((squared < radius).sum())
        nearest = torch.minimum(nearest, squared.min(0).values)
    return DensityCoverage(inside / (k * len(x)), float((nearest < radius).double().mean()))


def radii(
    features: Floats, ks: Sequence[int], *, block: int = BLOCK, tick: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Squared distances [len(ks), N] from each row of `features` [N, D] to its k-th nearest other row, for each k.

    One pass for all of them: with N of 50,000 it is a minute of one core. `tick` is told how many rows are done.
    """
    y, most = _tensor(features), max(ks)
    if len(y) <= most:
        raise ValueError(f"the {most}-th nearest neighbour needs more than {most} images, found {len(y)}")
    found = []
    for start in range(0, len(y), block):
        squared = _squared(y[start : start + block], y)
        rows = torch.arange(len(squared))
        squared[rows, start + rows] = 0.0  # exactly itself, whatever rounding said
        found.append(squared.topk(most + 1, largest=False).values[:, list(ks)])  # kthvalue takes six times as long
        tick(len(squared))
    return torch.cat(found).T


def _tensor(features: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, np.float64))


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [N, M], at least 0."""
    products = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return products.add_(x.square().sum(1)[:, None]).clamp_min_(0.0)
