"""Attention learns, where there is something to attend to."""

import math

import torch
from torch import nn

from pipeline.models.layers import Attention

SIZE, CHANNELS = 8, 32


def _images(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random signs in the first column, and where each pixel stands; the signs are wanted in the last column."""
    signs = torch.randint(0, 2, (count, SIZE), generator=generator).float() * 2 - 1
    angle = torch.arange(SIZE) / SIZE * 2 * math.pi
    images = torch.ones(count, 5, SIZE, SIZE)
    images[:, 0] = 0
    images[:, 0, :, 0] = signs
    images[:, 1], images[:, 2] = angle.cos()[:, None], angle.sin()[:, None]
    images[:, 3] = torch.linspace(-1, 1, SIZE)
    return images, signs


def _error(middle: nn.Module) -> float:
    """Of the last column after 150 steps, where no convolution reaches farther than its own pixel."""
    generator = torch.Generator().manual_seed(0)
    first, second = nn.Conv2d(5, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
    network = nn.Sequential(first, nn.SiLU(), middle, second, nn.SiLU(), nn.Conv2d(CHANNELS, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(150):
        images, signs = _images(32, generator)
        error = (network(images)[:, 0, :, -1] - signs).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    return sum(errors[-10:]) / 10


def test_attention_learns_to_fetch_what_is_far_away():
    """Each row's sign must be fetched from the other end of its row; without attention 1 is the least error."""
    torch.manual_seed(0)
    assert _error(Attention(CHANNELS, head_channels=16, groups=1)) < 0.05
    assert _error(nn.Identity()) > 0.9
