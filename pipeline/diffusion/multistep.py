"""Samplers that remember: second and third order with one call of the denoiser a step.

Both integrate exactly in lambda = -ln(sigma), half the log-SNR, with D as a polynomial through past values. In
x = x0 + sigma * noise the papers' alpha is 1; the results are those of their VP form, divided by its alpha.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.diffusion.preconditioning import Denoise
from pipeline.diffusion.samplers import Noise


def _no_noise(_: int) -> Tensor:
    return torch.zeros(())


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise = _no_noise, eta: float = 0.0) -> Tensor:
    """DPM-Solver++(2M) at eta 0 (Lu et al. 2022b, algorithm 2), SDE-DPM-Solver++(2M) at eta 1 (the same paper).

    The first step, and the last one to sigma 0, are first order.
    """
    before, width_before = None, math.nan
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sigma_next == 0:
            return x0
        width = (sigma / sigma_next).log()
        midway = x0 if before is None else x0 + (x0 - before) * width / (2 * width_before)
        x = sigma_next / sigma * (-eta * width).exp() * x - torch.expm1(-(1 + eta) * width) * midway
        x = x + sigma_next * (-torch.expm1(-2 * eta * width)).sqrt() * noise(step)
        before, width_before = x0, width
    return x


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, *, order: int = 2) -> Tensor:
    """UniPC in its data form with B(h) = e^h - 1 (Zhao et al. 2023, algorithms 1 and 2 with "B2").

    Each call serves twice: to correct the step that led here, then to predict the next. Towards sigma 0 the order
    falls to 1, as it rises from 1 at the start.
    """
    levels: list[Tensor] = []
    estimates: list[Tensor] = []
    steps, start, used = len(sigmas) - 1, x, 0
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if step > 0:
            x = _unified(start, [*levels[-used:], sigma], [*estimates[-used:], x0], base=-2, target=sigma)
        levels, estimates = [*levels, sigma][-order:], [*estimates, x0][-order:]
        used = min(order, step + 1, steps - step if sigmas[-1] == 0 else order)
        start, x = x, _unified(x, levels[-used:], estimates[-used:], base=-1, target=sigma_next)
    return x


def _unified(x: Tensor, levels: list[Tensor], estimates: list[Tensor], *, base: int, target: Tensor) -> Tensor:
    """The step from levels[base] to `target` with D through all `estimates` (Zhao et al. 2023).

    Predictor: `base` is the last level. Corrector: the level after `base` is the target itself.
    """
    sigma, x0 = levels[base], estimates[base]
    width = (sigma / target).log()
    moved = target / sigma * x - torch.expm1(-width) * x0
    others = [i for i in range(len(levels)) if i != base % len(levels)]
    if not others:
        return moved
    ratios = torch.stack([(sigma / levels[i]).log() / width for i in others])
    shares = _shares(ratios, width)
    bend = torch.zeros_like(x)
    for share, ratio, i in zip(shares, ratios, others, strict=True):
        bend = bend + share / ratio * (estimates[i] - x0)
    return moved - torch.expm1(-width) * bend


def _shares(ratios: Tensor, width: Tensor) -> Tensor:
    """Solve R(r) a = phi / B for a, [K] (Zhao et al. 2023, theorem 3.1). One point: 1 / 2, as its authors do."""
    if len(ratios) == 1:
        return torch.full_like(ratios, 0.5)
    powers = torch.stack([ratios**k for k in range(len(ratios))])
    phi, sides = torch.expm1(-width) / -width - 1, []
    for k in range(1, len(ratios) + 1):
        sides.append(phi * math.factorial(k) / torch.expm1(-width))
        phi = phi / -width - 1 / math.factorial(k + 1)
    shares: Tensor = torch.linalg.solve(powers, torch.stack(sides))
    return shares
