"""Autoencoders whose latents are small images: `encode` [B, C, H, W] -> Posterior [B, d, h, w], `decode` back.

`KLAutoencoder` is that of latent diffusion (Rombach et al. 2022, appendix G), arranged so that diffusers'
`AutoencoderKL` computes the same from the same weights. `BottleneckAutoencoder` is the plain one, without noise.
Both know `factor` (an image's side over its latent's) and `latent_channels`.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.config.schema_model import BottleneckAutoencoderConfig, KLAutoencoderConfig
from pipeline.models.layers import Attention, Downsample, ResidualBlock, Upsample, convolution
from pipeline.models.norm import GroupNorm
from pipeline.models.posterior import Posterior, Reconstruction, from_moments

EPS = 1e-6


class AutoencoderLevel(nn.Module):
    """The residual blocks of one resolution, then a resampling or none."""

    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        for block in self.blocks:
            x = block(x)
        return x if self.resample is None else self.resample(x)


class Middle(nn.Module):
    """Block, self-attention with one head, block, at the smallest size."""

    def __init__(self, channels: int, cfg: KLAutoencoderConfig) -> None:
        super().__init__()
        self.first, self.second = _block(channels, channels, cfg), _block(channels, channels, cfg)
        attention = Attention(channels, head_channels=None, groups=cfg.groups, eps=EPS)
        self.attention = attention if cfg.attention else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        x = self.first(x)
        x = x if self.attention is None else self.attention(x)
        out: Tensor = self.second(x)
        return out


def _block(inputs: int, outputs: int, cfg: KLAutoencoderConfig) -> ResidualBlock:
    return ResidualBlock(inputs, outputs, embedding_width=None, groups=cfg.groups, eps=EPS, zero_output=False)


class Encoder(nn.Module):
    """[B, C, H, W] -> [B, 2 * latent_channels, h, w]: means and logarithms of variances, before `to_moments`."""

    def __init__(self, cfg: KLAutoencoderConfig, channels: int) -> None:
        super().__init__()
        widths = [cfg.width * multiplier for multiplier in cfg.multipliers]
        self.conv_in = convolution(channels, widths[0])
        self.levels = nn.ModuleList()
        for number, width in enumerate(widths):
            before = widths[max(number - 1, 0)]
            blocks: list[nn.Module] = [_block(before if k == 0 else width, width, cfg) for k in range(cfg.blocks)]
            self.levels.append(
                AutoencoderLevel(blocks, Downsample(width, padding="end") if number < len(widths) - 1 else None)
            )
        self.middle = Middle(widths[-1], cfg)
        self.norm_out = GroupNorm(cfg.groups, widths[-1], eps=EPS)
        self.conv_out = convolution(widths[-1], 2 * cfg.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        out: Tensor = self.conv_out(self.norm_out(self.middle(x), silu=True))
        return out


class Decoder(nn.Module):
    """[B, latent_channels, h, w] -> [B, C, H, W]."""

    def __init__(self, cfg: KLAutoencoderConfig, channels: int) -> None:
        super().__init__()
        widths = [cfg.width * multiplier for multiplier in reversed(cfg.multipliers)]
        self.conv_in = convolution(cfg.latent_channels, widths[0])
        self.middle = Middle(widths[0], cfg)
        self.levels = nn.ModuleList()
        for number, width in enumerate(widths):
            before = widths[max(number - 1, 0)]
            blocks: list[nn.Module] = [_block(before if k == 0 else width, width, cfg) for k in range(cfg.blocks + 1)]
            self.levels.append(AutoencoderLevel(blocks, Upsample(width) if number < len(widths) - 1 else None))
        self.norm_out = GroupNorm(cfg.groups, widths[-1], eps=EPS)
        self.conv_out = convolution(widths[-1], channels)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.conv_out(self.inner(z))
        return out

    def inner(self, z: Tensor) -> Tensor:
        """All but the last convolution: [B, latent_channels, h, w] -> [B, c, H, W]."""
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        return self.norm_out(x, silu=True)  # type: ignore[no-any-return]


class KLAutoencoder(nn.Module):
    """Images [B, C, H, W] in [-1, 1] <-> latents [B, d, H/f, W/f]."""

    conditional = False

    def __init__(self, cfg: KLAutoencoderConfig, shape: tuple[int, int, int]) -> None:
        """`shape` is [C, H, W]; only the channels matter: any size divisible by f can be encoded."""
        super().__init__()
        self.cfg = cfg
        self.factor = 2 ** (len(cfg.multipliers) - 1)
        self.latent_channels = cfg.latent_channels
        self.encoder, self.decoder = Encoder(cfg, shape[0]), Decoder(cfg, shape[0])
        self.to_moments = nn.Conv2d(2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
        self.from_latent = nn.Conv2d(cfg.latent_channels, cfg.latent_channels, 1)

    def encode(self, images: Tensor) -> Posterior:
        """[B, C, H, W] -> the latent's distribution, [B, d, H/f, W/f]."""
        return from_moments(self.to_moments(self.encoder(images)))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, d, h, w] -> images [B, C, f h, f w], not clipped."""
        images: Tensor = self.decoder(self.from_latent(latents))
        return images

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Reconstructed images and the posterior; `noise` [B, d, h, w] draws the latent, None takes its mean."""
        posterior = self.encode(images)
        latents = posterior.mean if noise is None else posterior.sample(noise)
        inner = self.decoder.inner(self.from_latent(latents))
        return Reconstruction(self.decoder.conv_out(inner), posterior, inner)


