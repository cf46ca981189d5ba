"""What an encoder says about an image: a normal distribution of its latent, with independent coordinates."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """mean and std, both [B, d, h, w] (or [B, d]); std is 0 everywhere for an encoder without noise."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise. The caller draws the standard normal noise, keyed by image number."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from a standard normal, of each coordinate, in nats: shape of the mean.

        (mean^2 + std^2 - 1) / 2 - ln std (Kingma & Welling 2014, appendix B). Infinite where std is 0.
        """
        return (self.mean.square() + self.std.square() - 1) / 2 - self.std.log()


class Reconstruction(NamedTuple):
    """What an autoencoder makes of images: new `images` [B, C, H, W], the latents' posterior, and `inner`, what its
    last convolution was given [B, c, H, W] (an adaptive weight needs it)."""

    images: Tensor
    posterior: Posterior
    inner: Tensor


def from_moments(moments: Tensor) -> Posterior:
    """[B, 2d, ...], means then logarithms of variances, which are clamped to -30..20 as in the reference code."""
    mean, log_variance = moments.chunk(2, dim=1)
    return Posterior(mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)))
