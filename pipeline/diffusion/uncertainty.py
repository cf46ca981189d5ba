"""EDM2's balance of the loss over noise levels, learned along with the network and thrown away after training."""

import math

import torch
from torch import Tensor, nn


class LossBalance(nn.Module):
    """loss / exp(u(sigma)) + u(sigma), with u a small head (Karras et al. 2024a: EDM2).

    At its optimum exp(u) is the mean loss at that sigma, so every noise level then contributes 1. u starts at 0,
    where this is the loss itself.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # fixed features: the same in every run
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, generator=generator))
        self.head = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """u of sigma, any shape of B values -> [B]."""
        angles = sigma.flatten()[:, None].log() / 4 * self.frequencies + self.phases
        return self.head(math.sqrt(2) * angles.cos()).squeeze(1)  # type: ignore[no-any-return]

    def forward(self, loss: Tensor, sigma: Tensor) -> Tensor:
        """loss [B], sigma of B values -> what to minimise, [B]."""
        u = self.uncertainty(sigma)
        return loss * torch.exp(-u) + u


class PlainLoss(nn.Module):
    """The loss as it is: what an objective uses where nothing is balanced."""

    def forward(self, loss: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002 (one signature for both)
        """loss [B], sigma -> loss."""
        return loss
