"""Random numbers as functions: (seed, stream, image number) -> values. No state, no generator, no order of calls.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in torch integer operations, so it
runs on any device. The counter is (block, number low, number high, stream + 256 * draw), the key is the seed. What
image number k gets never depends on the batch, the rank or the worker it is computed in. Words, uniform values and
choices are the same bits on any device, compiled or not; normal values are up to the rounding of its logarithm and
cosine. A GPU with Triton draws in one kernel, see `philox_triton`.
"""

import functools
import importlib.util
import math
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_TILE = 2**15  # counters worked on at once on a CPU: fewer cost more calls, more leave its second-level cache
_TILE_GPU = 2**20  # likewise on a GPU without Triton, and it bounds the memory
_BLOCK = {torch.float32: 4, torch.float64: 4, torch.bool: 8}  # values made from one counter

Words = tuple[Tensor, Tensor, Tensor, Tensor]
Transform = Callable[[Words, Tensor], None]


class Stream(IntEnum):
    """What a draw is for. The numbers are part of every result: add new ones at the end, never change or reuse one."""

    ORDER = 0
    SIGMA = 1
    NOISE = 2
    LABEL_DROP = 3
    FLIP = 4
    AUGMENT = 5
    POSTERIOR = 6
    DROPOUT = 7
    SAMPLE_START = 8
    SAMPLE_STEP = 9
    CLASSES = 10
    VALIDATION = 11
    LATENT = 12  # input of a generator that is no diffusion model
    STYLE_MIX = 13
    PENALTY = 14  # interpolation points of a gradient penalty
    LAYER_NOISE = 15
    DEGRADE = 16  # of images that an autoencoder is to reconstruct
    ADA = 17  # augmentation of what a discriminator sees
    PATH = 18  # directions in which the length of a generator's path is measured


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox 4x32-10 of each counter.

    counter: [..., 4] int64 holding 32-bit words; key: two 32-bit words.
    Returns [..., 4] int64 in [0, 2**32), the same words as Random123's `philox4x32_R(10, counter, key)`.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    return torch.stack(_rounds((c0, c1, c2, c3), key), dim=-1)


