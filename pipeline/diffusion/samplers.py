"""From noise to an image: loops over pairs of noise levels, all with the same three arguments.

`denoise` estimates x0; `x` [B, C, H, W] holds noise at the first of `sigmas` [N + 1], which descend, usually to 0.
Samplers that add fresh noise take `noise`: number of the draw -> standard normal of the shape of x.
Guidance, clipping and progress wrap `denoise`. Two samplers with memory stand in `multistep`.

The slope dx / dsigma is the noise as the denoiser sees it. Steps start from x0, not from x: x + (sigma_next - sigma) *
slope is the same number with fewer digits where sigma is large.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

from torch import Tensor

from pipeline.diffusion.posterior import Variance, posterior_mean, small_variance
from pipeline.diffusion.preconditioning import Denoise

Noise = Callable[[int], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Iterable[Tensor]) -> Tensor:
    """First order. In these coordinates this is DDIM with eta 0, and Euler in the time of rectified flow."""
    for sigma, sigma_next in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        x = x0 + sigma_next * slope
    return x


def no_noise(draw: int) -> Tensor:
    """The noise of a sampler that must not ask for any."""
    raise ValueError(f"this sampler adds fresh noise and asked for draw {draw}: call it with noise")


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise = no_noise,
    amount: float = 0.0,
    between: tuple[float, float] = (0.0, math.inf),
    scale: float = 1.0,
) -> Tensor:
    """Second order, two calls a step (Karras et al. 2022, algorithm 1).

    Where `amount` is not 0, noise is added before each step (algorithm 2: `amount` is S_churn, `between` S_tmin and
    S_tmax, `scale` S_noise).
    """
    for step, (level, sigma_next) in enumerate(pairwise(sigmas)):
        gamma = min(amount / (len(sigmas) - 1), math.sqrt(2) - 1) if between[0] <= level <= between[1] else 0.0
        sigma = level
        if gamma > 0:
            sigma = level * (1 + gamma)
            x = x + scale * (sigma**2 - level**2).sqrt() * noise(step)
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        x_euler: Tensor = x0 + sigma_next * slope
        if sigma_next == 0:
            return x_euler
        slope_next = (x_euler - denoise(x_euler, sigma_next)) / sigma_next
        x = x_euler + (sigma_next - sigma) * (slope_next - slope) / 2
    return x


def ddim(denoise: Denoise, x: Tensor, sigmas: Iterable[Tensor], *, noise: Noise, eta: float) -> Tensor:
    """First order, with a share `eta` in [0, 1] of fresh noise (Song et al. 2021: DDIM, equations 12 and 16).

    eta 0 is `euler`; eta 1 is `ancestral` with its small variance.
    """
    if eta == 0:
        return euler(denoise, x, sigmas)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next == 0:
            return x0
        fresh = eta**2 * small_variance(sigma, sigma_next)
        x = x0 + (sigma_next**2 - fresh).sqrt() * (x - x0) / sigma + fresh.sqrt() * noise(step)
    return x


def ancestral(
    denoise: Denoise, x: Tensor, sigmas: Iterable[Tensor], *, noise: Noise, variance: Variance = small_variance
) -> Tensor:
    """DDPM's sampler (Ho et al. 2020, algorithm 2), with one of the variances in `posterior`."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next == 0:
            return x0
        mean = posterior_mean(x, x0, sigma=sigma, sigma_next=sigma_next)
        x = mean + variance(sigma, sigma_next) ** 0.5 * noise(step)
    return x


def langevin(
    denoise: Denoise, x: Tensor, sigmas: Iterable[Tensor], *, noise: Noise, corrector_steps: int = 1, snr: float = 0.16
) -> Tensor:
    """Predictor-corrector for the VE-SDE (Song et al. 2021: score SDE, algorithms 2 and 4).

    The Langevin step size comes from each image's own norms, where the paper takes the batch's mean: an image shall
    not depend on its neighbours. Draws are numbered correctors first, then the predictor, step by step.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        first_draw = step * (corrector_steps + 1)
        for draw in range(first_draw, first_draw + corrector_steps):
            score, fresh = (denoise(x, sigma) - x) / sigma**2, noise(draw)
            size = 2 * (snr * _norm(fresh) / _norm(score)) ** 2
            x = x + size * score + (2 * size).sqrt() * fresh
        x0, step_variance = denoise(x, sigma), sigma**2 - sigma_next**2
        if sigma_next == 0:
            return x0
        x = x + step_variance * (x0 - x) / sigma**2 + step_variance.sqrt() * noise(first_draw + corrector_steps)
    return x


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each image, [B, 1, 1, 1]."""
    return x.pow(2).sum(dim=tuple(range(1, x.ndim)), keepdim=True).sqrt()
