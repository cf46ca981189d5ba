"""Resizing to a network's input size. The resize is part of a metric: the same images give other numbers under another.

Each protocol is two matrices, one for rows and one for columns, so it is one way of computing for all of them and
agrees on every device. Pixels stay real numbers: none of the protocols rounds after resizing.

    tf1           TensorFlow 1's bilinear, corners not aligned, without half-pixel centres: what FID's graph does
    clean         Pillow's bicubic with antialiasing in floating point, then cut to 0 ... 255: a bicubic curve swings
                  beyond its ends (Parmar et al. 2022, clean-fid)
    torchmetrics  bilinear with antialiasing, half-pixel centres: the default of torchmetrics from 1.8
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.runtime.constants import beside

PROTOCOLS = ("tf1", "clean", "torchmetrics")


@functools.lru_cache(maxsize=32)
def matrix(before: int, after: int, protocol: str) -> Tensor:
    """Weights [after, before], float32: row k says how output k is mixed from the input. Rows sum to 1."""
    if protocol == "tf1":
        return _tensorflow(before, after)
    if protocol == "clean":
        return _pillow(before, after, support=2.0, kernel=_cubic)
    if protocol == "torchmetrics":
        return _pillow(before, after, support=1.0, kernel=_triangle)
    raise ValueError(f"resize protocol '{protocol}' is not one of {', '.join(PROTOCOLS)}")


def resize(images: Tensor, size: int, protocol: str) -> Tensor:
    """Images [B, C, H, W] of any dtype, values 0 to 255 -> float32 [B, C, size, size]."""
    rows, columns = (beside(matrix(side, size, protocol), images, torch.float32) for side in images.shape[2:])
    found = rows @ (images.to(torch.float32) @ columns.T)
    return found.clamp_(0, 255) if protocol == "clean" else found


def _tensorflow(before: int, after: int) -> Tensor:
    """Source position k * before / after, in float32 as TensorFlow computes it."""
    position = torch.arange(after, dtype=torch.float32) * torch.tensor(before / after, dtype=torch.float32)
    low = position.floor().long().clamp(max=before - 1)
    high = (low + 1).clamp(max=before - 1)
    share = position - low
    weights = torch.zeros(after, before)
    rows = torch.arange(after)
    weights.index_put_((rows, low), 1 - share, accumulate=True)
    weights.index_put_((rows, high), share, accumulate=True)
    return weights


def _pillow(before: int, after: int, *, support: float, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Pillow's `precompute_coeffs`: the kernel is widened when the image shrinks, cut at the border, and normalised."""
    scale = before / after
    widened = max(scale, 1.0)
    centre = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    first = (centre - support * widened + 0.5).floor().clamp(min=0)
    last = (centre + support * widened + 0.5).floor().clamp(max=before)
    place = torch.arange(before, dtype=torch.float64)
    weights = kernel((place[None] - centre[:, None] + 0.5) / widened)
    inside = (place[None] >= first[:, None]) & (place[None] < last[:, None])
    weights = torch.where(inside, weights, torch.zeros_like(weights))
    return (weights / weights.sum(1, keepdim=True)).float()


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys's cubic with a = -0.5, as Pillow has it."""
    x, a = x.abs(), -0.5
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))
