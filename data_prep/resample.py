"""Pillow's resampling, to the bit, in half of its time where an image becomes much smaller.

Pillow weighs 8-bit pixels with whole numbers of 22 fractional bits and rounds after each of its two passes. Such sums
stay below 2^53, so float64 matrix products hold them exactly whatever the order of summation: a BLAS may do the work,
and the result is Pillow's on every machine (`tests/data_prep/test_jpeg.py` holds the two side by side). The weights
are stored as these numbers over 2^22, which changes exponents alone.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_BITS = 22  # Pillow's PRECISION_BITS: 32 less 8 for the pixel and 2 for overshoot
_TOGETHER = 1 << 16  # pixels of one product: what lies in float64 at a time stays in the cache


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)


def _bicubic(x: float) -> float:
    """Keys 1981 with a = -1/2."""
    x = abs(x)
    return (1.5 * x - 2.5) * x * x + 1 if x < 1 else (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


_LEVEL, _SWING = float(np.float32(0.54)), float(np.float32(0.46))  # Pillow writes 0.54f and 0.46f


def _hamming(x: float) -> float:
    x = abs(x)
    return 0.0 if x >= 1 else _sinc(x) * (_LEVEL + _SWING * math.cos(x * math.pi))


# name: half of the width at scale 1, and the curve, term by term as Pillow computes it
CURVES: dict[str, tuple[float, Callable[[float], float]]] = {
    "box": (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
    "bilinear": (1.0, lambda x: max(1 - abs(x), 0.0)),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, lambda x: _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0),
}


@dataclass(frozen=True)
class Taps:
    """Weights of the outputs in `to` as a matrix [inputs, outputs] over the inputs in `span`, and its transpose."""

    to: slice
    span: slice
    weights: Floats
    across: Floats


def resample(pixels: Pixels, size: int, *, curve: str) -> Pixels:
    """uint8 [N, N, C] -> [size, size, C], equal to `PIL.Image.resize((size, size), curve)`.

    Squares alone: of other images Pillow takes the passes in an order that depends on the sides.
    """
    side, other, channels = pixels.shape
    if side != other:
        raise ValueError(f"an image of {other}x{side} pixels, expected a square")
    if side == size:
        return pixels
    taps = _taps(side, size, curve)
    step = min(max(_TOGETHER // side, 16), side)
    planes, sums = np.empty((channels * step, side)), np.empty((channels * step, size))  # new pages cost more
    columns = np.empty((side, size, channels))
    for top in range(0, side, step):
        rows = pixels[top : top + step]
        wide, narrow = planes[: channels * len(rows)], sums[: channels * len(rows)]
        wide.reshape(channels, -1, side)[...] = rows.transpose(2, 0, 1)
        for tap in taps:
            np.matmul(wide[:, tap.span], tap.weights, out=narrow[:, tap.to])
        narrow += 0.5
        np.floor(narrow, out=narrow)
        out = columns[top : top + step].transpose(2, 0, 1)
        np.clip(narrow.reshape(out.shape), 0, 255, out=out)
    small, flat = np.empty((size, size * channels)), columns.reshape(side, -1)
    for tap in taps:
        np.matmul(tap.across, flat[tap.span], out=small[tap.to])
    small += 0.5
    np.clip(small, 0, 255, out=small)
    return small.astype(np.uint8).reshape(size, size, channels)  # from 0 on, this is the floor


@functools.lru_cache(maxsize=256)
def _taps(before: int, after: int, curve: str) -> tuple[Taps, ...]:
    """The weights of one axis, grouped (Pillow's Resample.c: precompute_coeffs, normalize_coeffs_8bpc)."""
    rows = [_weights(before, after, place, curve) for place in range(after)]
    together = 8 if before >= 4 * after else 16  # outputs of one product: more of them multiply more zeros
    groups = []
    for first in range(0, after, together):
        members = rows[first : first + together]
        start, end = min(s for s, _ in members), max(s + len(w) for s, w in members)
        matrix = np.zeros((end - start, len(members)))
        for column, (begin, weights) in enumerate(members):
            matrix[begin - start : begin - start + len(weights), column] = weights
        matrix *= 2.0**-_BITS
        across = np.ascontiguousarray(matrix.T)
        groups.append(Taps(slice(first, first + len(members)), slice(start, end), matrix, across))
    return tuple(groups)


def _weights(before: int, after: int, place: int, curve: str) -> tuple[int, list[int]]:
    """The first input pixel of an output pixel, and whole weights from there on: they add up to about 2^22."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach, shape = CURVES[curve]
    centre = (place + 0.5) * scale
    first = max(int(centre - reach * stretch + 0.5), 0)
    end = min(int(centre + reach * stretch + 0.5), before)
    weights = [shape((x - centre + 0.5) * (1 / stretch)) for x in range(first, end)]
    total = functools.reduce(float.__add__, weights, 0.0)  # not sum(): newer Pythons round it better than C does
    return first, [int(math.copysign(0.5, w) + w / total * (1 << _BITS)) for w in weights]
