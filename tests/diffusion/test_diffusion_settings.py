"""Settings refuse, before anything runs, what the maths has no meaning for."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.schema_diffusion import (
    DiffusionConfig,
    LogNormalLevels,
    SamplerConfig,
    SigmaSchedule,
    sampling_problems,
)
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import build_sampler, build_sigmas
from pipeline.runtime.errors import UserError

DDPM = {"kind": "ddpm"}
OTHER = LogNormalLevels().model_copy(update={"kind": "other"})
STEPS = build_process(DiffusionConfig(levels=DDPM))


@pytest.mark.parametrize(("settings", "message"), [
    ({"levels": {"kind": "log_normal", "sigma_min": 3.0, "sigma_max": 2.0}}, "expected min < max"),
    ({"levels": {"kind": "log_normal", "std": 0.3, "sigma_min": 5.0}}, "a share of .*: widen the range or move mean"),
    ({"levels": {"kind": "logit_normal", "shift": 1e-6}}, "mean is 0.0 and std 1.0: a share"),
    ({"levels": {"kind": "log_normal", "sigma_max": 1e6}}, "float32 keeps one grey level"),
    ({"levels": {"kind": "uniform_flow", "sigma_max": float("inf")}}, "finite"),
    ({"levels": {"kind": "log_normal", "sigma_min": 1e-7}}, "edm divides by sigma"),
    ({"levels": {"kind": "ddpm", "timesteps": 15}}, "rescale_betas"),
    ({"levels": {"kind": "ddpm"}, "noise": "uniform"}, "use noise=normal"),
    ({"levels": {"kind": "ddpm", "beta_end": 0.5, "rescale_betas": False}}, "float32 keeps one grey level"),
    ({"levels": {"kind": "ddpm", "beta_start": 0.03}}, "noise must grow"),
    ({"learned_variance": True}, "learned_variance needs discrete timesteps"),
    ({"time_input": "timestep"}, "time_input=timestep needs discrete timesteps"),
    ({"levels": {"kind": "lognormal"}}, "log_normal"),
    ({"parametrisation": "epsilon"}, "eps"),
])  # fmt: skip
def test_a_process_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionConfig.model_validate(settings)


def test_levels_are_log_normal_unless_said() -> None:
    levels = DiffusionConfig.model_validate({"levels": {"sigma_max": 20.0}}).levels
    assert (levels.kind, levels.sigma_max) == ("log_normal", 20.0)
    with pytest.raises(ValidationError, match="expected min < max"):
        DiffusionConfig.model_validate({"levels": {"sigma_min": 5.0, "sigma_max": 2.0}})


def test_x0_holds_levels_that_others_cannot() -> None:
    levels = {"kind": "log_normal", "sigma_min": 1e-7}
    assert DiffusionConfig.model_validate({"parametrisation": "x0", "levels": levels}).levels.sigma_min == 1e-7


@pytest.mark.parametrize("timesteps", [300, 500, 800, 1000, 4000])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_every_published_table_fits(timesteps: int, schedule: str) -> None:
    levels = {"kind": "ddpm", "schedule": schedule, "timesteps": timesteps}
    assert DiffusionConfig.model_validate({"parametrisation": "eps", "levels": levels}).network_time_input == "timestep"


@pytest.mark.parametrize(("settings", "message"), [
    ({"kind": "euler", "churn": {"amount": 3.0}}, "churn is set, but kind=euler does not read it; only heun does"),
    ({"kind": "heun", "eta": 0.5}, "eta is set"),
    ({"kind": "heun", "variance": "large"}, "variance is set"),
    ({"kind": "ddim", "eta": 1.5}, "0 <= eta <= 1"),
    ({"sigmas": {"kind": "karras", "shift": 2.0}}, "shift is set, but kind=karras"),
    ({"sigmas": {"kind": "ddpm", "sigma_max": 2.0}}, "sigma_max is set, but kind=ddpm"),
    ({"sigmas": {"kind": "flow", "sigma_min": 0.1}}, "sigma_min is set, but kind=flow"),
    ({"sigmas": {"sigma_min": 2.0, "sigma_max": 1.0}}, "expected min < max"),
    ({"churn": {"amount": 9.0, "sigma_min": 3.0, "sigma_max": 1.0}}, "no noise level lies between"),
    ({"guidance": {"scale": 2.0, "interval": [3.0, 1.0]}}, "low < high"),
    ({"guidance": {"kind": "autoguidance", "scale": 2.0}}, "set guide_model"),
    ({"guidance": {"guide_model": "runs/a"}}, "only kind=autoguidance reads"),
    ({"kind": "dpm"}, "dpmpp_2m"),
    ({"steps": 0}, "greater than or equal to 1"),
])  # fmt: skip
def test_a_sampler_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SamplerConfig.model_validate(settings)


@pytest.mark.parametrize(("sampler", "process", "conditional", "message"), [
    ({"kind": "ddpm", "variance": "learned"}, {"levels": DDPM}, True, "learned_variance=true"),
    ({"kind": "ddpm", "variance": "large"}, {}, True, "beta of a DDPM process"),
    ({"kind": "ddpm", "sigmas": {"kind": "ddpm"}}, {"parametrisation": "flow"}, True, "ddpm, but .* is log_normal"),
    ({"steps": 400, "sigmas": {"kind": "ddpm"}}, {"levels": DDPM | {"timesteps": 300}}, True, "than the process's 300"),
    ({"sigmas": {"sigma_max": 500.0}}, {}, True, r"within the trained range \[0.002, 80\]"),
    ({"sigmas": {"sigma_min": 1e-4}}, {}, True, "sigma_min: found 0.0001"),
    ({"sigmas": {"sigma_min": 80.0}}, {}, True, "found levels from 80 down to 80, expected sigma_min < sigma_max"),
    ({"guidance": {"scale": 2.0, "interval": [90.0, 99.0]}}, {}, True, r"\[0.002, 80\]: guidance would never occur"),
    ({"steps": 40, "sigmas": {"kind": "uniform_t"}}, {"levels": DDPM | {"timesteps": 30}}, True, "the process's 30"),
    ({"guidance": {"scale": 2.0}}, {}, False, "unconditional"),
    ({"guidance": {"scale": 2.0}}, {"label_dropout": 0.0}, True, "label_dropout is 0"),
])  # fmt: skip
def test_a_sampler_that_does_not_fit_its_process(
    sampler: dict[str, Any], process: dict[str, Any], conditional: bool, message: str
) -> None:
    cfg, diffusion = SamplerConfig.model_validate(sampler), DiffusionConfig.model_validate(process)
    problems = sampling_problems(cfg, diffusion, conditional=conditional)
    assert len(problems) == 1
    assert re.search(message, problems[0]), problems


def test_what_fits_has_no_problems() -> None:
    assert sampling_problems(SamplerConfig(), DiffusionConfig(), conditional=False) == []
    guide = SamplerConfig.model_validate(
        {"guidance": {"kind": "autoguidance", "scale": 2.0, "guide_model": "runs/small"}}
    )
    assert sampling_problems(guide, DiffusionConfig(label_dropout=0.0), conditional=False) == []


def test_both_conventions_name_the_same_factor() -> None:
    def factor(**settings: Any) -> float:
        return SamplerConfig.model_validate({"guidance": settings}).guidance.factor

    assert factor(scale=3.0) == factor(scale=2.0, convention="ho") == 3.0
    assert not SamplerConfig.model_validate({"guidance": {"scale": 0.0, "convention": "ho"}}).guidance.active


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_process(DiffusionConfig().model_copy(update={"parametrisation": "other"})),
        lambda: build_process(DiffusionConfig().model_copy(update={"time_input": "other"})),
        lambda: build_process(DiffusionConfig().model_copy(update={"time_input": "timestep"})),
        lambda: build_process(DiffusionConfig().model_copy(update={"levels": OTHER})),
        lambda: build_sampler(SamplerConfig().model_copy(update={"kind": "other"}), build_process(DiffusionConfig())),
        lambda: build_sigmas(
            SigmaSchedule().model_copy(update={"kind": "other"}), build_process(DiffusionConfig(levels=DDPM)), steps=2
        ),
    ],
)
def test_no_name_falls_back_to_another(build: Callable[[], object]) -> None:
    """Settings refuse unknown names; what is built from them must not depend on that."""
    with pytest.raises((ValueError, KeyError, UserError), match=r"other|levels.kind=ddpm"):
        build()


@pytest.mark.parametrize(("sampler", "refused"), [
    ({"kind": "ddpm"}, True), ({"kind": "heun", "churn": {"amount": 5}}, True), ({"kind": "ddim", "eta": 0.5}, True),
    ({"kind": "heun"}, False), ({"kind": "ddim"}, False), ({"kind": "euler"}, False),
])  # fmt: skip
def test_samplers_with_fresh_noise_want_normal_noise(sampler: dict[str, Any], refused: bool) -> None:
    diffusion = DiffusionConfig(levels={"kind": "uniform_flow"}, noise="uniform", parametrisation="x0_flow")
    problems = sampling_problems(SamplerConfig(**sampler), diffusion, conditional=False)
    assert any("fresh noise" in problem for problem in problems) is refused
