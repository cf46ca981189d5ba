"""Triton kernels: group norm with what stands around it in a block, on maps [B, C, H, W] with channels last in memory.

With z = norm(x + before) * weight + bias and u = z * (1 + scale) + shift, the result is silu(u) or u. Forward reads x
twice and writes once; backward reads x and the gradient twice and writes once, and keeps nothing but x and the
statistics. `before` [B, C] costs nothing: it moves the mean of a channel and leaves its deviations alone.

Sums are taken over runs of ROWS pixels and then over the runs, in an order that depends on the map's size alone: an
image's values do not depend on its batch, and no two runs differ. Statistics are float32, by deviations from a run's
first pixel, so that a mean far from zero costs no digits.
"""

# Triton's decorators and kernels have no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-not-found"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 256  # pixels of one program
_TILE = 4096  # values in registers at once
_TILE_OF_SUMS = 2048  # of the gradients' sums, which hold two sums for each value
_WARPS = 4


@triton.jit
def _sigmoid(u):
    return 1.0 / (1.0 + tl.exp(-u))


@triton.jit
def _statistics(x, partial, pixels, channels, rows: tl.constexpr, block_p: tl.constexpr, block_c: tl.constexpr):
    """Mean and sum of squared deviations of each channel over a run of pixels: partial [B, runs, 2, C]."""
    run, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * block_c + tl.arange(0, block_c)
    known = c < channels
    first = run * rows
    start = x + (image * pixels + first) * channels
    reference = tl.load(start + c, mask=known, other=0.0).to(tl.float32)
    # One sum for each place of a tile: they are joined once, after the loop, which costs no exchange between threads.
    total = tl.zeros([block_p, block_c], tl.float32)
    squares = tl.zeros([block_p, block_c], tl.float32)
    for row in range(0, rows, block_p):
        p = row + tl.arange(0, block_p)
        inside = (p[:, None] < rows) & (first + p[:, None] < pixels) & known[None, :]
        value = tl.load(start + p[:, None].to(tl.int64) * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, value - reference[None, :], 0.0)
        total += deviation
        squares += deviation * deviation
    sums, around = tl.sum(total, 0), tl.sum(squares, 0)
    count = tl.minimum(rows, pixels - first).to(tl.float32)
    out = partial + ((image * tl.num_programs(0) + run) * 2) * channels + c
    tl.store(out, reference + sums / count, mask=known)
    tl.store(out + channels, around - sums * sums / count, mask=known)


@triton.jit
def _group_statistics(
    partial, before, centres, mean, rstd, pixels, channels, runs, eps,
    moved: tl.constexpr, rows: tl.constexpr, width: tl.constexpr, block_r: tl.constexpr, block_w: tl.constexpr,
):  # fmt: skip
    """Join the runs and channels of a group (Chan et al. 1983): mean, rstd [B, G]; means of channels [B, C]."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, k = tl.arange(0, block_r), tl.arange(0, block_w)
    inside = (r[:, None] < runs) & (k[None, :] < width)
    place = partial + (image * runs + r[:, None]) * 2 * channels + group * width + k[None, :]
    means = tl.load(place, mask=inside, other=0.0)
    squares = tl.load(place + channels, mask=inside, other=0.0)
    count = tl.where(inside, tl.minimum(rows, pixels - r[:, None] * rows).to(tl.float32), 0.0)
    c = group * width + k
    if moved:
        added = tl.load(before + image * channels + c, mask=k < width, other=0.0).to(tl.float32)
        means = tl.where(inside, means + added[None, :], 0.0)
        tl.store(centres + image * channels + c, tl.sum(means * count, 0) / (pixels * 1.0), mask=k < width)
    everything = pixels * width * 1.0
    joint = tl.sum(tl.sum(means * count, 1), 0) / everything
    deviation = tl.where(inside, means - joint, 0.0)
    variance = tl.sum(tl.sum(squares + count * deviation * deviation, 1), 0) / everything
    tl.store(mean + image * tl.num_programs(0) + group, joint)
    tl.store(rstd + image * tl.num_programs(0) + group, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _coefficients(
    before, weight, bias, mean, rstd, scale, shift, image, c, known, channels, groups, width,
    moved: tl.constexpr, modulated: tl.constexpr,
):  # fmt: skip
    """Of each channel of an image: the group's mean less `before`, its rstd; u = normed * gain + offset."""
    g = image * groups + c // width
    centre, factor = tl.load(mean + g, mask=known, other=0.0), tl.load(rstd + g, mask=known, other=0.0)
    if moved:
        centre -= tl.load(before + image * channels + c, mask=known, other=0.0).to(tl.float32)
    gain = tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    offset = tl.load(bias + c, mask=known, other=0.0).to(tl.float32)
    if modulated:
        s = 1.0 + tl.load(scale + image * channels + c, mask=known, other=0.0).to(tl.float32)
        gain *= s
        offset = offset * s + tl.load(shift + image * channels + c, mask=known, other=0.0).to(tl.float32)
    return centre, factor, gain, offset


