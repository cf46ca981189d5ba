"""Mean and covariance of features as sums that can be merged: over batches, files, processes. Always float64.

The scatter matrix is kept about the mean of each part and corrected when parts meet (Chan, Golub & LeVeque 1979,
"Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1), which loses nothing when the
mean is large against the spread.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """First two moments of `count` feature vectors: `mean` [D]; `scatter` [D, D], the sum of (f - mean)(f - mean)^T."""

    count: int
    mean: Array
    scatter: Array

    @property
    def covariance(self) -> Array:
        """Unbiased covariance [D, D]: scatter / (count - 1), as in every implementation of the Frechet distance.

        Raises:
            ValueError: with fewer than two vectors there is no covariance.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, found {self.count}")
        return self.scatter / (self.count - 1)


def moments(features: npt.NDArray[np.floating]) -> Moments:
    """Moments of features [N, D]. N may be 0."""
    values = np.asarray(features, np.float64)
    if len(values) == 0:
        return Moments(0, np.zeros(values.shape[1]), np.zeros((values.shape[1], values.shape[1])))
    mean = values.mean(axis=0)
    centred = values - mean
    return Moments(len(values), mean, centred.T @ centred)


def merge(one: Moments, other: Moments) -> Moments:
    """Moments of the union of two disjoint parts."""
    count = one.count + other.count
    if count == 0:
        return one
    shift = other.mean - one.mean
    mean = one.mean + shift * (other.count / count)
    between = np.outer(shift, shift) * (one.count * other.count / count)
    return Moments(count, mean, one.scatter + other.scatter + between)


def merged(parts: Iterable[Moments]) -> Moments:
    """Moments of the union of all parts, in the order given. At least one part."""
    total: Moments | None = None
    for part in parts:
        total = part if total is None else merge(total, part)
    if total is None:
        raise ValueError("no moments to merge: there were no features at all")
    return total
