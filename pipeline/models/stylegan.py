"""The generator of a small StyleGAN2 (Karras et al. 2020): z -> style w -> modulated convolutions -> image.

Everything random is an argument: z [B, latent], and the image numbers that the noise of the layers belongs to.
"""

import math
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from pipeline.config.schema_model import StyleGANConfig
from pipeline.models.conditioning import build_condition
from pipeline.models.layers import smoothed, upsample
from pipeline.runtime.random import Stream, normal

LEAK = 0.2
MAPPING_RATE = 0.01  # learning rate of the mapping network, as a factor


class EqualizedLinear(nn.Module):
    """A linear layer whose weights are normal and scaled when used, so that all layers learn alike (Karras 2018)."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        return nn.functional.linear(x, self.weight * self.scale, self.bias * self.rate)


class ModulatedConvolution(nn.Module):
    """A convolution whose input channels are scaled by the style, and whose output is demodulated (eq. 1, 3)."""

    def __init__(self, inputs: int, outputs: int, *, size: int, latent: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.style = EqualizedLinear(latent, inputs, bias=1.0)
        self.scale, self.demodulate, self.padding = 1 / math.sqrt(inputs * size**2), demodulate, size // 2

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [B, inputs, H, W], w [B, latent] -> [B, outputs, H, W].

        Scaling inputs and outputs is the same as scaling weights, and shares one convolution between the images.
        """
        style, weight = self.style(w), self.weight * self.scale
        x = nn.functional.conv2d(x * rearrange(style, "b c -> b c 1 1"), weight, padding=self.padding)
        if not self.demodulate:
            return x
        energy = torch.einsum("oikl,bi->bo", weight.square(), style.square())
        return x * rearrange(torch.rsqrt(energy + 1e-8).to(x.dtype), "b c -> b c 1 1")


class StyledLayer(nn.Module):
    """Modulated convolution, noise of learned strength, bias, leaky ReLU. `seed_noise` gives the noise its seed."""

    def __init__(self, inputs: int, outputs: int, *, latent: int, number: int) -> None:
        super().__init__()
        self.conv = ModulatedConvolution(inputs, outputs, size=3, latent=latent)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.number, self.seed = number, 0

    def forward(self, x: Tensor, w: Tensor, sample_indices: Tensor | None) -> Tensor:
        """x [B, inputs, H, W] -> [B, outputs, H, W]; without `sample_indices` there is no noise."""
        x = self.conv(x, w)
        x = x + rearrange(self.bias.to(x.dtype), "c -> c 1 1")  # narrow under autocast: half the memory traffic
        if sample_indices is not None:
            noise = normal(self.seed, Stream.LAYER_NOISE, sample_indices, shape=(1, *x.shape[2:]), draw=self.number)
            x = x + self.strength * noise.to(x.dtype)
        return nn.functional.leaky_relu(x, LEAK) * math.sqrt(2)


def seed_noise(network: nn.Module, *, seed: int) -> None:
    """Key the noise of all styled layers of `network` by `seed`."""
    for module in network.modules():
        if isinstance(module, StyledLayer):
            module.seed = seed


