"""Discriminators: one score a patch for autoencoders, one score an image for the small StyleGAN.

No batch statistics: a score belongs to its image, or to its group of consecutive image numbers, on any number of GPUs.
"""

import math
from itertools import pairwise

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from pipeline.config.schema_model import PatchDiscriminatorConfig, StyleGANConfig
from pipeline.models.conditioning import build_condition
from pipeline.models.layers import downsample, smoothed
from pipeline.models.stylegan import EqualizedLinear

LEAK = 0.2


class EqualizedConvolution(nn.Conv2d):
    """A convolution whose weights are normal and scaled when used (Karras et al. 2018, section 4.1).

    The gain makes up for what a leaky ReLU takes; biases begin at zero.
    """

    def __init__(self, inputs: int, outputs: int, *, size: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2, bias=bias)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.scale = math.sqrt(2 / (1 + LEAK**2) / (inputs * size**2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return nn.functional.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def _convolution(inputs: int, outputs: int, *, size: int = 3, bias: bool = True, equalized: bool) -> nn.Conv2d:
    if equalized:
        return EqualizedConvolution(inputs, outputs, size=size, bias=bias)
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias)


def _linear(inputs: int, outputs: int, *, equalized: bool) -> nn.Module:
    return EqualizedLinear(inputs, outputs) if equalized else nn.Linear(inputs, outputs)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, section 3.2.2): images [B, C, H, W] -> scores [B, 1, h, w], high where real.

    Group norm of one group where the paper has batch norm, so that the scores of an image are its own.
    """

    def __init__(self, cfg: PatchDiscriminatorConfig, channels: int) -> None:
        """`channels` of the images."""
        super().__init__()
        widths = [cfg.width * min(2**number, 8) for number in range(cfg.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        for number in range(1, cfg.layers + 1):
            stride = 1 if number == cfg.layers else 2
            layers.append(nn.Conv2d(widths[number - 1], widths[number], 4, stride=stride, padding=1, bias=False))
            layers += [nn.GroupNorm(1, widths[number]), nn.LeakyReLU(LEAK)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        scores: Tensor = self.layers(images)
        return scores


def group_deviation(features: Tensor, sample_indices: Tensor | None, *, group: int) -> Tensor:
    """How much images of a group differ: [B, C, H, W] -> [B, 1, H, W], one value for all of a group.

    Karras et al. 2018, section 3: the standard deviation of every feature over the group, averaged. A group is `group`
    consecutive image numbers, so that the value does not depend on how a batch is divided; without them, of the
    batch's order.

    Raises:
        ValueError: where a group is not whole and together. On a GPU and under a compiler nobody looks at the numbers,
            for which the host would wait: `plan_for` sees to it that micro-batches are made of whole groups.
    """
    if features.shape[0] % group:
        raise ValueError(f"deviation_group={group} does not divide the {features.shape[0]} images of a micro-batch")
    if sample_indices is not None and sample_indices.device.type == "cpu" and not torch.compiler.is_compiling():
        number = rearrange(sample_indices // group, "(b group) -> b group", group=group)
        if not bool((number == number[:, :1]).all()):
            raise ValueError(f"micro-batches cut through groups of {group} images: make their size a multiple of it")
    grouped = rearrange(features, "(b group) c h w -> b group c h w", group=group)
    deviation = torch.sqrt(grouped.var(dim=1, unbiased=False) + 1e-8)
    mean = reduce(deviation, "b c h w -> b 1 1 1", "mean")
    return repeat(mean, "b 1 1 1 -> (b group) 1 h w", group=group, h=features.shape[2], w=features.shape[3])


class ShrinkingBlock(nn.Module):
    """Two convolutions and a halving, with a residual path (Karras et al. 2020, figure 7)."""

    def __init__(self, inputs: int, outputs: int, *, equalized: bool, filtered: bool) -> None:
        super().__init__()
        self.filtered = filtered
        self.conv1 = _convolution(inputs, inputs, equalized=equalized)
        self.conv2 = _convolution(inputs, outputs, equalized=equalized)
        self.skip = _convolution(inputs, outputs, size=1, bias=False, equalized=equalized)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/2, W/2]."""
        hidden = nn.functional.leaky_relu(self.conv1(x), LEAK)
        hidden = nn.functional.leaky_relu(self.conv2(hidden), LEAK)
        out: Tensor = (self._halved(hidden) + self.skip(self._halved(x))) / math.sqrt(2)
        return out

    def _halved(self, x: Tensor) -> Tensor:
        return downsample(smoothed(x) if self.filtered else x)


class StyleDiscriminator(nn.Module):
    """Images [B, C, H, W] -> scores [B], high where real; a condition enters by projection (Miyato & Koyama 2018)."""

    def __init__(
        self, cfg: StyleGANConfig, shape: tuple[int, int, int], *, classes: int = 0, attributes: int = 0
    ) -> None:
        """`shape` is [C, H, W], H = W = 4 times a power of two."""
        super().__init__()
        self.cfg = cfg
        self.conditional = cfg.condition != "none"
        halvings = int(math.log2(shape[1] // 4))
        widths = [min(cfg.width << level, cfg.width_max) for level in range(halvings + 1)]
        same = {"equalized": cfg.equalized}
        self.conv_in = _convolution(shape[0], widths[0], size=1, **same)
        self.blocks = nn.ModuleList(ShrinkingBlock(a, b, filtered=cfg.filtered, **same) for a, b in pairwise(widths))
        self.conv_last = _convolution(widths[-1] + 1, widths[-1], **same)
        self.dense = _linear(widths[-1] * 16, widths[-1], **same)
        self.score = _linear(widths[-1], 1, **same)
        self.condition = build_condition(
            cfg.condition, widths[-1], classes=classes, attributes=attributes, deviation=1 / math.sqrt(widths[-1])
        )

    def forward(
        self, images: Tensor, condition: Tensor | None = None, *, sample_indices: Tensor | None = None
    ) -> Tensor:
        """`sample_indices` [B] are the image numbers that say which images form a group."""
        x = nn.functional.leaky_relu(self.conv_in(images), LEAK)
        for block in self.blocks:
            x = block(x)
        x = torch.cat([x, group_deviation(x, sample_indices, group=self.cfg.deviation_group)], dim=1)
        x = rearrange(nn.functional.leaky_relu(self.conv_last(x), LEAK), "b c h w -> b (c h w)")
        x = nn.functional.leaky_relu(self.dense(x), LEAK)
        score: Tensor = rearrange(self.score(x), "b 1 -> b")
        if self.condition is None:
            return score
        if condition is None:
            raise ValueError("a conditional network was called without a condition: pass labels, or 'unknown'")
        projected: Tensor = (x * self.condition(condition)).sum(dim=1)
        return score + projected
