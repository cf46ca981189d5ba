"""Quality and diversity apart: precision and recall, density and coverage, from balls around feature vectors.

Both take the space near a set to be the balls around its points that reach to the k-th nearest other point. Whether a
point is in a ball is decided as in float64, by the difference of the two vectors: distances come from float32 products
first, and every pair within their rounding error of a radius is computed again. So ties (copies, repeated images) count
as published, and no number depends on blocks. Memory does not grow with the square of the number of images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating]
DENSITY_NEIGHBOURS = 5  # as published
BLOCK = 1024  # rows whose distances to all others are in memory at once
PAIRS = 16_384  # differences in float64 at a time
SPARE = 8  # neighbours looked at beyond those asked for: float32 confuses near ones
MANY = 0.01  # share of pairs near a radius beyond which the products themselves are done again in float64


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


@dataclass(frozen=True)
class _Points:
    """The different rows of a set of vectors: `wide` [U, D] float64 and `narrow` float32, the squares of their lengths,
    how often each occurs, the first place of each, and for each of the N rows given which one it is."""

    wide: Tensor
    narrow: Tensor
    squares: Tensor
    counts: Tensor
    first: Tensor
    which: Tensor

    @classmethod
    def of(cls, features: Floats) -> "_Points":
        """Of features [N, D]. A collapsed set is copies, and copies need to be looked at once."""
        numbers: dict[bytes, int] = {}
        which = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in features])
        first = np.unique(which, return_index=True)[1]
        wide = torch.from_numpy(np.ascontiguousarray(features[first], np.float64))
        counts = torch.from_numpy(np.bincount(which))
        return cls(wide, wide.float(), wide.square().sum(1), counts, torch.from_numpy(first), torch.from_numpy(which))

    def __len__(self) -> int:
        return len(self.wide)

    def rows(self, some: slice | Tensor) -> "_Points":
        """Some of them."""
        lines = (self.wide[some], self.narrow[some], self.squares[some])
        return _Points(*lines, self.counts[some], self.first[some], self.which)

    def exact(self, rows: Tensor, others: "_Points", columns: Tensor) -> Tensor:
        """Squared distances [P] float64 of the rows with these numbers to others, pair by pair."""
        pairs = zip(torch.split(rows, PAIRS), torch.split(columns, PAIRS), strict=True)
        return torch.cat([(self.wide[r] - others.wide[c]).square().sum(1) for r, c in pairs])


def precision_recall(
    samples: Floats, reference: Floats, *, k: int = 3, block: int = BLOCK, reaches: Tensor | None = None
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1 to 3).

    Args:
        samples, reference: features [N, D], [M, D], both more than k.
        reaches: the reference's `radii` for this k [M], where they are known.
    """
    x, y = _Points.of(samples), _Points.of(reference)
    x_radius = radii(samples, (k,), block=block)[0]
    y_radius = radii(reference, (k,), block=block)[0] if reaches is None else reaches
    return PrecisionRecall(_near(x, y, y_radius, block=block), _near(y, x, x_radius, block=block))


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
    x, y = _Points.of(samples), _Points.of(reference)
    radius = radii(reference, (k,), block=block)[0] if reaches is None else reaches
    inside, covered = 0, torch.zeros(len(y), dtype=torch.bool)
    for start in range(0, len(x), block):
        part = x.rows(slice(start, start + block))
        found = _inside(part, y, radius[y.first], strictly=True)
        covered |= found.any(0)
        inside += int(part.counts @ (found.double() @ y.counts.double()).long())
    return DensityCoverage(inside / (k * len(samples)), float(y.counts[covered].sum()) / len(reference))


