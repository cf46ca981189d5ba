"""Exact answers to compare with: data whose best denoiser, and whose way from noise to image, has a closed form."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Independent pixels, each N(mean, std^2)."""

    mean: float = 0.3
    std: float = 0.5

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x] for x = x0 + sigma * noise."""
        return self.mean + self.std**2 / (self.std**2 + sigma**2) * (x - self.mean)

    def flow(self, x: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
        """Solution of the probability flow ODE dx = (x - D) / sigma dsigma: distances to the mean scale with spread."""
        before, after = (torch.as_tensor(self.std**2 + s**2, dtype=x.dtype).sqrt() for s in (sigma, sigma_next))
        return self.mean + (x - self.mean) * after / before


@dataclass(frozen=True)
class Mixture:
    """Independent pixels, each from a mixture of normals on the line."""

    weights: tuple[float, ...] = (0.5, 0.2, 0.3)
    means: tuple[float, ...] = (-0.8, 0.1, 0.7)
    stds: tuple[float, ...] = (0.15, 0.3, 0.1)

    def _parts(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, mean and data variance [K, ...] of each part, and its variance at `sigma`."""
        shape = (-1, *[1] * x.ndim)
        weight, mean, std = (torch.tensor(v, dtype=x.dtype).view(shape) for v in (self.weights, self.means, self.stds))
        return weight, mean, std**2, std**2 + sigma**2

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x] for x = x0 + sigma * noise."""
        return self.estimate(x, signal=1.0, noise=sigma)

    def estimate(self, z: Tensor, *, signal: Tensor | float, noise: Tensor | float) -> Tensor:
        """E[x0 | z] for z = signal * x0 + noise * normal, in any scaling of z, by Bayes' rule part by part."""
        weight, mean, data, _ = self._parts(z, 0.0)
        total = signal**2 * data + noise**2
        log_density = weight.log() - total.log() / 2 - (z - signal * mean) ** 2 / (2 * total)
        best_of_part = mean + signal * data / total * (z - signal * mean)
        return (log_density.softmax(dim=0) * best_of_part).sum(dim=0)

    def cdf(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Share of noisy pixels below x."""
        weight, mean, _, total = self._parts(x, sigma)
        return (weight * torch.special.ndtr((x - mean) / total.sqrt())).sum(dim=0)

    def flow(self, x: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
        """Solution of the probability flow ODE: on a line particles do not overtake, so each keeps its quantile.

        Found by bisection, float64.
        """
        share = self.cdf(x, sigma)
        low, high = torch.full_like(x, -500.0), torch.full_like(x, 500.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(middle, sigma_next) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Clean pixels, float64."""
        parts = torch.multinomial(
            torch.tensor(self.weights, dtype=torch.float64),
            int(torch.tensor(shape).prod()),
            replacement=True,
            generator=generator,
        )
        mean, std = (torch.tensor(v, dtype=torch.float64)[parts] for v in (self.means, self.stds))
        return (mean + std * torch.randn(len(parts), generator=generator, dtype=torch.float64)).view(shape)


def convergence_order(error: Callable[[int], float], steps: tuple[int, ...]) -> float:
    """p in error ~ steps^-p, between the first and the last of `steps`."""
    first, last = error(steps[0]), error(steps[-1])
    ratio = torch.tensor([first / last, steps[-1] / steps[0]], dtype=torch.float64).log()
    return float(ratio[0] / ratio[1])


def affine_moments(
    run: Callable[[Tensor, Callable[[int], Tensor]], Tensor], *, draws: int, start_std: float
) -> tuple[float, float]:
    """Exact mean and standard deviation of a sampler's result, where each result is affine in start and fresh noise.

    `run(x [B, 1, 1, 1], noise)`: image 0 has neither start nor noise, image 1 a unit start, image k + 2 the unit
    `draw` k. So a single batch holds every coefficient, and no random number is drawn.
    """
    x = torch.zeros(draws + 2, 1, 1, 1, dtype=torch.float64)
    x[1] = 1.0

    def unit(draw: int) -> Tensor:
        noise = torch.zeros_like(x)
        noise[draw + 2] = 1.0
        return noise

    result = run(x, unit).flatten()
    slopes = result[1:] - result[0]
    slopes[0] *= start_std
    return float(result[0]), float(slopes.norm())
