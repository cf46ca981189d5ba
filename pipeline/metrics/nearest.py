"""Nearest neighbours by brute force, in blocks: exact, and memory does not grow with the number of images."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.floating]

SLACK = 1e-4
PAIRS = 65536  # distances in float64 at a time


@dataclass(frozen=True)
class Neighbours:
    """For each of N queries its k nearest: `distance` [N, k] ascending (Euclidean), `index` [N, k] int64."""

    distance: npt.NDArray[np.float64]
    index: npt.NDArray[np.int64]


def nearest(
    queries: Floats, candidates: Floats, *, k: int = 1, skip_self: bool = False, block: int = 2048
) -> Neighbours:
    """The `k` nearest rows of `candidates` [M, D] for each row of `queries` [N, D]; fewer where M is smaller.

    Args:
        skip_self: `queries` are `candidates`: a row is no neighbour of itself (equal rows elsewhere still are).
        block: rows of candidates at a time; the result does not depend on it.
    """
    blocks = ((start, candidates[start : start + block]) for start in range(0, len(candidates), block))
    return nearest_streamed(queries, blocks, k=min(k, len(candidates) - skip_self), skip_self=skip_self)


def nearest_streamed(
    queries: Floats,
    blocks: Iterable[tuple[int, Floats]],
    *,
    k: int = 1,
    skip_self: bool = False,
    device: str = "cpu",
) -> Neighbours:
    """As `nearest`, with candidates that arrive as (first index, rows): a data set larger than memory.

    Distances among float32 rows are found in float32 (to choose) and computed again in float64 (to report).
    """
    q = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device)
    best = torch.full((len(q), k), torch.inf, dtype=torch.float64, device=device)
    index = torch.full((len(q), k), -1, dtype=torch.int64, device=device)
    for start, rows in blocks:
        c = torch.from_numpy(np.ascontiguousarray(rows, np.float32)).to(device)
        for a in range(0, len(q), 2048):
            part, skip_from = slice(a, min(a + 2048, len(q))), a if skip_self else None
            distance, local = _block(q[part], c, worst=best[part, -1], k=k, start=start, first=skip_from)
            joined = torch.cat([best[part], distance], 1)
            order = joined.sort(dim=1, stable=True)  # stable: of equal distances the smaller index, however blocked
            best[part] = order.values[:, :k]
            index[part] = torch.cat([index[part], local], 1).gather(1, order.indices[:, :k])
    return Neighbours(best.cpu().numpy(), index.cpu().numpy())


def _block(
    q: torch.Tensor, c: torch.Tensor, *, worst: torch.Tensor, k: int, start: int, first: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates of one block that may be nearer than the `worst` [n] kept so far.

    Returns (distance [n, few] float64 exact, inf for those that are not nearer; index [n, few] global).
    """
    squares = (q * q).sum(1, keepdim=True), (c * c).sum(1)
    rough = squares[0] + squares[1] - 2 * q @ c.T
    if first is not None:
        numbers = torch.arange(len(q), device=q.device)
        rows = numbers + first - start
        inside = (rows >= 0) & (rows < len(c))
        rough[numbers[inside], rows[inside]] = torch.inf
    # Float32 errs by less than SLACK of the vectors' squares; after a few blocks hardly anything is left to look at.
    bound = worst.square() + SLACK * (squares[0][:, 0] + squares[1].max()).double()
    few = min(k + 4, len(c))  # a few more than asked: float32 may confuse near-equals
    local = rough.topk(few, dim=1, largest=False).indices.sort(dim=1).values
    found = rough.gather(1, local).double()
    rows, places = ((found <= bound[:, None]) & found.isfinite()).nonzero(as_tuple=True)
    exact = torch.full(local.shape, torch.inf, dtype=torch.float64, device=q.device)
    for some in torch.split(torch.arange(len(rows), device=q.device), PAIRS):
        r, p = rows[some], places[some]
        exact[r, p] = (q[r].double() - c[local[r, p]].double()).square().sum(1).sqrt()
    return exact, local + start
