"""Norms whose result is as narrow as their input, and what stands around them in a block.

Under autocast, torch returns float32 from a norm, which doubles the memory traffic of everything up to the next
convolution. Here statistics are float32 and the result has the dtype of the input.

On a GPU, with channels last in memory, a group norm and what surrounds it run as fused kernels
(`pipeline.models.norm_triton`), which also take over the biases of the convolutions before them. Elsewhere, and where
the compiler fuses by itself, these are plain formulas.
"""

import importlib.util

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.runtime.numerics import own_precision

_FUSED_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_HAS_TRITON = importlib.util.find_spec("triton") is not None


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` (Wu & He 2018) on [B, C, H, W]. Differentiable once where it is fused."""

    def forward(
        self,
        x: Tensor,
        *,
        before: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        silu: bool = False,
    ) -> Tensor:
        """norm(x + before), times (1 + scale) plus shift, then SiLU where `silu`.

        `before`, `scale` and `shift` are [B, C]; what is None is left out.
        """
        if fuses(x):
            from pipeline.models.norm_triton import group_norm

            return group_norm(
                x,
                self.weight,
                self.bias,
                groups=self.num_groups,
                eps=self.eps,
                before=before,
                scale=scale,
                shift=shift,
                silu=silu,
            )
        with own_precision(x):
            out = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            out = out if before is None else out + before.to(out.dtype)[..., None, None]
            out = functional.group_norm(out, self.num_groups, self.weight, self.bias, self.eps)
            if scale is not None and shift is not None:
                scale, shift = (value.to(out.dtype)[..., None, None] for value in (scale, shift))
                out = torch.addcmul(shift, out, 1 + scale)
            return (functional.silu(out) if silu else out).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` without parameters, over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        with own_precision(x):
            return functional.layer_norm(x, self.normalized_shape, eps=self.eps)


def apart(convolution: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution, and the bias [C] that is still to be added to it: None where it has been.

    torch adds the bias of a convolution on a GPU in a pass of its own; fused kernels add it as they read.
    """
    if not fuses(x):
        return convolution(x), None
    return functional.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding), convolution.bias


def added(x: Tensor | None, branch: Tensor, bias: Tensor | None) -> Tensor:
    """x + branch + bias: [B, C, H, W], and [C]; what is None is left out."""
    if bias is not None and fuses(branch) and (x is None or (x.dtype == branch.dtype and fuses(x))):
        from pipeline.models.maps_triton import add

        return add(x, branch, bias)
    branch = branch if bias is None else branch + bias.to(branch.dtype)[:, None, None]
    return branch if x is None else x + branch


def joined(x: Tensor, other: Tensor) -> Tensor:
    """Both maps' channels: [B, C, H, W] and [B, D, H, W] -> [B, C + D, H, W]."""
    if x.dtype == other.dtype and fuses(x) and fuses(other):
        from pipeline.models.maps_triton import join

        return join(x, other)
    return torch.cat([x, other], dim=1)


def fuses(x: Tensor) -> bool:
    """Whether a map [B, C, H, W] is for the fused kernels."""
    return (
        x.is_cuda
        and _HAS_TRITON
        and not torch.compiler.is_compiling()
        and x.dtype in _FUSED_TYPES
        and x.is_contiguous(memory_format=torch.channels_last)
    )
