"""The variational bound of DDPM's T steps: a loss for learned variances, and a likelihood in bits per dimension.

Between two Gaussians the divergence does not change when x is scaled, so all terms are taken in x = x0 + sigma * noise
and equal those of the papers. Timestep t leads from table[t] to table[t - 1], the first one from table[0] to x0.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.diffusion.loss import Weight, denoising_loss
from pipeline.diffusion.posterior import large_variance, place_of, small_variance
from pipeline.diffusion.preconditioning import Denoise, Network, Precondition, timestep
from pipeline.diffusion.samplers import Noise
from pipeline.runtime.constants import beside

GREY_LEVEL = 2 / 255  # of 8-bit pixels in [-1, 1]


class Bound(NamedTuple):
    """Parts of -log2 p(x0), in bits per dimension, whose sum is its upper bound."""

    terms: Tensor  # [B, T]; terms[:, 0] is the decoder's
    prior: Tensor  # [B]

    @property
    def total(self) -> Tensor:
        """[B]."""
        return self.terms.sum(dim=1) + self.prior


def bits_per_dimension(
    denoise: Denoise,
    x0: Tensor,
    table: Tensor,
    *,
    noise: Noise,
    place: Callable[[], Tensor | float] = lambda: 0.0,
) -> Bound:
    """Bound on the code length of 8-bit images x0 [B, C, H, W] in [-1, 1]; T calls of `denoise`.

    `noise`: timestep -> standard normal like x0. `place`: where the variance of the step `denoise` was asked last
    stands between small (0) and large (1): 0, 1, or `LearnedVariance.place`.
    Ho et al. 2020, equation 5; Nichol & Dhariwal 2021, equations 4 to 7.
    """
    terms = []
    for t in range(len(table)):
        sigma = beside(table, x0)[t].expand(len(x0)).view(-1, 1, 1, 1)
        x0_hat = denoise(x0 + sigma * noise(t), sigma)
        where = torch.as_tensor(place()).to(x0)
        timesteps = torch.full((len(x0),), t, device=x0.device)
        terms.append(step_bound(x0, x0_hat, timesteps=timesteps, table=table, place=where))
    return Bound(terms=torch.stack(terms, dim=1), prior=prior_bound(x0, table[-1]))


def step_bound(x0: Tensor, x0_hat: Tensor, *, timesteps: Tensor, table: Tensor, place: Tensor) -> Tensor:
    """Bits per dimension of one step, [B]: KL(q(x_next | x, x0) || p(x_next | x)), at timestep 0 -log p(x0 | x).

    timesteps: [B]. place: of the model's variance between small and large, broadcastable to x0 [B, C, H, W].
    """
    steps = _steps(table, timesteps, like=x0)
    log_variance = place * steps.log_large + (1 - place) * steps.log_small
    gap = (1 - (steps.sigma_next / steps.sigma) ** 2) * (x0 - x0_hat)  # between the two means
    divergence = gaussian_kl(gap, log_first=steps.log_small, log_second=log_variance)
    last = (timesteps == 0).view(-1, 1, 1, 1)
    # Where the decoder's answer is not used, its question must be harmless: 0 times an infinite slope is not 0.
    mean, log_std = torch.where(last, x0_hat, x0), torch.where(last, log_variance / 2, math.log(GREY_LEVEL))
    nats = torch.where(last, -grey_level_log_likelihood(x0, mean=mean, log_std=log_std), divergence)
    return nats.mean(dim=(1, 2, 3)) / math.log(2)


def prior_bound(x0: Tensor, sigma_max: Tensor) -> Tensor:
    """Bits per dimension, [B], of KL(q(x_T | x0) || N(0, sigma_max^2 + 1)), DDPM's standard normal."""
    variance = sigma_max.to(x0) ** 2
    nats = gaussian_kl(x0, log_first=variance.log(), log_second=(1 + variance).log())
    return nats.mean(dim=(1, 2, 3)) / math.log(2)


def gaussian_kl(gap: Tensor, *, log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL(first || second) in nats, elementwise: means `gap` apart, log variances given."""
    return (log_second - log_first + (log_first - log_second).exp() + gap**2 * (-log_second).exp() - 1) / 2


def grey_level_log_likelihood(x: Tensor, *, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of a Gaussian's mass in the grey level of x, elementwise (Ho et al. 2020, equation 13).

    The darkest and the brightest level reach to infinity. Accurate in the tails, where differences of distribution
    functions would be 0: the interval is mirrored to the lower tail and the difference taken of logarithms. Computed
    in float64, because the slope of `log_ndtr` is noise or infinite in the tails of float32.
    """
    dtype, x, mean, scale = x.dtype, x.double(), mean.double(), torch.exp(-log_std.double())
    upper = torch.where(x > 1 - GREY_LEVEL / 4, 1e3, x + GREY_LEVEL / 2 - mean) * scale
    lower = torch.where(x < -1 + GREY_LEVEL / 4, -1e3, x - GREY_LEVEL / 2 - mean) * scale
    mirrored = upper + lower > 0
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    log_upper: Tensor = torch.special.log_ndtr(upper)
    log_lower: Tensor = torch.special.log_ndtr(lower)
    return (log_upper + torch.log(-torch.expm1(log_lower - log_upper))).to(dtype)


def hybrid_loss(
    network: Network,
    scales: Precondition,
    x0: Tensor,
    *,
    sigma: Tensor,
    noise: Tensor,
    weight: Weight,
    table: Tensor,
    share: float,
    cond: Tensor | None = None,
) -> Tensor:
    """L_simple + share * L_vlb, per image, [B] (Nichol & Dhariwal 2021, equation 16).

    The network returns 2C channels: as in `denoising_loss`, and the place of the variance. The bound, T times one
    term in bits, teaches the variance alone: the mean enters it without gradient. sigma: entries of `table`.
    """
    x, s = x0 + sigma * noise, scales(sigma)
    mean, raw = network(s.c_in * x, s.c_noise.flatten(), cond).chunk(2, dim=1)
    simple = denoising_loss(lambda *_: mean, scales, x0, sigma=sigma, noise=noise, weight=weight)
    timesteps = timestep(sigma.flatten(), table=table).round().long()
    x0_hat = s.c_skip * x + s.c_out * mean.detach()
    bound = step_bound(x0, x0_hat, timesteps=timesteps, table=table, place=place_of(raw))
    return simple + share * len(table) * bound


class _Steps(NamedTuple):
    """Of each image's step, [B, 1, 1, 1]."""

    sigma: Tensor
    sigma_next: Tensor
    log_small: Tensor
    log_large: Tensor


def _steps(table: Tensor, timesteps: Tensor, *, like: Tensor) -> _Steps:
    """Steps at `timesteps` [B]. At timestep 0, where the small variance would be 0, it is DDPM's of timestep 1."""
    table = beside(table, like, table.dtype)
    sigma, sigma_next = table, torch.cat([torch.zeros_like(table[:1]), table[:-1]])
    small, large = small_variance(sigma, sigma_next), large_variance(sigma, sigma_next)
    small = torch.cat([small[1:2] / (1 + table[0] ** 2), small[1:]])
    columns = (column.to(like)[timesteps].view(-1, 1, 1, 1) for column in (sigma, sigma_next, small.log(), large.log()))
    return _Steps(*columns)
