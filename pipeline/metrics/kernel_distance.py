"""Squared maximum mean discrepancies: KID and CMMD. Unlike a Frechet distance, KID has no bias from few images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.metrics.moments import Array

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets of `size` images from either side."""

    mean: float
    std: float
    subsets: int
    size: int


def kid(samples: Floats, reference: Floats, *, subsets: int, size: int, seed: int) -> KernelDistance:
    """The kernel inception distance (Binkowski et al. 2018, section 4): unbiased MMD^2, kernel (x.y / D + 1)^3.

    The subsets are torch-fidelity's for the same seed. Where a side has fewer images than `size`, subsets are smaller.

    Args:
        samples, reference: features [N, D] and [M, D].
    """
    size = min(size, len(samples), len(reference))
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = samples[rng.choice(len(samples), size, replace=False)]
        y = reference[rng.choice(len(reference), size, replace=False)]
        values.append(polynomial_mmd2(x, y))
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subsets, size)


def polynomial_mmd2(x: Floats, y: Floats) -> float:
    """Unbiased MMD^2 of [N, D] and [M, D] with the cubic kernel: its mean is 0 where both have one distribution."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(a), len(b)
    kxx, kyy, kxy = _cubic(a, a), _cubic(b, b), _cubic(a, b)
    within = (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (m * (m - 1))
    return float(within - 2 * kxy.mean())


def _cubic(x: Array, y: Array) -> Array:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3, np.float64)


def cmmd(samples: Floats, reference: Floats, *, bandwidth: float = 10.0, block: int = 2048) -> float:
    """1000 MMD^2 of unit embeddings with a Gaussian kernel (Jayasumana et al. 2024, eq. 4), diagonal included.

    Args:
        samples, reference: CLIP embeddings [N, D] and [M, D]; they are normalised here.
    """
    x, y = _unit(samples), _unit(reference)
    means = [_gaussian_mean(a, b, bandwidth=bandwidth, block=block) for a, b in ((x, x), (y, y), (x, y))]
    return 1000 * (means[0] + means[1] - 2 * means[2])


def _unit(features: Floats) -> Array:
    wide = np.asarray(features, np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float64)


def _gaussian_mean(x: Array, y: Array, *, bandwidth: float, block: int) -> float:
    total = 0.0
    for start in range(0, len(x), block):
        squared = np.maximum(2 - 2 * x[start : start + block] @ y.T, 0)  # of vectors of length 1
        total += float(np.exp(-squared / (2 * bandwidth**2)).sum())
    return total / (len(x) * len(y))