def uniform(
    seed: int,
    stream: Stream,
    numbers: Tensor,
    *,
    shape: tuple[int, ...] = (),
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform values in the open interval (0, 1), [B, *shape], on the device of `numbers`.

    numbers: [B] int64 >= 0, the image numbers; draw in [0, 2**24) separates several draws of one stream and number.
    float64 has 32 random bits, float32 the upper 23 of them (more would round up to 1). A longer shape begins with
    the values of a shorter one.
    """
    if fused(numbers.device):
        return _one_kernel("uniform", seed, stream, numbers, shape=shape, draw=draw, dtype=dtype)
    return _fill(_uniform_words, seed, stream, numbers, shape=shape, draw=draw, dtype=dtype)


def normal(
    seed: int,
    stream: Stream,
    numbers: Tensor,
    *,
    shape: tuple[int, ...] = (),
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal values, [B, *shape], by Box and Muller's transform; arguments as for `uniform`.

    The 32 random bits of a radius bound them by sqrt(66 log 2) = 6.76.
    """
    if fused(numbers.device):
        return _one_kernel("normal", seed, stream, numbers, shape=shape, draw=draw, dtype=dtype)
    return _fill(_normal_words, seed, stream, numbers, shape=shape, draw=draw, dtype=dtype)


def chosen(
    seed: int, stream: Stream, numbers: Tensor, *, share: float, shape: tuple[int, ...] = (), draw: int = 0
) -> Tensor:
    """True with probability `share`, to the nearest 2**-16: bool [B, *shape]; arguments as for `uniform`.

    For masks of many values, such as dropout's: it takes half as long as comparing uniform values.
    """
    threshold = round(share * 2**16)
    if fused(numbers.device):
        return _one_kernel("chosen", seed, stream, numbers, shape=shape, draw=draw, threshold=threshold)
    transform = functools.partial(_chosen_words, threshold)
    return _fill(transform, seed, stream, numbers, shape=shape, draw=draw, dtype=torch.bool)


def drop(x: Tensor, seed: int, stream: Stream, numbers: Tensor, *, share: float, draw: int = 0) -> Tensor:
    """x / (1 - share), but zero where `chosen` is true for the same arguments and the shape [B, *x.shape[1:]].

    One kernel, on a device that is `fused`: there is no mask in memory. x: contiguous or channels_last, as is the
    result. No gradient.
    """
    from pipeline.runtime import philox_triton

    key, last, threshold = _key(seed), _last(stream, draw), round(share * 2**16)
    return philox_triton.drop(x, numbers, share=share, key=key, last=last, threshold=threshold)


def fused(device: torch.device) -> bool:
    """Whether draws on `device` are single Triton kernels: on CUDA, of a capability that Triton compiles for.

    Call `for_the_compiler` before something that asks for it is compiled.
    """
    return device.type == "cuda" and _triton_compiles_for(device.index)


def for_the_compiler() -> None:
    """Tell torch's compiler that `fused` does not change. Not a decorator: it loads the compiler, for a second."""
    torch.compiler.assume_constant_result(fused)  # type: ignore[no-untyped-call]


@functools.cache
def _triton_compiles_for(index: int | None) -> bool:
    found = importlib.util.find_spec("triton") is not None
    return found and torch.cuda.get_device_capability(index) >= (7, 0)


def _key(seed: int) -> tuple[int, int]:
    return seed & _LOW, seed >> 32


def _last(stream: Stream, draw: int) -> int:
    """The fourth word of a counter."""
    return int(stream) | draw << 8


def _one_kernel(
    kind: str,
    seed: int,
    stream: Stream,
    numbers: Tensor,
    *,
    shape: tuple[int, ...],
    draw: int,
    dtype: torch.dtype = torch.bool,
    threshold: int = 0,
) -> Tensor:
    _check(dtype)
    key, last = list(_key(seed)), _last(stream, draw)
    found: Tensor = _draw(numbers, list(shape), kind=kind, key=key, last=last, dtype=dtype, threshold=threshold)
    return found


@torch.library.custom_op("mudi::draw", mutates_args=())
def _draw(
    numbers: Tensor, shape: list[int], *, kind: str, key: list[int], last: int, dtype: torch.dtype, threshold: int
) -> Tensor:
    """One operation to the compiler, which need not look into the kernel."""
    from pipeline.runtime import philox_triton

    low, high = key
    return philox_triton.fill(numbers, shape, kind=kind, key=(low, high), last=last, dtype=dtype, threshold=threshold)


@_draw.register_fake
def _(
    numbers: Tensor, shape: list[int], *, kind: str, key: list[int], last: int, dtype: torch.dtype, threshold: int
) -> Tensor:
    del kind, key, last, threshold
    return numbers.new_empty([numbers.shape[0], *shape], dtype=dtype)


def _rounds(counter: Words, key: tuple[int, int]) -> Words:
    """The ten rounds on four tensors that broadcast: what repeats along a dimension is computed once.

    An int64 product wraps modulo 2**64, which keeps both of its 32-bit halves. c1 and c3 carry the upper half along
    with the lower until the next round's mask.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_LOW)
        c2 = ((p0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_LOW)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1.bitwise_and_(_LOW), c2, c3.bitwise_and_(_LOW)


def _check(dtype: torch.dtype) -> None:
    if dtype not in _BLOCK:
        raise ValueError(f"Draw float32 or float64 and convert: {dtype} rounds uniform values up to 1.")


def _fill(
    transform: Transform,
    seed: int,
    stream: Stream,
    numbers: Tensor,
    *,
    shape: tuple[int, ...],
    draw: int,
    dtype: torch.dtype,
) -> Tensor:
    """Lay out [B, blocks, values of a block] and let `transform` write each tile of it from its Philox words."""
    _check(dtype)
    size = math.prod(shape)
    blocks = -(-size // _BLOCK[dtype])
    out = torch.empty((numbers.shape[0], blocks, _BLOCK[dtype]), dtype=dtype, device=numbers.device)
    tile = _TILE if numbers.device.type == "cpu" else _TILE_GPU
    images = max(tile // max(blocks, 1), 1)
    for image in range(0, numbers.shape[0], images):
        number = numbers[image : image + images, None]
        last = torch.full_like(number, _last(stream, draw))
        for first in range(0, blocks, tile):
            part = out[image : image + images, first : first + tile]
            block = torch.arange(first, first + part.shape[1], device=numbers.device)[None]
            words = _rounds((block, number & _LOW, number >> 32, last), _key(seed))
            transform(words, part)
    return out.flatten(1)[:, :size].reshape(numbers.shape[0], *shape)


def _uniform_words(words: Words, out: Tensor) -> None:
    """32-bit words to the centres of 2**23 (float32) or 2**32 (float64) equal intervals of (0, 1)."""
    drop = 9 if out.dtype == torch.float32 else 0
    width = 2.0 ** (drop - 32)
    for index, word in enumerate(words):
        out[..., index] = word >> drop
    out.mul_(width).add_(width / 2)


def _normal_words(words: Words, out: Tensor) -> None:
    """Two pairs of normal values: radius sqrt(-2 log u) with u in (0, 1], angle uniform in [0, 2 pi]."""
    radius, angle = out.new_empty((2, 2, *out.shape[:-1]))  # both pairs at once: calls cost as much as their work
    for pair in (0, 1):
        radius[pair] = words[2 * pair]
        angle[pair] = words[2 * pair + 1]
    radius.mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2).sqrt_()
    angle.mul_(2 * math.pi / 2**32)
    pairs = out.view(*out.shape[:-1], 2, 2).movedim(-2, 0)
    pairs[..., 0] = angle.cos().mul_(radius)
    pairs[..., 1] = angle.sin_().mul_(radius)


def _chosen_words(threshold: int, words: Words, out: Tensor) -> None:
    """Two decisions a word, from its lower and its upper half."""
    for index, word in enumerate(words):
        out[..., 2 * index] = (word & 0xFFFF) < threshold
        out[..., 2 * index + 1] = (word >> 16) < threshold
