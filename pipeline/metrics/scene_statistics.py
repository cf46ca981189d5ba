"""Natural scene statistics: what NIQE and BRISQUE read from one grey image. Numpy, float64.

Images of the world, divided by their local contrast, have nearly the same distribution of values; distortions change it
(Ruderman 1994; Mittal, Moorthy & Bovik 2012).
"""

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d
from scipy.special import gamma, gammaln

Array = npt.NDArray[np.float64]
WINDOW = 7  # of the Gaussian, whose standard deviation is 7 / 6
_SHAPES = np.arange(0.2, 10.001, 0.001)  # of the distributions that are tried


def grey(image: npt.NDArray[np.uint8]) -> Array:
    """[H, W, 1 or 3] uint8 -> [H, W], 0 to 255: ITU-R BT.601 luma, rounded as MATLAB's rgb2gray does."""
    if image.shape[2] == 1:
        return image[:, :, 0].astype(np.float64)
    weights = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])
    return np.asarray(np.round(image.astype(np.float64) @ weights), np.float64)


def normalised(image: Array, *, border: str) -> Array:
    """(I - mean) / (deviation + 1), Gaussian local moments (Mittal et al. 2012, eq. 1). `border`: zeros or nearest."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mode = {"zeros": "constant", "nearest": "nearest"}[border]

    def blurred(values: Array) -> Array:
        return np.asarray(correlate1d(correlate1d(values, window, 0, mode=mode), window, 1, mode=mode), np.float64)

    mean = blurred(image)
    return np.asarray((image - mean) / (np.sqrt(np.abs(blurred(image**2) - mean**2)) + 1), np.float64)


def neighbours(values: Array, shifts: tuple[tuple[int, int], ...]) -> Iterator[Array]:
    """Products of each value with its neighbour, for each shift; the image wraps around."""
    for shift in shifts:
        yield values * np.roll(values, shift, (0, 1))


@functools.cache
def _table(symmetric: bool) -> Array:
    """E|x|^2 / E[x^2] of a generalised Gaussian of each shape, ascending; its inverse for the symmetric fit."""
    log = gammaln(1 / _SHAPES) + gammaln(3 / _SHAPES) - 2 * gammaln(2 / _SHAPES)
    return np.asarray(np.exp(log if symmetric else -log), np.float64)


def symmetric_fit(values: Array) -> tuple[float, float]:
    """Shape and standard deviation of a generalised Gaussian, by its moments (Sharifi & Leon-Garcia 1995)."""
    square = float((values**2).mean())
    ratio = square / max(float(np.abs(values).mean()) ** 2, 1e-300)
    return float(_SHAPES[np.abs(_table(True) - ratio).argmin()]), float(np.sqrt(square))


def asymmetric_fit(values: Array) -> tuple[float, float, float]:
    """Shape, and deviation of the negative and the positive half (Lasmar et al. 2009). nan where a half is empty."""
    negative, positive = values[values < 0], values[values > 0]
    if len(negative) == 0 or len(positive) == 0:
        return float("nan"), float("nan"), float("nan")
    left, right = float(np.sqrt((negative**2).mean())), float(np.sqrt((positive**2).mean()))
    skew = left / right
    ratio = float(np.abs(values).mean()) ** 2 / float((values**2).mean())
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    return float(_SHAPES[np.abs(_table(False) - ratio).argmin()]), left, right


def spread(shape: float) -> float:
    """sqrt(gamma(1 / shape) / gamma(3 / shape)): from a standard deviation to a scale."""
    return float(np.sqrt(gamma(1 / shape) / gamma(3 / shape)))


def tail(shape: float) -> float:
    """gamma(2 / shape) / gamma(1 / shape)."""
    return float(gamma(2 / shape) / gamma(1 / shape))


def halved(image: Array) -> Array:
    """[H, W] at half the size by MATLAB's imresize(image, 0.5): antialiased bicubic, border mirrored."""
    return np.asarray(_half(image.shape[0]) @ image @ _half(image.shape[1]).T, np.float64)


@functools.lru_cache(maxsize=16)
def _half(size: int) -> Array:
    """[ceil(size / 2), size]: each output is a mix of the ten inputs around it, weights summing to 1."""
    outputs = np.arange(-(-size // 2))
    centre = (outputs + 0.5) * 2 - 0.5
    place = np.floor(centre - 4).astype(int)[:, None] + np.arange(10)
    x = np.abs(centre[:, None] - place) / 2
    weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * (x <= 2)
    weights /= weights.sum(1, keepdims=True)
    mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    matrix = np.zeros((len(outputs), size))
    np.add.at(matrix, (np.broadcast_to(outputs[:, None], place.shape), mirror[place % (2 * size)]), weights)
    return matrix
