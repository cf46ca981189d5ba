"""The Frechet distance between two Gaussians (Dowson & Landau 1982; for images: Heusel et al. 2017, eq. 6)."""

import numpy as np

from pipeline.metrics.moments import Array, Moments


def frechet_distance(one: Moments, other: Moments) -> float:
    """|mean - mean|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0.

    The trace of the root is the sum of the singular values of A1^T A2 where C = A A^T. Unlike a matrix square root it
    needs no epsilon on the diagonal and has no imaginary part for covariances of low rank, and it loses no digits to
    squaring. Symmetric in its arguments.

    Args:
        one, other: moments of the same number of dimensions, from at least 2 images each.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features of different spaces: {one.mean.shape} against {other.mean.shape} dimensions")
    gap = float(((one.mean - other.mean) ** 2).sum())
    spread = float(np.trace(one.covariance) + np.trace(other.covariance))
    cross = np.linalg.svd(factor(one).T @ factor(other), compute_uv=False).sum()
    return max(gap + spread - 2 * float(cross), 0.0)


def factor(part: Moments) -> Array:
    """A [D, rank] with A A^T = covariance, by its eigenvectors; directions below rounding error are left out."""
    values, vectors = np.linalg.eigh(part.covariance)
    keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, keep] * np.sqrt(values[keep]), np.float64)
