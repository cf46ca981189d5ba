"""Blocks that the U-Nets and autoencoders are made of. Feature maps are [B, C, H, W]."""

from typing import Literal, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from pipeline.models.dropout import KeyedDropout
from pipeline.models.norm import GroupNorm, added, apart, fuses
from pipeline.runtime.numerics import own_precision

Resample = Literal["up", "down", "none"]
M = TypeVar("M", bound=nn.Module)

_FEW_TOKENS = 256  # of 16 px


def zeroed(module: M) -> M:
    """Set a module's parameters to zero: the branch that ends in it starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size, or halves it with stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def upsample(x: Tensor) -> Tensor:
    """Nearest neighbour: [B, C, H, W] -> [B, C, 2H, 2W]. Autocast would make it float32, twice the memory traffic."""
    if fuses(x):
        from pipeline.models.maps_triton import double

        return double(x)
    with own_precision(x):
        return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Mean of 2x2: [B, C, H, W] -> [B, C, H/2, W/2]."""
    if fuses(x):
        from pipeline.models.maps_triton import halve

        return halve(x)
    return nn.functional.avg_pool2d(x, 2)


def smoothed(x: Tensor) -> Tensor:
    """Weighted means over 3x3 pixels, [1, 2, 1] / 4 along each side, zero beyond the edge: [B, C, H, W] -> the same.

    After `upsample` it makes the doubling bilinear; with `downsample` after it, both are StyleGAN's [1, 3, 3, 1] / 8
    (Karras et al. 2019, arXiv:1812.04948, section 2).
    """
    return nn.functional.avg_pool2d(nn.functional.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(width)) v of [..., tokens, width].

    On a CPU, torch's fused kernel is slow in bf16 where tokens are few: three plain products take half of its time.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[-2] > _FEW_TOKENS:
        return nn.functional.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    mixed: Tensor = weights.softmax(-1) @ v
    return mixed


class Attention(nn.Module):
    """Self-attention over the pixels of a map, added to it (ADM; Dhariwal & Nichol 2021, section 3.1)."""

    def __init__(self, channels: int, *, head_channels: int | None, groups: int, eps: float = 1e-5) -> None:
        """`head_channels` None is one head."""
        super().__init__()
        self.heads = channels // (head_channels or channels)
        self.norm = GroupNorm(groups, channels, eps=eps)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        # Taken apart before heads and tokens change places: then the gradients are joined where they belong, at once.
        each = rearrange(self.to_qkv(tokens), "b n (three heads c) -> b n three heads c", three=3, heads=self.heads)
        q, k, v = (part.transpose(1, 2) for part in each.unbind(2))
        mixed = attend(q, k, v)
        out = self.to_out(rearrange(mixed, "b heads n c -> b n (heads c)"))
        added: Tensor = x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])
        return added


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input; the embedding scales and shifts the second norm.

    ADM's block (Dhariwal & Nichol 2021, section 3.1, "adaptive group normalisation" and up/downsampling as in BigGAN).
    `embedding_width` None is a block without condition, as autoencoders have. With `concat_channels` the embedding is
    told as so many constant channels beside the maps that the second convolution reads.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        embedding_width: int | None,
        groups: int,
        dropout: float = 0.0,
        scale_shift: bool = True,
        concat_channels: int | None = None,
        resample: Resample = "none",
        eps: float = 1e-5,
        zero_output: bool = True,
    ) -> None:
        super().__init__()
        self.resample: Resample = resample
        self.scale_shift, self.concat_channels = scale_shift, concat_channels
        self.norm1 = GroupNorm(groups, inputs, eps=eps)
        self.conv1 = convolution(inputs, outputs)
        self.embed = None
        if embedding_width is not None:
            self.embed = nn.Linear(embedding_width, concat_channels or (2 * outputs if scale_shift else outputs))
        self.norm2 = GroupNorm(groups, outputs, eps=eps)
        self.dropout = KeyedDropout(dropout)
        self.conv2 = convolution(outputs + (concat_channels or 0), outputs)
        if zero_output:
            zeroed(self.conv2)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None, sample_indices: Tensor | None = None) -> Tensor:
        """x [B, inputs, H, W], embedding [B, embedding_width] after its SiLU -> [B, outputs, H', W']."""
        hidden = self.norm1(x, silu=True)
        if self.resample != "none":
            change = upsample if self.resample == "up" else downsample
            x, hidden = change(x), change(hidden)
        hidden = self.dropout(self._conditioned(*apart(self.conv1, hidden), embedding), sample_indices)
        if self.embed is not None and self.concat_channels:
            told = self.embed(embedding).to(hidden.dtype)[:, :, None, None]
            hidden = torch.cat([hidden, told.expand(-1, -1, *hidden.shape[2:])], dim=1)
        hidden, bias = apart(self.conv2, hidden)
        if isinstance(self.skip, nn.Conv2d):
            x, of_skip = apart(self.skip, x)
            bias = bias if of_skip is None else of_skip if bias is None else bias + of_skip
        return added(x, hidden, bias)

    def _conditioned(self, hidden: Tensor, bias: Tensor | None, embedding: Tensor | None) -> Tensor:
        """Norm and SiLU, scaled and shifted by the embedding after the norm, or shifted before it (DDPM's way)."""
        before = None if bias is None else bias.expand(len(hidden), -1)
        if self.embed is None or self.concat_channels:
            return self.norm2(hidden, before=before, silu=True)  # type: ignore[no-any-return]
        projected = self.embed(embedding)
        if not self.scale_shift:
            return self.norm2(hidden, before=projected if before is None else before + projected, silu=True)  # type: ignore[no-any-return]
        scale, shift = projected.chunk(2, dim=1)
        return self.norm2(hidden, before=before, scale=scale, shift=shift, silu=True)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halve the size by a 3x3 convolution with stride 2.

    `padding`: by one zero on all sides, or at the "end" alone, right and below, as the first DDPM and latent diffusion.
    """

    def __init__(self, channels: int, *, padding: Literal["symmetric", "end"] = "symmetric") -> None:
        super().__init__()
        self.end = padding == "end"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.end else 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None, sample_indices: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]. The other arguments are those of a block, unused."""
        del embedding, sample_indices
        x = nn.functional.pad(x, (0, 1, 0, 1)) if self.end else x
        return added(None, *apart(self.conv, x))


class Upsample(nn.Module):
    """Double the size by nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor | None = None, sample_indices: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]. The other arguments are those of a block, unused."""
        del embedding, sample_indices
        return added(None, *apart(self.conv, upsample(x)))
