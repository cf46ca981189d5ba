"""Which image a sample index shows: a pure function of (seed, sample index), for any number of ranks and workers.

Sample indices count from 0 without end. Index v is position v % size of epoch v // size, and an epoch is a keyed
permutation of the images, computed where it is asked for: no list is kept, and every position costs the same.

The tail rule: there is no tail. A batch that reaches the end of an epoch goes on in the next one, so each epoch shows
each sample exactly once, nothing is dropped or repeated, and every rank has the same number of steps.

Samples are shuffled over the whole data set, not in windows of it: a batch is as mixed as it can be, and each record is
read where it lies. On a slow network file system the first epoch pays a random read a sample for that, which threads
that read ahead hide (`train.workers`); later ones meet the page cache, where the data fit in memory.

The permutation is a Feistel network on a grid a x b with a * b >= size, with points outside walked over (Black and
Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

import functools
import math

import numpy as np
import numpy.typing as npt
import torch

from pipeline.runtime.random import Stream, philox

Integers = npt.NDArray[np.int64]

_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # SplitMix64's finaliser (Steele et al. 2014)


def images_of(sample_indices: Integers, *, seed: int, size: int) -> Integers:
    """The image that each sample index shows.

    sample_indices: int64 >= 0, any shape; size: number of images, in [1, 2**62). Returns int64 in [0, size).
    """
    if size < 1:
        raise ValueError(f"there is no order of {size} samples")
    epochs, positions = np.divmod(sample_indices.reshape(-1), size)
    present, which = np.unique(epochs, return_inverse=True)
    keys = _round_keys(seed, tuple(present.tolist()))[:, which]
    return permuted(positions, size, keys=keys).reshape(sample_indices.shape)


def permuted(positions: Integers, size: int, *, keys: npt.NDArray[np.uint64]) -> Integers:
    """Keyed permutations of range(size): each position [B] in the permutation of its keys, uint64 [rounds, B].

    A point that lands outside range(size) is sent on until it lies inside: a bijection of the grid becomes one of
    range(size). Less than one point in sqrt(size) is.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    result = _feistel(positions, a, b, keys=keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        result[outside] = _feistel(result[outside], a, b, keys=keys[:, outside])
        outside = outside[result[outside] >= size]
    return result


@functools.lru_cache(maxsize=8)
def _round_keys(seed: int, epochs: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """64-bit keys [rounds, epochs], from the stream ORDER of the seed and the epochs."""
    epoch = torch.tensor(epochs, dtype=torch.int64)
    counters = torch.zeros(_ROUNDS // 2, len(epochs), 4, dtype=torch.int64)
    counters[..., 0] = torch.arange(_ROUNDS // 2)[:, None]
    counters[..., 1], counters[..., 2], counters[..., 3] = epoch & 0xFFFFFFFF, epoch >> 32, int(Stream.ORDER)
    words = philox(counters, (seed & 0xFFFFFFFF, seed >> 32)).numpy().astype(np.uint64)
    low, high = words[..., 0::2], words[..., 1::2]  # [blocks, epochs, 2]
    return (low | high << np.uint64(32)).swapaxes(1, 2).reshape(_ROUNDS, len(epochs))


def _feistel(points: Integers, a: int, b: int, *, keys: npt.NDArray[np.uint64]) -> Integers:
    """A keyed bijection of range(a * b): each round shifts one coordinate by a hash of the other, and swaps them."""
    left, right = np.divmod(points, b)
    for key in keys:
        shifted = left + _hash(right, key, size=a)
        shifted -= a * (shifted >= a)
        left, right = right, shifted
        a, b = b, a
    return left * b + right


def _hash(values: Integers, key: npt.NDArray[np.uint64], *, size: int) -> Integers:
    """A well mixed number in [0, size) for each value; size < 2**32."""
    x = values.astype(np.uint64) + key
    x ^= x >> np.uint64(30)
    x *= _MIX[0]
    x ^= x >> np.uint64(27)
    x *= _MIX[1]
    x >>= np.uint64(32)
    x *= np.uint64(size)
    x >>= np.uint64(32)
    return x.astype(np.int64)
