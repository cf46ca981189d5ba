"""Interpolation, inpainting and strips: functions over any sampler."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.diffusion.preconditioning import Denoise


def spherical(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Interpolation on the sphere, where Gaussian noise lives (Shoemake 1985; Song et al. 2021: DDIM, appendix D.5).

    first, second: noise [B, C, H, W], or vectors [B, width]. share: [K], 0 is the first, 1 the second. Returns
    [K, B, ...].
    """
    cosine = torch.cosine_similarity(first.flatten(1), second.flatten(1), dim=1).clamp(-1, 1)
    angle = cosine.acos().clamp(min=1e-6).view(1, -1, *(1,) * (first.ndim - 1))
    share = share.view(-1, *(1,) * first.ndim)
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / angle.sin()


def linear(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Straight line between images, noise or vectors [B, ...], at `share` [K]: [K, B, ...].

    Between two noises the middle has variance 1 / 2, which no denoiser has seen: use it for images.
    """
    return torch.lerp(first, second, share.view(-1, *(1,) * first.ndim))


def inpainted(denoise: Denoise, known: Tensor, *, mask: Tensor) -> Denoise:
    """`denoise` that knows the pixels of `known` [B, C, H, W] where `mask` (0 to 1, broadcastable) is 1.

    The replacement method (Song et al. 2021: score SDE, appendix I.2) on the estimate instead of on x: every sampler
    then ends exactly in the known pixels, whatever noise it carries there.
    """
    return lambda x, sigma: torch.lerp(denoise(x, sigma), known, mask)


def strip(sample: Callable[[Denoise], Tensor], denoise: Denoise, *, frames: int) -> tuple[Tensor, Tensor]:
    """The way from noise to image: what the network saw and what it made of it, each [frames, B, C, H, W].

    The first is x_t / sqrt(1 + sigma^2), of a deviation of about 1 at every noise level; the second the estimate of x0
    from it. Frames are evenly spaced over the calls; the last of both is the result. `sample`: a sampler with its start
    and noise, waiting for a denoiser.
    """
    if frames < 2:
        raise ValueError(f"a strip has {frames} frames; expected at least 2, the first estimate and the result")
    calls: list[tuple[Tensor, Tensor]] = []

    def denoise_and_keep(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        calls.append((x / (1 + sigma**2).sqrt(), x0))  # a sampler's sigma is a scalar, which may stand on the CPU
        return x0

    result = sample(denoise_and_keep)
    chosen = [calls[math.floor(i * len(calls) / (frames - 1))] for i in range(frames - 1)]
    noisy, estimates = zip(*chosen, (result, result), strict=True)
    return torch.stack(noisy), torch.stack(estimates)
