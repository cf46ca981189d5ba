"""How errors at different noise levels are weighed: functions of sigma, as factors of |D - x0|^2.

In these units the paper's loss of a parametrisation, the plain squared error of what the network returns, is
1 / out(sigma)^2: 1 / sigma^2 for eps ("L_simple"), 1 + 1 / sigma^2 for v, and EDM's lambda for edm.
"""

import torch
from torch import Tensor

from pipeline.diffusion.loss import Weight
from pipeline.diffusion.preconditioning import Precondition


def plain(scales: Precondition) -> Weight:
    """Every error of the network's own output counts alike."""
    return lambda sigma: scales(sigma).c_out ** -2


def uniform(sigma: Tensor) -> Tensor:
    """Every error of x0 counts alike."""
    return torch.ones_like(sigma)


def snr(sigma: Tensor) -> Tensor:
    """The signal-to-noise ratio 1 / sigma^2: every error of the noise counts alike."""
    return sigma**-2


def min_snr(gamma: float) -> Weight:
    """min(1 / sigma^2, gamma) (Hang et al. 2023: Min-SNR-gamma, where gamma is 5)."""
    return lambda sigma: (sigma**-2).clamp(max=gamma)


def edm(sigma_data: float) -> Weight:
    """(sigma^2 + sigma_data^2) / (sigma * sigma_data)^2 (Karras et al. 2022, table 1, lambda)."""
    return lambda sigma: (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
