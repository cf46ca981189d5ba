"""A variational autoencoder to one vector (Kingma & Welling 2014; conditional: Sohn et al. 2015).

The baseline that samples in one step: `decode(noise [B, latent])` is an image.
"""

import math

from einops import rearrange
from torch import Tensor, cat, nn, ones_like, zeros_like

from pipeline.config.schema_model import VAEConfig
from pipeline.models.conditioning import build_condition
from pipeline.models.layers import convolution
from pipeline.models.posterior import Posterior, Reconstruction, from_moments

CONDITION_WIDTH = 64


class VAE(nn.Module):
    """Images [B, C, H, W] in [-1, 1] <-> a vector [B, latent]; H and W are multiples of 2^levels."""

    def __init__(self, cfg: VAEConfig, shape: tuple[int, int, int], *, classes: int = 0, attributes: int = 0) -> None:
        """`shape` is [C, H, W] of the images, which the dense layers fix."""
        super().__init__()
        self.cfg = cfg
        self.conditional = cfg.condition != "none"
        self.condition = build_condition(cfg.condition, CONDITION_WIDTH, classes=classes, attributes=attributes)
        condition_width = CONDITION_WIDTH if self.conditional else 0
        widths = [cfg.width * multiplier for multiplier in cfg.multipliers]
        self.small = (widths[-1], shape[1] >> len(widths), shape[2] >> len(widths))
        self.conv_in = convolution(shape[0], widths[0])
        self.down = nn.Sequential()
        for number, width in enumerate(widths):
            wider = widths[min(number + 1, len(widths) - 1)]
            self.down.extend([nn.GroupNorm(cfg.groups, width), nn.SiLU(), convolution(width, wider, stride=2)])
        self.to_moments = nn.Linear(math.prod(self.small) + condition_width, 2 * cfg.latent)
        self.from_latent = nn.Linear(cfg.latent + condition_width, math.prod(self.small))
        self.up = nn.Sequential()
        for number, width in reversed(list(enumerate(widths))):
            wider = widths[min(number + 1, len(widths) - 1)]
            self.up.extend([nn.GroupNorm(cfg.groups, wider), nn.SiLU(), nn.Upsample(scale_factor=2.0)])
            self.up.append(convolution(wider, width))
        self.norm_out = nn.GroupNorm(cfg.groups, widths[0])
        self.conv_out = convolution(widths[0], shape[0])

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Posterior:
        """[B, C, H, W] -> the vector's distribution, [B, latent]."""
        hidden = rearrange(nn.functional.silu(self.down(self.conv_in(images))), "b c h w -> b (c h w)")
        return from_moments(self.to_moments(self._with(hidden, condition)))

    def decode(self, latents: Tensor, condition: Tensor | None = None) -> Tensor:
        """[B, latent] -> images [B, C, H, W], not clipped."""
        images: Tensor = self.conv_out(self._inner(latents, condition))
        return images

    def forward(
        self, images: Tensor | None, noise: Tensor | None = None, condition: Tensor | None = None
    ) -> Reconstruction:
        """Reconstructed images and the posterior; `noise` [B, latent] draws the vector, None takes its mean.

        Where there are no images the posterior is the prior, and what comes out is a sample of the model.
        """
        if images is not None:
            posterior = self.encode(images, condition)
        elif noise is not None:
            posterior = Posterior(zeros_like(noise), ones_like(noise))
        else:
            raise ValueError("a VAE reconstructs images or samples from noise: pass one of them")
        inner = self._inner(posterior.mean if noise is None else posterior.sample(noise), condition)
        return Reconstruction(self.conv_out(inner), posterior, inner)

    def _inner(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        channels, height, width = self.small
        hidden = self.from_latent(self._with(latents, condition))
        hidden = self.up(rearrange(hidden, "b (c h w) -> b c h w", c=channels, h=height, w=width))
        return nn.functional.silu(self.norm_out(hidden))

    def _with(self, vector: Tensor, condition: Tensor | None) -> Tensor:
        if self.condition is None:
            return vector
        if condition is None:
            raise ValueError("a conditional network was called without a condition: pass labels, or 'unknown'")
        return cat([vector, self.condition(condition)], dim=1)
