"""What latents are like, from sums: against the whole at once, and which channels count as dead."""

import pytest
import torch

from pipeline.metrics.latent_sums import LatentSums, dead_channels
from pipeline.models.posterior import Posterior


def posterior(mean: torch.Tensor, std: torch.Tensor) -> Posterior:
    return Posterior(mean.double(), std.double())


def facts(found: Posterior, *, noise: bool, parts: int = 1) -> dict[str, list[float]]:
    cut = zip(found.mean.chunk(parts), found.std.chunk(parts), strict=True)
    sums = [LatentSums.of(m, s, Posterior(m, s).kl() if noise else None) for m, s in cut]
    return LatentSums.total(sums).facts(noise=noise)


def test_facts_of_parts_are_those_of_the_whole_channel_by_channel():
    torch.manual_seed(0)
    found = posterior(torch.randn(12, 3, 4, 5) * torch.tensor([1.0, 2, 3])[:, None, None] + 5, torch.rand(12, 3, 4, 5))
    expected = {
        "mean": found.mean.mean((0, 2, 3)),
        "deviation": found.mean.transpose(0, 1).flatten(1).std(dim=1, unbiased=False),
        "posterior_deviation": found.std.square().mean((0, 2, 3)).sqrt(),
        "kl_nats": found.kl().mean((0, 2, 3)),
    }
    for parts in (1, 4):
        said = facts(found, noise=True, parts=parts)
        assert said.keys() == expected.keys()
        for name, values in expected.items():
            assert said[name] == pytest.approx(values.tolist(), rel=1e-9), name


def test_a_channel_is_dead_where_its_posterior_is_the_prior():
    """The divergence of a mean of deviation m is m^2 / 2 nats: 0.1 is 0.005, below the limit of 0.01, 0.2 is 0.02."""
    torch.manual_seed(0)
    scale = torch.tensor([0.0, 0.1, 0.2, 3.0])[:, None, None]
    found = posterior(torch.randn(64, 4, 8, 8) * scale, torch.ones(64, 4, 8, 8))
    said = facts(found, noise=True)
    assert said["kl_nats"] == pytest.approx([0, 0.005, 0.02, 4.5], rel=0.05, abs=1e-12)
    assert dead_channels(said) == [0, 1]


def test_a_code_without_noise_is_dead_where_it_does_not_vary():
    torch.manual_seed(0)
    values = torch.randn(64, 3, 8, 8) * torch.tensor([0.001, 0.1, 1.0])[:, None, None] + 7
    said = facts(posterior(values, torch.zeros_like(values)), noise=False)
    assert said.keys() == {"mean", "deviation"} and dead_channels(said) == [0]
