"""Which noise levels training sees: functions from a uniform number u in (0, 1) to sigma, growing with u.

Each is the inverse of a distribution's cumulative function, so u uniform draws from it, and evenly spaced u are its
quantiles: the time of the process, running from sigma_min at 0 to sigma_max at 1.

Flow time t = sigma / (1 + sigma) makes logit(t) = ln(sigma). Hence a logit-normal t is a log-normal sigma, and the
shift of Stable Diffusion 3 is a factor on sigma.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.runtime.constants import beside

DrawSigma = Callable[[Tensor], Tensor]


def log_normal(mean: float, std: float, *, sigma_min: float, sigma_max: float) -> DrawSigma:
    """ln sigma ~ N(mean, std^2), cut to [sigma_min, sigma_max] (Karras et al. 2022, table 1, "noise distribution")."""
    low, high = (_normal_cdf((math.log(sigma) - mean) / std) for sigma in (sigma_min, sigma_max))

    def draw(u: Tensor) -> Tensor:
        share = low + (high - low) * u
        normal: Tensor = torch.special.ndtri(share)
        return (mean + std * normal).exp().clamp(sigma_min, sigma_max)

    return draw


def uniform_flow(shift: float, *, sigma_min: float, sigma_max: float) -> DrawSigma:
    """sigma = shift * t / (1 - t) with t uniform, over the part of [0, 1] that falls in the range."""
    low, high = (sigma / (shift + sigma) for sigma in (sigma_min, sigma_max))

    def draw(u: Tensor) -> Tensor:
        time = low + (high - low) * u
        return (shift * time / (1 - time)).clamp(sigma_min, sigma_max)

    return draw


def geometric(*, sigma_min: float, sigma_max: float) -> DrawSigma:
    """sigma_min (sigma_max / sigma_min)^u: the VE-SDE (Song et al. 2021: score SDE, appendix C)."""
    return lambda u: sigma_min * (sigma_max / sigma_min) ** u


def exponential(base: float, *, t_min: float, scale: float = 1.0) -> DrawSigma:
    """scale sqrt((base^(2 t) - 1) / (2 ln base)), t uniform in [t_min, 1]: the deviation of dx = scale base^t dw at t.

    base 1 is the limit, scale sqrt(t).
    """
    rate = 2 * math.log(base)

    def draw(u: Tensor) -> Tensor:
        time = t_min + (1 - t_min) * u
        return scale * ((rate * time).expm1() / rate if rate else time).sqrt()

    return draw


def table(levels: Tensor) -> DrawSigma:
    """One of T discrete levels [T], each equally likely."""

    def draw(u: Tensor) -> Tensor:
        steps = (u * len(levels)).long().clamp(0, len(levels) - 1)
        return beside(levels, u)[steps]

    return draw


def _normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))
