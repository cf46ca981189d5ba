"""What `set_numerics` sets for a process."""

import ctypes
import resource

import pytest
import torch
from torch import nn

from pipeline.runtime.numerics import set_numerics


def pages_of_steps(network: nn.Module, x: torch.Tensor, count: int) -> int:
    """Pages of memory that the system hands out during some training steps."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        network(x).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(torch.cuda.is_available(), reason="set where there is no GPU")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_a_step_uses_the_memory_of_the_one_before():
    """Otherwise these steps ask for 28,000 pages."""
    set_numerics()
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.SiLU())]
    network, x = nn.Sequential(*layers), torch.randn(64, 32, 16, 16)
    pages_of_steps(network, x, 10)
    assert pages_of_steps(network, x, 10) < 5000
