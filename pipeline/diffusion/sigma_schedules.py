"""Sigma schedules of samplers: descending noise levels and a final 0, [steps + 1], float64 on the CPU.

On the CPU because samplers only read them as numbers, which would wait for a GPU.
"""

import torch
from torch import Tensor

from pipeline.diffusion.noise_levels import DrawSigma


def karras(sigma_min: float, sigma_max: float, steps: int, *, rho: float = 7.0) -> Tensor:
    """sigma^(1 / rho) evenly spaced (Karras et al. 2022, equation 5)."""
    levels = (sigma_max ** (1 / rho) + _ramp(steps) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return _ended(_beginning(levels, sigma_max))


def exponential(sigma_min: float, sigma_max: float, steps: int) -> Tensor:
    """ln(sigma) evenly spaced: equal steps of half the log-SNR (Lu et al. 2022, DPM-Solver)."""
    return _ended(sigma_max * (sigma_min / sigma_max) ** _ramp(steps))


def uniform_t(draw_sigma: DrawSigma, steps: int) -> Tensor:
    """The process's own time evenly spaced: quantiles of its training distribution, from the last to the first.

    With flow time that is uniform t, with a VE-SDE the exponential schedule, with a DDPM table its timesteps, of which
    more steps than there are is an error.
    """
    levels = draw_sigma(1 - _ramp(steps))
    if bool((levels.diff() >= 0).any()):
        raise ValueError(f"{steps} steps of uniform_t repeat a noise level: use fewer steps or another schedule")
    return _ended(levels)


def ddpm(table: Tensor, steps: int, *, spacing: str = "trailing") -> Tensor:
    """Every k-th timestep of a table [T] (Lin et al. 2023, table 2, where the three spacings have these names)."""
    total = len(table)
    timesteps = {
        "leading": lambda: (torch.arange(steps) * (total // steps)).flip(0),
        "linspace": lambda: torch.linspace(total - 1, 0, steps, dtype=torch.float64).round().long(),
        "trailing": lambda: torch.arange(steps, 0, -1, dtype=torch.float64).mul(total / steps).round().long() - 1,
    }[spacing]()
    return _ended(table[timesteps])


def flow(sigma_max: float, steps: int, *, shift: float = 1.0) -> Tensor:
    """Flow time evenly spaced down to 0, then sigma = shift * t / (1 - t) (Esser et al. 2024, equation 23).

    The first level is sigma_max whatever the shift.
    """
    time = sigma_max / (shift + sigma_max) * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    return _ended(_beginning(shift * time / (1 - time), sigma_max))


def _ramp(steps: int) -> Tensor:
    """From 0 to 1 in `steps` values; a single one is 0."""
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def _beginning(levels: Tensor, sigma_max: float) -> Tensor:
    """`levels` whose first is `sigma_max` exactly, so that sampling can start from that level."""
    return torch.cat([levels.new_tensor([sigma_max]), levels[1:]])


def _ended(levels: Tensor) -> Tensor:
    return torch.cat([levels.double(), torch.zeros(1, dtype=torch.float64)])
