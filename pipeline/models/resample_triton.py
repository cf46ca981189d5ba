"""Triton kernels that double and halve maps [B, C, H, W] with channels last in memory.

Each is the other's backward pass: the gradient of repeating a pixel four times is the sum of the four.
"""

# Triton's decorators and kernels have no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call, import-not-found"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _repeat(x, y, size, width, channels, factor, block: tl.constexpr):
    """y [B, 2H, 2W, C] = factor * x [B, H, W, C], each pixel four times. `size`: values of x; `width`: W."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < size
    value = (tl.load(x + i, mask=inside, other=0.0).to(tl.float32) * factor).to(y.dtype.element_ty)
    c, pixel = i % channels, i // channels
    row, column = pixel // width, pixel % width  # rows of all images, one after another
    start = (row * 4 * width + column * 2) * channels + c
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            tl.store(y + start + (dy * 2 * width + dx) * channels, value, mask=inside)


@triton.jit
def _gather(x, y, size, width, channels, factor, block: tl.constexpr):
    """y [B, H, W, C] = factor * the sum of four pixels of x [B, 2H, 2W, C]. `size`: values of y; `width`: W."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < size
    c, pixel = i % channels, i // channels
    row, column = pixel // width, pixel % width
    start = (row * 4 * width + column * 2) * channels + c
    total = tl.zeros([block], tl.float32)
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            total += tl.load(x + start + (dy * 2 * width + dx) * channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + i, (total * factor).to(y.dtype.element_ty), mask=inside)


def double(x: Tensor) -> Tensor:
    """Nearest neighbour: [B, C, H, W] -> [B, C, 2H, 2W]."""
    out: Tensor = _Double.apply(x, 1.0)
    return out


def halve(x: Tensor) -> Tensor:
    """Mean of 2x2: [B, C, H, W] with even H and W -> [B, C, H/2, W/2]."""
    out: Tensor = _Halve.apply(x, 0.25)
    return out


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        batch, channels, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty(
            (batch, channels, 2 * height, 2 * width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        _repeat[(triton.cdiv(x.numel(), _BLOCK),)](x, y, x.numel(), width, channels, factor, block=_BLOCK)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _Halve.apply(dy, ctx.factor), None


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        batch, channels, height, width = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty(
            (batch, channels, height // 2, width // 2),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        _gather[(triton.cdiv(y.numel(), _BLOCK),)](x, y, y.numel(), width // 2, channels, factor, block=_BLOCK)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _Double.apply(dy, ctx.factor), None
