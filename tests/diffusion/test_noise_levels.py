"""Noise levels hit their closed forms, whatever the number of timesteps."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipeline.config.ddpm_tables import LARGEST_BETA
from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, Levels
from pipeline.diffusion.build import build_process

U = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)


def _draw(**levels: object) -> torch.Tensor:
    parsed = TypeAdapter(Levels).validate_python(levels)
    return build_process(DiffusionConfig(levels=parsed)).draw_sigma(U)


def _log_snr(sigma: torch.Tensor) -> torch.Tensor:
    return -2 * sigma.log()


@pytest.mark.parametrize("timesteps", [300, 500, 800, 1000])
def test_ddpm_linear_is_the_product_of_its_betas(timesteps: int) -> None:
    levels = DDPMLevels(kind="ddpm", schedule="linear", timesteps=timesteps, rescale_betas=False)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, timesteps))
    np.testing.assert_allclose(-2 * np.log(levels.sigmas), np.log(alpha_bar / (1 - alpha_bar)), rtol=1e-9)


def test_rescaled_betas_end_in_the_same_noise_for_any_number_of_timesteps() -> None:
    ends = [DDPMLevels(kind="ddpm", timesteps=steps).sigma_max for steps in (300, 500, 800, 1000, 4000)]
    assert max(ends) / min(ends) < 1.12
    assert DDPMLevels(kind="ddpm", timesteps=300, rescale_betas=False).sigma_max < 5  # what a short table does else


@pytest.mark.parametrize("timesteps", [300, 1000])
def test_cosine_log_snr_is_closed_until_betas_are_capped(timesteps: int) -> None:
    levels = DDPMLevels(kind="ddpm", schedule="cosine", timesteps=timesteps)
    free = sum(beta < LARGEST_BETA for beta in levels.betas)
    assert free >= timesteps - 1
    angle = (np.arange(1, free + 1) / timesteps + 0.008) / 1.008 * math.pi / 2
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2  # the papers' alpha_bar(0), a constant factor
    closed = np.log(np.cos(angle) ** 2 / (first - np.cos(angle) ** 2))
    np.testing.assert_allclose(-2 * np.log(levels.sigmas[:free]), closed, rtol=1e-6)


def test_sigmoid_signal_is_half_where_time_is() -> None:
    levels = DDPMLevels(kind="ddpm", schedule="sigmoid", timesteps=1000)
    assert levels.sigmas[499] == pytest.approx(1.0, rel=1e-6)


def test_ddpm_draws_every_level_equally_often() -> None:
    process = build_process(DiffusionConfig(levels=DDPMLevels(kind="ddpm", timesteps=50)))
    drawn, counts = process.draw_sigma((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000).unique(
        return_counts=True
    )
    assert process.table is not None
    torch.testing.assert_close(drawn, process.table)
    assert counts.tolist() == [100] * 50


def test_log_normal_quantiles() -> None:
    sigma = _draw(kind="log_normal", mean=-1.2, std=1.2, sigma_min=1e-4, sigma_max=1e4)
    closed = 2.4 - 2.4 * torch.special.ndtri(U)
    torch.testing.assert_close(_log_snr(sigma), closed, rtol=1e-6, atol=1e-6)


def test_logit_normal_flow_time_with_shift() -> None:
    sigma = _draw(kind="logit_normal", mean=0.2, std=0.8, shift=3.0, sigma_min=1e-4, sigma_max=1e5)
    plain = torch.sigmoid(0.2 + 0.8 * torch.special.ndtri(U))
    shifted = 3 * plain / (1 + 2 * plain)  # Esser et al. 2024, equation 23
    torch.testing.assert_close(sigma / (1 + sigma), shifted, rtol=1e-6, atol=1e-6)


def test_uniform_flow_time_is_uniform() -> None:
    sigma = _draw(kind="uniform_flow", sigma_min=1e-4, sigma_max=1e5)
    torch.testing.assert_close(sigma / (1 + sigma), U, rtol=0, atol=2e-4)


def test_geometric_log_snr_is_a_line() -> None:
    sigma = _draw(kind="geometric", sigma_min=0.01, sigma_max=50.0)
    torch.testing.assert_close(_log_snr(sigma), -2 * (math.log(0.01) + U * math.log(5000)))


@pytest.mark.parametrize(("base", "scale"), [(25.0, 1.0), (4.0, 3.0), (1.0, 7.0)])
def test_exponential_levels_are_the_summed_variance_of_the_process(base: float, scale: float) -> None:
    """Of dx = scale base^t dw: sigma(t)^2 is the integral of scale^2 base^(2 s) from 0 to t."""
    sigma = _draw(kind="exponential", base=base, scale=scale, t_min=0.001)
    for place in (0, 499, 998):
        end = 0.001 + 0.999 * float(U[place])
        middles = (torch.arange(100_000, dtype=torch.float64) + 0.5) * end / 100_000
        expected = scale**2 * float((base ** (2 * middles)).mean()) * end
        assert float(sigma[place]) ** 2 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["log_normal", "logit_normal", "uniform_flow", "geometric", "exponential", "ddpm"])
def test_draws_grow_with_u_and_stay_in_the_range(kind: str) -> None:
    levels = TypeAdapter(Levels).validate_python({"kind": kind})
    sigma = build_process(DiffusionConfig(levels=levels)).draw_sigma(
        torch.cat([torch.tensor([1e-7]), U.float(), torch.tensor([1 - 6e-8])])
    )
    assert (sigma.diff() >= 0).all()
    assert sigma[0] >= levels.sigma_min * (1 - 1e-6) and sigma[-1] <= levels.sigma_max * (1 + 1e-6)
