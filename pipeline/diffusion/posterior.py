"""One step back in time, exactly: q(x_next | x, x0) of the diffusion, for noise levels sigma > sigma_next.

Variances are those of x_next in x = x0 + sigma * noise. DDPM's, of alpha * x, are alpha^2 times these.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.diffusion.preconditioning import Network, Precondition, for_each

Variance = Callable[[Tensor, Tensor], Tensor]
"""(sigma, sigma_next) -> variance of x_next, broadcastable to x."""


def posterior_mean(x: Tensor, x0: Tensor, *, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Mean of q(x_next | x, x0) (Ho et al. 2020, equation 7)."""
    return x0 + (sigma_next / sigma) ** 2 * (x - x0)


def small_variance(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Variance of q(x_next | x, x0): beta-tilde (Ho et al. 2020, equation 7). Right where x0 is one point."""
    return sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2


def large_variance(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """beta (Ho et al. 2020, section 3.2): right where the data is standard normal."""
    return (sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)


class LearnedVariance:
    """A network with 2C channels as a denoiser and the variance of its steps.

    One call of the network answers both questions, so the second answer waits here: `variance` belongs to the last
    call of `denoise`. Guidance and clipping wrap `denoise` as they do for any model.
    """

    def __init__(self, network: Network, scales: Precondition, condition: Tensor | None = None) -> None:
        self._network, self._scales, self._condition = network, scales, condition
        self._place = torch.empty(0)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B, C, H, W], sigma a scalar or [B, 1, 1, 1] -> estimate of x0 [B, C, H, W]."""
        s = self._scales(sigma)
        output = self._network(s.c_in * x, for_each(s.c_noise, x), self._condition)
        mean, raw = output.to(x.dtype).chunk(2, dim=1)
        self._place = place_of(raw)
        return s.c_skip * x + s.c_out * mean

    def variance(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Variance [B, C, H, W] of the step from the x that `denoise` saw last."""
        return interpolated_variance(self._place, sigma, sigma_next)

    def place(self) -> Tensor:
        """Where that variance stands between the small (0) and the large (1) one, [B, C, H, W]."""
        return self._place


def place_of(raw: Tensor) -> Tensor:
    """The network's variance channels, about [-1, 1], as a place between the small (0) and large (1) variance."""
    return (raw + 1) / 2


def interpolated_variance(place: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """exp(p ln large + (1 - p) ln small) (Nichol & Dhariwal 2021, equation 15). sigma_next > 0."""
    small, large = small_variance(sigma, sigma_next), large_variance(sigma, sigma_next)
    return (place * large.log() + (1 - place) * small.log()).exp()