class StyleGenerator(nn.Module):
    """z [B, latent] and a condition -> images [B, C, H, W]. `w_average` is set by what trains it."""

    w_average: Tensor

    def __init__(
        self, cfg: StyleGANConfig, shape: tuple[int, int, int], *, classes: int = 0, attributes: int = 0
    ) -> None:
        """`shape` is [C, H, W], H = W = 4 times a power of two."""
        super().__init__()
        self.cfg = cfg
        self.conditional = cfg.condition != "none"
        self.condition = build_condition(cfg.condition, cfg.latent, classes=classes, attributes=attributes)
        inputs = cfg.latent * (2 if self.conditional else 1)
        self.mapping = nn.ModuleList(
            EqualizedLinear(cfg.latent if number else inputs, cfg.latent, rate=MAPPING_RATE)
            for number in range(cfg.mapping_layers)
        )
        doublings = int(math.log2(shape[1] // 4))
        widths = [min(cfg.width << level, cfg.width_max) for level in reversed(range(doublings + 1))]
        self.constant = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.first = StyledLayer(widths[0], widths[0], latent=cfg.latent, number=0)
        self.layers = nn.ModuleList()
        for before, width in pairwise(widths):
            self.layers.append(StyledLayer(before, width, latent=cfg.latent, number=len(self.layers) + 1))
            self.layers.append(StyledLayer(width, width, latent=cfg.latent, number=len(self.layers) + 1))
        self.to_image = nn.ModuleList(
            ModulatedConvolution(width, shape[0], size=1, latent=cfg.latent, demodulate=False) for width in widths
        )
        self.level_bias = nn.Parameter(torch.zeros(len(widths), shape[0]))
        self.layer_count = 2 * len(widths)  # styles of an image: of every convolution, and of the last image layer
        self.register_buffer("w_average", torch.zeros(cfg.latent))

    def styles(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """The mapping network: z [B, latent], normalised, with the condition beside it -> w [B, latent]."""
        x = _normalised(z)
        if self.condition is not None:
            if condition is None:
                raise ValueError("a conditional network was called without a condition: pass labels, or 'unknown'")
            x = torch.cat([x, _normalised(self.condition(condition))], dim=1)
        for layer in self.mapping:
            x = nn.functional.leaky_relu(layer(x), LEAK) * math.sqrt(2)
        return x

    def synthesis(self, w: Tensor, *, sample_indices: Tensor | None = None) -> Tensor:
        """Styles [B, latent], or [B, layers, latent] -> images [B, C, H, W], about in [-1, 1].

        `sample_indices` [B]: whose noise the layers add. An image layer has the style of the convolution after it.
        """
        of = w.unbind(1) if w.ndim == 3 else (w,) * self.layer_count
        x = self.first(self.constant.expand(w.shape[0], -1, -1, -1), of[0], sample_indices)
        image = self._image(x, of[1], 0)
        for level in range(1, len(self.to_image)):
            x = self.layers[2 * level - 2](self._doubled(x), of[2 * level - 1], sample_indices)
            x = self.layers[2 * level - 1](x, of[2 * level], sample_indices)
            image = self._doubled(image) + self._image(x, of[2 * level + 1], level)
        return image

    def truncated(self, w: Tensor, psi: float) -> Tensor:
        """Styles at `psi` of their way from the average style (Karras et al. 2019, appendix B)."""
        return w if psi == 1 else torch.lerp(self.w_average.to(w.dtype).expand_as(w), w, psi)

    def forward(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        *,
        sample_indices: Tensor | None = None,
        mixed: tuple[Tensor, Tensor] | None = None,
        shift: Tensor | None = None,
        psi: float = 1.0,
    ) -> Tensor:
        """See the class.

        Args:
            mixed: other z [B, latent], whose styles the layers from number [B] on have.
            shift: [B, layers, latent], added to the styles: of zeros, it has the gradient by the styles.
            psi: truncation.
        """
        w = self.styles(z, condition)
        if mixed is not None:
            other, first = mixed
            layers = torch.arange(self.layer_count, device=z.device)
            before = (layers[None, :] < first[:, None])[..., None]
            w = torch.where(before, w[:, None, :], self.styles(other, condition)[:, None, :])
        w = self.truncated(w, psi)
        if shift is not None:
            w = (w if w.ndim == 3 else w[:, None, :]) + shift
        return self.synthesis(w, sample_indices=sample_indices)

    def _doubled(self, x: Tensor) -> Tensor:
        return smoothed(upsample(x)) if self.cfg.filtered else upsample(x)

    def _image(self, x: Tensor, w: Tensor, level: int) -> Tensor:
        image: Tensor = self.to_image[level](x, w) + rearrange(self.level_bias[level], "c -> c 1 1")
        return image


def _normalised(x: Tensor) -> Tensor:
    """Root mean square 1, each row: [B, width] -> [B, width]."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)
