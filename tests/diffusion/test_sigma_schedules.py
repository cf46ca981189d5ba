"""Sigma schedules descend from the noise to the image, evenly in their own measure."""

import math

import pytest
import torch

from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, SigmaSchedule, UniformFlowLevels
from pipeline.diffusion import sigma_schedules
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import build_sigmas


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_schedules_descend_from_the_largest_sigma_to_zero(steps: int) -> None:
    for kind in ("karras", "exponential", "uniform_t", "flow"):
        levels = build_sigmas(SigmaSchedule(kind=kind), build_process(DiffusionConfig()), steps=steps)
        assert levels.shape == (steps + 1,) and levels.dtype == torch.float64
        assert levels[0].item() == pytest.approx(80.0) and levels[-1] == 0 and (levels.diff() < 0).all()


def test_even_spacing_in_each_schedules_own_measure() -> None:
    def uneven(values: torch.Tensor) -> float:
        return float(values.diff().std() / values.diff().abs().mean())

    assert uneven(sigma_schedules.karras(0.002, 80, 20)[:-1] ** (1 / 7)) < 1e-12
    assert uneven(sigma_schedules.exponential(0.002, 80, 20)[:-1].log()) < 1e-12
    flow = sigma_schedules.flow(80.0, 20, shift=3.0) / 3
    assert uneven(flow / (1 + flow)) < 1e-12  # to t = 0 included


@pytest.mark.parametrize("sigma_max", [20.0, 80.0, 1000.0])
@pytest.mark.parametrize("kind", ["karras", "exponential", "flow"])
def test_the_largest_level_itself_can_be_started_from(kind, sigma_max: float) -> None:
    """To the last digit: a root and its power are not a number's own inverse."""
    process = build_process(DiffusionConfig(levels=UniformFlowLevels(kind="uniform_flow", sigma_max=sigma_max)))
    assert build_sigmas(SigmaSchedule(kind=kind), process, steps=18)[0] == sigma_max


def test_karras_published_ends() -> None:
    levels = sigma_schedules.karras(0.002, 80, 18)
    assert levels[17].item() == pytest.approx(0.002) and levels[1].item() == pytest.approx(57.586, abs=1e-3)


def test_uniform_t_follows_the_process() -> None:
    flow = build_process(DiffusionConfig(levels=UniformFlowLevels(kind="uniform_flow", sigma_max=99.0)))
    levels = build_sigmas(SigmaSchedule(kind="uniform_t"), flow, steps=9)[:-1]
    times = levels / (1 + levels)
    torch.testing.assert_close(times.diff(), times.diff().mean().expand(8))
    ddpm = build_process(DiffusionConfig(levels=DDPMLevels(kind="ddpm", timesteps=300)))
    assert ddpm.table is not None
    torch.testing.assert_close(build_sigmas(SigmaSchedule(kind="uniform_t"), ddpm, steps=300)[:-1], ddpm.table.flip(0))


def test_uniform_t_refuses_to_repeat_a_level() -> None:
    ddpm = build_process(DiffusionConfig(levels=DDPMLevels(kind="ddpm", timesteps=10, rescale_betas=False)))
    with pytest.raises(ValueError, match="fewer steps"):
        build_sigmas(SigmaSchedule(kind="uniform_t"), ddpm, steps=11)


def test_ddpm_spacings_of_the_published_table() -> None:
    table = torch.arange(
        1, 1001, dtype=torch.float64
    )  # level = timestep counted from 1, as in Lin et al. 2023, table 2
    for spacing, expected in {
        "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
        "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
        "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
    }.items():
        assert sigma_schedules.ddpm(table, 10, spacing=spacing)[:-1].tolist() == expected


def test_a_shift_multiplies_odds_and_keeps_the_first_level() -> None:
    plain, shifted = sigma_schedules.flow(60.0, 8), sigma_schedules.flow(60.0, 8, shift=4.0)
    assert shifted[0].item() == pytest.approx(plain[0].item())
    assert (shifted[1:-1] > plain[1:-1]).all()
    assert math.isclose(float(shifted[4]), 4 * 0.5 * (60 / 64) / (1 - 0.5 * (60 / 64)))