@triton.jit
def _apply(
    x, y, before, weight, bias, mean, rstd, scale, shift, pixels, channels, groups, width,
    moved: tl.constexpr, modulated: tl.constexpr, silu: tl.constexpr,
    rows: tl.constexpr, block_p: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """y from x and the statistics."""
    run, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * block_c + tl.arange(0, block_c)
    known = c < channels
    centre, factor, gain, offset = _coefficients(
        before, weight, bias, mean, rstd, scale, shift, image, c, known, channels, groups, width, moved, modulated
    )
    start = (image * pixels + run * rows) * channels
    for row in range(0, rows, block_p):
        p = row + tl.arange(0, block_p)
        inside = (p[:, None] < rows) & (run * rows + p[:, None] < pixels) & known[None, :]
        place = start + p[:, None].to(tl.int64) * channels + c[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        u = (value - centre[None, :]) * factor[None, :] * gain[None, :] + offset[None, :]
        if silu:
            u = u * _sigmoid(u)
        tl.store(y + place, u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _slopes(value, gradient, centre, factor, gain, offset, silu: tl.constexpr):
    """The normalised value, and the gradient with respect to u."""
    normed = (value - centre[None, :]) * factor[None, :]
    if silu:
        u = normed * gain[None, :] + offset[None, :]
        gate = _sigmoid(u)
        gradient = gradient * gate * (1.0 + u * (1.0 - gate))
    return normed, gradient


@triton.jit
def _gradient_sums(
    x, dy, partial, before, weight, bias, mean, rstd, scale, shift, pixels, channels, groups, width,
    moved: tl.constexpr, modulated: tl.constexpr, silu: tl.constexpr,
    rows: tl.constexpr, block_p: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """Sums of du and of du * normed over a run of pixels, for each channel: partial [B, runs, 2, C]."""
    run, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * block_c + tl.arange(0, block_c)
    known = c < channels
    centre, factor, gain, offset = _coefficients(
        before, weight, bias, mean, rstd, scale, shift, image, c, known, channels, groups, width, moved, modulated
    )
    start = (image * pixels + run * rows) * channels
    plain = tl.zeros([block_p, block_c], tl.float32)
    along = tl.zeros([block_p, block_c], tl.float32)
    for row in range(0, rows, block_p):
        p = row + tl.arange(0, block_p)
        inside = (p[:, None] < rows) & (run * rows + p[:, None] < pixels) & known[None, :]
        place = start + p[:, None].to(tl.int64) * channels + c[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        normed, du = _slopes(value, gradient, centre, factor, gain, offset, silu)
        plain += du
        along += tl.where(inside, du * normed, 0.0)
    out = partial + ((image * tl.num_programs(0) + run) * 2) * channels + c
    tl.store(out, tl.sum(plain, 0), mask=known)
    tl.store(out + channels, tl.sum(along, 0), mask=known)


@triton.jit
def _group_gradients(
    partial, weight, scale, sums, means, pixels, channels, runs,
    modulated: tl.constexpr, width: tl.constexpr, block_r: tl.constexpr, block_w: tl.constexpr,
):  # fmt: skip
    """Join the runs: sums [B, 2, C] of each channel; means [B, 2, G] of dnormed and of dnormed * normed of a group."""
    group, image, groups = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    r, k = tl.arange(0, block_r), tl.arange(0, block_w)
    inside = (r[:, None] < runs) & (k[None, :] < width)
    place = partial + (image * runs + r[:, None]) * 2 * channels + group * width + k[None, :]
    plain = tl.sum(tl.load(place, mask=inside, other=0.0), 0)
    along = tl.sum(tl.load(place + channels, mask=inside, other=0.0), 0)
    known, c = k < width, group * width + k
    tl.store(sums + image * 2 * channels + c, plain, mask=known)
    tl.store(sums + (image * 2 + 1) * channels + c, along, mask=known)
    factor = tl.load(weight + c, mask=known, other=0.0).to(tl.float32)
    if modulated:
        factor *= 1.0 + tl.load(scale + image * channels + c, mask=known, other=0.0).to(tl.float32)
    everything = pixels * width * 1.0
    tl.store(means + image * 2 * groups + group, tl.sum(factor * plain, 0) / everything)
    tl.store(means + (image * 2 + 1) * groups + group, tl.sum(factor * along, 0) / everything)


@triton.jit
def _gradient(
    x, dy, dx, before, weight, bias, mean, rstd, scale, shift, means, pixels, channels, groups, width,
    moved: tl.constexpr, modulated: tl.constexpr, silu: tl.constexpr,
    rows: tl.constexpr, block_p: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """dx = rstd (dnormed - mean(dnormed) - normed * mean(dnormed * normed)), means over the group."""
    run, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * block_c + tl.arange(0, block_c)
    known = c < channels
    centre, factor, gain, offset = _coefficients(
        before, weight, bias, mean, rstd, scale, shift, image, c, known, channels, groups, width, moved, modulated
    )
    g = image * 2 * groups + c // width
    first = tl.load(means + g, mask=known, other=0.0)
    second = tl.load(means + g + groups, mask=known, other=0.0)
    start = (image * pixels + run * rows) * channels
    for row in range(0, rows, block_p):
        p = row + tl.arange(0, block_p)
        inside = (p[:, None] < rows) & (run * rows + p[:, None] < pixels) & known[None, :]
        place = start + p[:, None].to(tl.int64) * channels + c[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        normed, du = _slopes(value, gradient, centre, factor, gain, offset, silu)
        slope = factor[None, :] * (du * gain[None, :] - first[None, :] - normed * second[None, :])
        tl.store(dx + place, slope.to(dx.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    before: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """See the module. x [B, C, H, W], channels last; weight, bias [C]; before, scale, shift [B, C] or None.

    Differentiable once.
    """
    out: Tensor = _GroupNorm.apply(x, before, weight, bias, scale, shift, groups, eps, silu)
    return out


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        before: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        batch, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
        runs, width = triton.cdiv(pixels, ROWS), channels // groups
        before, scale, shift = (None if v is None else v.contiguous() for v in (before, scale, shift))
        flags = {"moved": before is not None, "modulated": scale is not None}
        partial = torch.empty(batch, runs, 2, channels, dtype=torch.float32, device=x.device)
        centres = torch.empty(batch, channels, dtype=torch.float32, device=x.device) if flags["moved"] else None
        mean, rstd = torch.empty(2, batch, groups, dtype=torch.float32, device=x.device)
        y = torch.empty_like(x)
        tiles, grid = _tiles(channels, _TILE), _grid(batch, pixels, channels)
        _statistics[grid](x, partial, pixels, channels, **tiles)
        _group_statistics[groups, batch](
            partial, before, centres, mean, rstd, pixels, channels, runs, eps,
            moved=flags["moved"], rows=ROWS, width=width, **_blocks(runs, width),
        )  # fmt: skip
        known = (before, weight, bias, mean, rstd, scale, shift)
        _apply[grid](x, y, *known, pixels, channels, groups, width, silu=silu, **flags, **tiles)
        ctx.save_for_backward(x, *known, centres)
        ctx.groups, ctx.silu, ctx.flags = groups, silu, flags
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *known, centres = ctx.saved_tensors
        before, weight, bias, mean, rstd, scale, shift = known
        batch, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
        groups, silu, flags = ctx.groups, ctx.silu, ctx.flags
        runs, width = triton.cdiv(pixels, ROWS), channels // groups
        dy = dy.contiguous(memory_format=torch.channels_last)
        partial = torch.empty(batch, runs, 2, channels, dtype=torch.float32, device=x.device)
        sums = torch.empty(batch, 2, channels, dtype=torch.float32, device=x.device)
        means = torch.empty(batch, 2, groups, dtype=torch.float32, device=x.device)
        dx = torch.empty_like(x)
        tiles, grid = _tiles(channels, _TILE), _grid(batch, pixels, channels)
        tiles_of_sums = _tiles(channels, _TILE_OF_SUMS)
        sizes = (pixels, channels, groups, width)
        _gradient_sums[grid](x, dy, partial, *known, *sizes, silu=silu, **flags, **tiles_of_sums)
        _group_gradients[groups, batch](
            partial, weight, scale, sums, means, pixels, channels, runs,
            modulated=flags["modulated"], width=width, **_blocks(runs, width),
        )  # fmt: skip
        _gradient[grid](x, dy, dx, *known, means, *sizes, silu=silu, **flags, **tiles)
        plain, along = sums.unbind(1)
        factor = None if scale is None else 1 + scale.float()
        dbefore = dscale = dshift = None
        if before is not None:
            whole = (v.repeat_interleave(width, 1) for v in (mean, rstd, means[:, 0], means[:, 1]))
            m, r, first, second = whole
            slope = plain * weight if factor is None else plain * weight * factor
            dbefore = (r * (slope - pixels * (first + second * r * (centres - m)))).to(before.dtype)
        if scale is not None and shift is not None:
            dscale, dshift = torch.addcmul(plain * bias, along, weight).to(scale.dtype), plain.to(shift.dtype)
        dweight, dbias = (v.sum(0) if factor is None else (factor * v).sum(0) for v in (along, plain))
        return dx, dbefore, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale, dshift, None, None, None


def _tiles(channels: int, tile: int) -> dict[str, int]:
    """How a map is cut; nothing here may depend on the batch."""
    wide = [size for size in (128, 64) if channels % size == 0]
    block_c = wide[0] if wide else min(triton.next_power_of_2(channels), 128)
    return {"rows": ROWS, "block_p": min(tile // block_c, ROWS), "block_c": block_c, "num_warps": _WARPS}


def _grid(batch: int, pixels: int, channels: int) -> tuple[int, int, int]:
    return triton.cdiv(pixels, ROWS), batch, triton.cdiv(channels, _tiles(channels, _TILE)["block_c"])


def _blocks(runs: int, width: int) -> dict[str, int]:
    return {"block_r": triton.next_power_of_2(runs), "block_w": triton.next_power_of_2(width)}
