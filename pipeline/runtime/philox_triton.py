"""The draws of `pipeline.runtime.random`, and dropout by them, as Triton kernels: one launch each on a GPU.

Words, uniform values, choices and what dropout makes of them are the bits of the eager code. `random` imports this
file where it is first used: Triton comes with the CUDA builds of torch alone.

A program works on a rectangle of [images, counters], whose values are [images, 4 or 8 times as many] in memory, so
that it is full both for one number of many images and for one large image. Whatever varies from step to step or from
layer to layer is excluded from Triton's specialisation: it would compile the kernel anew.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Kernels are in Triton's language, whose types are not Python's.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_COUNTERS = 256  # of a program: two for each thread of four warps, so that small draws too fill a GPU
_COUNTERS_ACROSS = 512  # likewise over channels, where a thread's loads are of one value of each counter
_VALUES = {"uniform": 4, "normal": 4, "chosen": 8}  # made from one counter

_WORD: tl.constexpr = tl.constexpr(2.0**-32)
_HALF_WORD: tl.constexpr = tl.constexpr(2.0**-33)
_SHORT: tl.constexpr = tl.constexpr(2.0**-23)
_HALF_SHORT: tl.constexpr = tl.constexpr(2.0**-24)
_TURN: tl.constexpr = tl.constexpr(2 * math.pi / 2**32)


def fill(
    numbers: Tensor, shape: list[int], *, kind: str, key: tuple[int, int], last: int, dtype: torch.dtype, threshold: int
) -> Tensor:
    """[B, *shape] of the `kind` "uniform", "normal" or "chosen".

    numbers: [B] int64; key: two 32-bit words; last: the counter's fourth word; threshold: of "chosen", in 2**-16.
    """
    out = torch.empty((len(numbers), *shape), dtype=dtype, device=numbers.device)
    if out.numel():
        size = math.prod(shape)
        images, counters, tiles = _tiling(len(numbers), size, _VALUES[kind])
        grid = (tiles * -(-len(numbers) // images),)
        stored = out.view(torch.uint8) if dtype == torch.bool else out
        with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
            _fill[grid](
                stored, numbers.contiguous(), len(numbers), size, tiles, last, *key,
                KIND=kind, VALUES=_VALUES[kind], THRESHOLD=threshold, IMAGES=images, COUNTERS=counters,
            )  # fmt: skip
    return out


def drop(x: Tensor, numbers: Tensor, *, share: float, key: tuple[int, int], last: int, threshold: int) -> Tensor:
    """x / (1 - share) where a choice of [B, *x.shape[1:]] is false, and zero where it is true; x's memory layout.

    x: contiguous or channels_last. The choice of a value follows its logical index, whatever the layout.
    """
    if numbers.shape != x.shape[:1]:  # the kernel would read beyond them
        raise ValueError(
            f"dropout needs an image number for each image: found {list(numbers.shape)} for {len(x)} images"
        )
    out = torch.empty_like(x)
    if not out.numel():
        return out
    numbers, size = numbers.contiguous(), math.prod(x.shape[1:])
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        if x.is_contiguous():
            images, counters, tiles = _tiling(len(x), size, 8)
            grid = (tiles * -(-len(x) // images),)
            _drop[grid](
                out, x, numbers, len(x), size, tiles, last, *key,
                KEPT=1 - share, THRESHOLD=threshold, IMAGES=images, COUNTERS=counters,
            )  # fmt: skip
        else:
            channels, pixels = x.shape[1], size // x.shape[1]
            wide = min(triton.next_power_of_2(channels), 128)
            whole = pixels % 8 == 0  # then the eight decisions of a counter are of eight neighbours in one channel
            units = pixels // 8 if whole else pixels
            rows = min(triton.next_power_of_2(units), _COUNTERS_ACROSS // wide)
            across, down = -(-channels // wide), -(-units // rows)
            _drop_channels_last[(across * down * len(x),)](
                out, x, numbers, channels, pixels, across, down, last, *key,
                KEPT=1 - share, THRESHOLD=threshold, WHOLE=whole, CHANNELS=wide, ROWS=rows,
            )  # fmt: skip
    return out


def _tiling(batch: int, size: int, values: int) -> tuple[int, int, int]:
    """Images and counters of a program, powers of two, and how many programs an image takes."""
    blocks = -(-size // values)
    counters = min(triton.next_power_of_2(blocks), _COUNTERS)
    images = min(triton.next_power_of_2(batch), _COUNTERS // counters)
    return images, counters, -(-blocks // counters)


@triton.jit
def _philox(block, number, last, key_low, key_high):
    """Four words of the counters (block, number low, number high, last); `block` and `number` int64 that broadcast."""
    return tl.philox_impl(
        block.to(tl.uint32),
        number.to(tl.uint32),
        (number >> 32).to(tl.uint32),
        last.to(tl.uint32),
        key_low.to(tl.uint32),
        key_high.to(tl.uint32),
        10,
    )


@triton.jit
def _rectangle(numbers, batch, tiles, IMAGES: tl.constexpr, COUNTERS: tl.constexpr):
    """A program's images [IMAGES, 1], which of them there are, their numbers, and the block of its first counter."""
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64) * IMAGES + tl.arange(0, IMAGES)[:, None]
    present = image < batch
    number = tl.load(numbers + image, mask=present, other=0).to(tl.int64)
    first = (program % tiles).to(tl.int64) * COUNTERS
    return image, present, number, first


