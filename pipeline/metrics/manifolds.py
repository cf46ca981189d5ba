"""Quality and diversity apart: precision and recall, density and coverage, from balls around feature vectors.

Both take the space near a set to be the balls around its points that reach to the k-th nearest other point. Distances
are computed block by block in float64, so memory does not grow with the square of the number of images.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating]
DENSITY_NEIGHBOURS = 5  # as published


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


def precision_recall(samples: Floats, reference: Floats, *, k: int = 3, block: int = 2048) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1 to 3).

    Args:
        samples, reference: features [N, D], [M, D], both more than k.
    """
    x, y = _tensor(samples), _tensor(reference)
    x_radius, y_radius = radii(x, k=k, block=block), radii(y, k=k, block=block)
    precision, recall = 0, torch.zeros(len(y), dtype=torch.bool)
    for part in torch.split(x, block):
        precision += int((_squared(part, y) <= y_radius).any(1).sum())
    for start in range(0, len(y), block):
        recall[start : start + block] = (_squared(y[start : start + block], x) <= x_radius).any(1)
    return PrecisionRecall(precision / len(x), float(recall.double().mean()))


def density_coverage(
    samples: Floats, reference: Floats, *, k: int = DENSITY_NEIGHBOURS, block: int = 2048
) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, eqs. 2 and 3). Only real images have balls: an outlier among the samples
    cannot widen one."""
    x, y = _tensor(samples), _tensor(reference)
    radius = radii(y, k=k, block=block)
    inside, nearest = 0, torch.full((len(y),), torch.inf, dtype=torch.float64)
    for part in torch.split(x, block):
        squared = _squared(part, y)
        inside += int((squared < radius).sum())
        nearest = torch.minimum(nearest, squared.min(0).values)
    return DensityCoverage(inside / (k * len(x)), float((nearest < radius).double().mean()))


def radii(features: Tensor, *, k: int, block: int) -> Tensor:
    """Squared distance [N] from each row to its k-th nearest other row."""
    if len(features) <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} images, found {len(features)}")
    found = []
    for start in range(0, len(features), block):
        squared = _squared(features[start : start + block], features)
        rows = torch.arange(len(squared))
        squared[rows, start + rows] = 0.0  # exactly itself, whatever rounding said
        found.append(squared.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)


def _tensor(features: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, np.float64))


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [N, M], at least 0."""
    return (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T).clamp_min_(0.0)