class BottleneckAutoencoder(nn.Module):
    """Images [B, C, H, W] in [-1, 1] <-> a code [B, d, H/f, W/f] without noise."""

    conditional = False

    def __init__(self, cfg: BottleneckAutoencoderConfig, shape: tuple[int, int, int]) -> None:
        """`shape` is [C, H, W]; the code holds d / (C f^2) of the image's numbers."""
        super().__init__()
        self.cfg = cfg
        self.factor = 2 ** (len(cfg.multipliers) - 1)
        self.latent_channels = cfg.latent_channels
        widths = [cfg.width * multiplier for multiplier in cfg.multipliers]
        self.down = nn.Sequential(convolution(shape[0], widths[0]))
        for width, wider in pairwise(widths):
            self.down.extend(_normed(width, cfg.groups, convolution(width, wider, stride=2)))
        self.down.extend(_normed(widths[-1], cfg.groups, convolution(widths[-1], cfg.latent_channels)))
        self.up = nn.Sequential(convolution(cfg.latent_channels, widths[-1]))
        for wider, width in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
            self.up.extend([*_normed(wider, cfg.groups, nn.Upsample(scale_factor=2.0)), convolution(wider, width)])
        self.norm_out = nn.GroupNorm(cfg.groups, widths[0])
        self.conv_out = convolution(widths[0], shape[0])

    def encode(self, images: Tensor) -> Posterior:
        """[B, C, H, W] -> the code as a distribution without spread, [B, d, H/f, W/f]."""
        code = self.down(images)
        return Posterior(code, torch.zeros_like(code))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, d, h, w] -> images [B, C, f h, f w], not clipped."""
        images: Tensor = self.conv_out(self._inner(latents))
        return images

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Reconstruction:
        """Reconstructed images and the code; there is no noise to use."""
        del noise
        posterior = self.encode(images)
        inner = self._inner(posterior.mean)
        return Reconstruction(self.conv_out(inner), posterior, inner)

    def _inner(self, latents: Tensor) -> Tensor:
        return nn.functional.silu(self.norm_out(self.up(latents)))


def _normed(channels: int, groups: int, layer: nn.Module) -> list[nn.Module]:
    return [nn.GroupNorm(groups, channels), nn.SiLU(), layer]