@triton.jit
def _uniform(word, WIDE: tl.constexpr):
    """The centres of 2**32 (float64) or 2**23 equal intervals of (0, 1)."""
    if WIDE:  # noqa: SIM108
        value = word.to(tl.float64) * _WORD + _HALF_WORD
    else:
        value = (word >> 9).to(tl.float32) * _SHORT + _HALF_SHORT
    return value


@triton.jit
def _normal(word_of_radius, word_of_angle, WIDE: tl.constexpr):
    """Box and Muller's pair, interleaved along the last dimension."""
    if WIDE:
        radius = tl.sqrt(tl.log(word_of_radius.to(tl.float64) * _WORD + _HALF_WORD) * -2.0)
        angle = word_of_angle.to(tl.float64) * tl.full(word_of_angle.shape, _TURN, tl.float64)
    else:
        radius = tl.sqrt_rn(tl.log(word_of_radius.to(tl.float32) * _WORD + _HALF_WORD) * -2.0)
        angle = word_of_angle.to(tl.float32) * _TURN
    return tl.interleave(radius * tl.cos(angle), radius * tl.sin(angle))


@triton.jit
def _chosen(w0, w1, w2, w3, THRESHOLD: tl.constexpr):
    """Two decisions a word, from its lower and its upper half, in the order of the eight values of a counter."""
    word = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return tl.interleave(word & 0xFFFF, word >> 16) < THRESHOLD


@triton.jit(do_not_specialize=["batch", "tiles", "last", "key_low", "key_high"])
def _fill(
    out, numbers, batch, size, tiles, last, key_low, key_high,
    KIND: tl.constexpr, VALUES: tl.constexpr, THRESHOLD: tl.constexpr, IMAGES: tl.constexpr, COUNTERS: tl.constexpr,
):  # fmt: skip
    """Each value from its counter. `size` is specialised: where 16 divides it, stores are of 16 bytes."""
    image, present, number, first = _rectangle(numbers, batch, tiles, IMAGES, COUNTERS)
    block = first + tl.arange(0, COUNTERS)[None, :]
    w0, w1, w2, w3 = _philox(block, number, last, key_low, key_high)
    WIDE: tl.constexpr = out.dtype.element_ty == tl.float64
    if KIND == "chosen":
        value = _chosen(w0, w1, w2, w3, THRESHOLD).to(tl.uint8)
    elif KIND == "normal":
        value = _normal(tl.interleave(w0, w2), tl.interleave(w1, w3), WIDE)
    else:
        value = _uniform(tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3)), WIDE)
    place = first * VALUES + tl.arange(0, VALUES * COUNTERS)[None, :]
    tl.store(out + image * size + place, value, mask=present & (place < size))