def radii(
    features: Floats, ks: Sequence[int], *, block: int = BLOCK, tick: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Squared distances [len(ks), N] from each row of `features` [N, D] to its k-th nearest other row, for each k.

    One pass for all of them: with N of 50,000 it is a minute of one core. `tick` is told how many rows are done.
    """
    y, most = _Points.of(features), max(ks)
    if len(features) <= most:
        raise ValueError(f"the {most}-th nearest neighbour needs more than {most} images, found {len(features)}")
    found = torch.empty(len(ks), len(y), dtype=torch.float64)
    for start in range(0, len(y), block):
        rows = torch.arange(start, min(start + block, len(y)))
        for dtype in (torch.float32, torch.float64):
            found[:, rows], proven = _kth(y, rows, ks, dtype=dtype)
            rows = rows[~proven]
            if not len(rows):
                break
        tick(int(y.counts[start : start + block].sum()))
    return found[:, y.which]


def _kth(points: _Points, rows: Tensor, ks: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Squared distances [len(ks), B] float64 from each of these rows to its k-th nearest other one, copies counted.

    Also whether they are proven [B]: with float32 products a point that was not looked at may be as near.
    """
    part, few = points.rows(rows), min(max(ks) + SPARE, len(points))
    squared, error = _rough(part, points, dtype)
    squared[torch.arange(len(rows)), rows] = -torch.inf  # itself, and its copies with it, come first
    distance, number = squared.topk(few, largest=False)
    distance = distance.double()
    reached = points.counts[number].cumsum(1)  # how many points are no farther, itself among them
    places = [(reached <= k).sum(1, keepdim=True).clamp(max=few - 1) for k in ks]
    near = torch.stack([(distance - distance.gather(1, place)).abs() <= 2 * error for place in places]).any(0)
    line, column = near.nonzero(as_tuple=True)
    distance[line, column] = part.exact(line, points, number[line, column])
    farthest = distance[:, -1:] - 2 * error
    distance, order = distance.sort(dim=1, stable=True)
    reached = points.counts[number.gather(1, order)].cumsum(1)
    found = torch.cat([distance.gather(1, (reached <= k).sum(1, keepdim=True).clamp(max=few - 1)) for k in ks], 1)
    proven = (found <= farthest).all(1) if few < len(points) and dtype == torch.float32 else torch.ones(len(rows)) > 0
    return found.clamp(min=0).T, proven


def _near(points: _Points, centres: _Points, radius: Tensor, *, block: int) -> float:
    """Share of the points that are in a ball, its edge included. `radius`: squared, of every centre given."""
    near = 0
    for start in range(0, len(points), block):
        part = points.rows(slice(start, start + block))
        near += int(part.counts[_inside(part, centres, radius[centres.first], strictly=False).any(1)].sum())
    return near / len(points.which)


def _inside(points: _Points, centres: _Points, radius: Tensor, *, strictly: bool) -> Tensor:
    """Whether each point is in the ball of squared `radius` [M] around each centre, [N, M] bool."""
    for dtype in (torch.float32, torch.float64):
        squared, error = _rough(points, centres, dtype)
        beyond = squared.sub_(radius.to(dtype))
        unsure = beyond.abs() <= error.to(dtype)
        if unsure.count_nonzero() <= MANY * unsure.numel():
            break
    inside = beyond < 0
    rows, columns = unsure.nonzero(as_tuple=True)
    if len(rows):
        exact, limit = points.exact(rows, centres, columns), radius[columns]
        inside[rows, columns] = exact < limit if strictly else exact <= limit
    return inside


def _rough(points: _Points, others: _Points, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Squared distances [N, M] by products, and by how much they may be wrong [N, 1]."""
    x, y = (p.narrow if dtype == torch.float32 else p.wide for p in (points, others))
    squares = points.squares[:, None], others.squares
    products = torch.addmm(squares[1].to(dtype), x, y.T, alpha=-2).add_(squares[0].to(dtype))
    # Rounding errors of a sum of D products grow as the root of D; several of that deviation, and those of the terms.
    rounding = (4 + 2 * math.sqrt(x.shape[1])) * torch.finfo(dtype).eps
    return products, rounding * (squares[0] + squares[1].max())
