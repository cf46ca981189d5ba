"""The Frechet distance between two Gaussians (Dowson & Landau 1982; for images: Heusel et al. 2017, eq. 6)."""

import numpy as np

from pipeline.metrics.moments import Array, Moments


class Target:
    """One side of the distance, whose eigenvectors are found once, for many distances to it."""

    def __init__(self, reference: Moments) -> None:
        self.mean: Array = reference.mean
        self.trace = float(np.trace(reference.covariance))
        self.factor: Array = factor(reference)

    def exact(self, found: Moments) -> float:
        """|mean - mean|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), at least 0; of moments from at least 2 images.

        The trace of the root is the sum of the singular values of A1^T A2 where C = A A^T. Unlike a matrix square root
        it needs no epsilon on the diagonal and has no imaginary part for covariances of low rank, and it loses no
        digits to squaring.
        """
        return self._distance(found, float(np.linalg.svd(factor(found).T @ self.factor, compute_uv=False).sum()))

    def quick(self, found: Moments) -> float:
        """The same with one decomposition less; equal to about 1e-6 of the traces."""
        inner = self.factor.T @ found.covariance @ self.factor
        return self._distance(found, float(np.sqrt(np.maximum(np.linalg.eigvalsh(inner), 0)).sum()))

    def _distance(self, found: Moments, root: float) -> float:
        gap = float(((found.mean - self.mean) ** 2).sum())
        return max(gap + float(np.trace(found.covariance)) + self.trace - 2 * root, 0.0)


def frechet_distance(one: Moments, other: Moments) -> float:
    """The distance between moments of one set of features, from at least 2 images each. Symmetric."""
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"different features: {one.mean.shape} against {other.mean.shape} dimensions")
    return Target(other).exact(one)


def factor(part: Moments) -> Array:
    """A [D, rank] with A A^T = covariance, by its eigenvectors; directions below rounding error are left out."""
    values, vectors = np.linalg.eigh(part.covariance)
    keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, keep] * np.sqrt(values[keep]), np.float64)