@triton.jit
def _kept(x, dropped, KEPT: tl.constexpr):
    """x / KEPT or zero, in x's type: divided in float64 or float32 with correct rounding.

    Those are the bits of a CPU. On CUDA torch multiplies by the reciprocal, which may differ in the last bit. `KEPT`
    is no argument of the launch because Triton passes a number as float32.
    """
    if x.dtype == tl.float64:
        scaled = x / tl.full(x.shape, KEPT, tl.float64)
    else:
        scaled = tl.div_rn(x.to(tl.float32), tl.full(x.shape, KEPT, tl.float32))
    return tl.where(dropped, 0.0, scaled).to(x.dtype)


@triton.jit(do_not_specialize=["batch", "tiles", "last", "key_low", "key_high"])
def _drop(
    out, x, numbers, batch, size, tiles, last, key_low, key_high,
    KEPT: tl.constexpr, THRESHOLD: tl.constexpr, IMAGES: tl.constexpr, COUNTERS: tl.constexpr,
):  # fmt: skip
    """Dropout of [batch, size]."""
    image, present, number, first = _rectangle(numbers, batch, tiles, IMAGES, COUNTERS)
    block = first + tl.arange(0, COUNTERS)[None, :]
    w0, w1, w2, w3 = _philox(block, number, last, key_low, key_high)
    place = first * 8 + tl.arange(0, 8 * COUNTERS)[None, :]
    inside = present & (place < size)
    at = image * size + place
    value = tl.load(x + at, mask=inside, other=0.0)
    tl.store(out + at, _kept(value, _chosen(w0, w1, w2, w3, THRESHOLD), KEPT), mask=inside)


@triton.jit(do_not_specialize=["across", "down", "last", "key_low", "key_high"])
def _drop_channels_last(
    out, x, numbers, channels, pixels, across, down, last, key_low, key_high,
    KEPT: tl.constexpr, THRESHOLD: tl.constexpr, WHOLE: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Dropout of [batch, pixels, channels] in memory, whose choices follow the index channel * pixels + pixel.

    Neighbouring threads take neighbouring channels. `WHOLE`: each takes the eight pixels of its counter. Otherwise
    neighbours of a counter may be of two channels, and each value computes its own.
    """
    program = tl.program_id(0)
    image = (program // (across * down)).to(tl.int64)
    number = tl.load(numbers + image).to(tl.int64)
    channel = (program % across).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    unit = (program // across % down).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    start = image * pixels * channels
    if WHOLE:
        inside = (channel < channels) & (unit < pixels // 8)
        w0, w1, w2, w3 = _philox(channel * (pixels // 8) + unit, number, last, key_low, key_high)
        at = start + unit * 8 * channels + channel
        _drop_two(out, x, at, channels, w0, inside, KEPT, THRESHOLD)
        _drop_two(out, x, at + 2 * channels, channels, w1, inside, KEPT, THRESHOLD)
        _drop_two(out, x, at + 4 * channels, channels, w2, inside, KEPT, THRESHOLD)
        _drop_two(out, x, at + 6 * channels, channels, w3, inside, KEPT, THRESHOLD)
    else:
        inside = (channel < channels) & (unit < pixels)
        index = channel * pixels + unit
        w0, w1, w2, w3 = _philox(index >> 3, number, last, key_low, key_high)
        half = (index & 7).to(tl.uint32)
        word = tl.where(half < 4, tl.where(half < 2, w0, w1), tl.where(half < 6, w2, w3))
        dropped = ((word >> ((half & 1) * 16)) & 0xFFFF) < THRESHOLD
        at = start + unit * channels + channel
        tl.store(out + at, _kept(tl.load(x + at, mask=inside, other=0.0), dropped, KEPT), mask=inside)


@triton.jit
def _drop_two(out, x, at, channels, word, inside, KEPT: tl.constexpr, THRESHOLD: tl.constexpr):
    """Two neighbouring pixels by the halves of a word."""
    lower = tl.load(x + at, mask=inside, other=0.0)
    upper = tl.load(x + at + channels, mask=inside, other=0.0)
    tl.store(out + at, _kept(lower, (word & 0xFFFF) < THRESHOLD, KEPT), mask=inside)
    tl.store(out + at + channels, _kept(upper, (word >> 16) < THRESHOLD, KEPT), mask=inside)
