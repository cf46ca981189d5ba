"""Every sampler, driven by an exact denoiser, ends where it must, as fast as it should."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from oracles import Gaussian, Mixture, affine_moments, convergence_order
from torch import Tensor

from pipeline.config.schema_diffusion import DiffusionConfig, SamplerConfig
from pipeline.diffusion import multistep, samplers, sigma_schedules
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import Solve, build_sampler, no_noise
from pipeline.diffusion.posterior import large_variance, small_variance

DATA = Mixture()
HIGH, LOW = 20.0, 0.05
KINDS: list[str] = ["euler", "heun", "ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "langevin"]
DETERMINISTIC = {
    "euler": (samplers.euler, 1),
    "heun": (samplers.heun, 2),
    "dpmpp_2m": (multistep.dpmpp_2m, 2),
    "unipc-1": (partial(multistep.unipc, order=1), 2),  # the corrector adds one order to the predictor's
    "unipc-2": (partial(multistep.unipc, order=2), 3),
    "unipc-3": (partial(multistep.unipc, order=3), 4),
}


def _start(count: int = 64) -> Tensor:
    """Evenly spaced quantiles of the noisiest level, [count, 1, 1, 1]."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = HIGH * torch.special.ndtri(share)
    return x.view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_on_a_mixture(name: str) -> None:
    solve, order = DETERMINISTIC[name]
    x = _start()
    exact = DATA.flow(x, HIGH, LOW)

    def error(steps: int) -> float:
        sigmas = sigma_schedules.exponential(LOW, HIGH, steps + 1)[:-1]
        return float((solve(DATA.denoise, x, sigmas) - exact).abs().mean())

    measured = convergence_order(error, (320, 1280))
    assert measured == pytest.approx(order, abs=0.25), f"{name}: error falls as steps^-{measured:.2f}"


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_whole_way_to_zero_ends_in_the_data(name: str) -> None:
    solve, _ = DETERMINISTIC[name]
    x = _start()
    result = solve(DATA.denoise, x, sigma_schedules.karras(1e-3, HIGH, 400))
    torch.testing.assert_close(result, DATA.flow(x, HIGH, 0.0), rtol=0, atol=0.03)


def _gaussian_end(solve: Solve, steps: int, *, draws_a_step: int = 1) -> tuple[float, float]:
    """Exact mean and standard deviation of what a sampler makes of the exact denoiser of Gaussian data."""
    data = Gaussian()
    start_std = math.sqrt(HIGH**2 + data.std**2)

    def run(x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        return solve(data.denoise, x + data.mean, sigma_schedules.exponential(LOW, HIGH, steps + 1)[:-1], noise)

    return affine_moments(run, draws=steps * draws_a_step, start_std=start_std)


def _stochastic(name: str) -> Solve:
    if name == "churned_heun":
        return lambda d, x, s, n: samplers.heun(d, x, s, noise=n, amount=20.0)
    if name == "ddim":
        return lambda d, x, s, n: samplers.ddim(d, x, s, noise=n, eta=0.6)
    if name == "dpmpp_2m_sde":
        return lambda d, x, s, n: multistep.dpmpp_2m(d, x, s, noise=n, eta=1.0)
    if name == "langevin":
        return lambda d, x, s, n: samplers.langevin(d, x, s, noise=n, corrector_steps=0)
    variance = small_variance if name == "ddpm-small" else large_variance
    return lambda d, x, s, n: samplers.ancestral(d, x, s, noise=n, variance=variance)


@pytest.mark.parametrize(("name", "order"), [
    ("ddim", 1), ("ddpm-small", 1), ("ddpm-large", 1), ("langevin", 1), ("dpmpp_2m_sde", 2), ("churned_heun", 2),
])  # fmt: skip
def test_stochastic_samplers_converge_to_the_spread_of_gaussian_data(name: str, order: int) -> None:
    data, solve = Gaussian(), _stochastic(name)
    spread = math.sqrt(data.std**2 + LOW**2)
    assert _gaussian_end(solve, 640)[0] == pytest.approx(data.mean, abs=1e-3)
    measured = convergence_order(lambda steps: abs(_gaussian_end(solve, steps)[1] - spread), (160, 640))
    assert measured == pytest.approx(order, abs=0.3), f"{name}: error falls as steps^-{measured:.2f}"


@pytest.mark.parametrize(("base", "scale"), [(25.0, 1.0), (1.0, 10.0)])
def test_the_predictor_is_the_reverse_step_with_the_rate_of_each_time(base: float, scale: float) -> None:
    """x + g(t)^2 score dt + g(t) sqrt(dt) r with g = scale base^t, as VE tutorials write it: the same up to dt.

    The predictor adds the variance between two levels, which g(t)^2 dt overestimates by about dt ln(base).
    """
    data, steps = Gaussian(), 500
    levels = {"kind": "exponential", "base": base, "scale": scale}
    process = build_process(DiffusionConfig.model_validate({"parametrisation": "eps", "levels": levels}))
    sigmas = sigma_schedules.uniform_t(process.draw_sigma, steps)
    times = torch.linspace(1, 1e-3, steps, dtype=torch.float64)
    fresh = torch.randn(steps, 4000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = float(sigmas[0]) * torch.randn(4000, 1, 1, 1, dtype=torch.float64) + data.mean
    x, dt = start, float(times[0] - times[1])
    for k, (t, sigma) in enumerate(zip(times[:-1], sigmas[:-2], strict=True)):  # the last step, to sigma 0, is x0 here
        rate = scale * base ** float(t)
        x = x + rate**2 * (data.denoise(x, sigma) - x) / sigma**2 * dt + rate * math.sqrt(dt) * fresh[k]
    found = samplers.langevin(data.denoise, start, sigmas[:-1], noise=lambda k: fresh[k], corrector_steps=0)
    assert float(x.std()) == pytest.approx(float(found.std()), rel=0.02)
    assert float((x - found).abs().mean()) < 0.05 * data.std


def test_the_langevin_corrector_repairs_the_predictor() -> None:
    data, generator = Gaussian(mean=0.0), torch.Generator().manual_seed(0)
    sigmas, spread = sigma_schedules.exponential(LOW, HIGH, 60)[:-1], math.sqrt(data.std**2 + LOW**2)
    x = HIGH * torch.randn(64, 1, 16, 16, generator=generator, dtype=torch.float64)

    def gap(corrector_steps: int) -> float:
        fresh = {k: torch.randn(x.shape, generator=generator, dtype=x.dtype) for k in range(59 * (corrector_steps + 1))}
        run = partial(samplers.langevin, noise=fresh.__getitem__, corrector_steps=corrector_steps, snr=0.1)
        return abs(float(run(data.denoise, x, sigmas).std()) - spread)

    assert gap(3) < gap(0) / 2


def test_euler_in_the_time_of_flow_is_euler_in_sigma() -> None:
    sigmas, x = sigma_schedules.flow(50.0, 12), _start()
    z, times = x / (1 + sigmas[0]), sigmas / (1 + sigmas)
    for time, time_next in pairwise(times):
        x0 = DATA.estimate(z, signal=1 - time, noise=time)
        velocity = (z - (1 - time) * x0) / time - x0
        z = z + (time_next - time) * velocity
    torch.testing.assert_close(samplers.euler(DATA.denoise, x, sigmas), z, rtol=1e-10, atol=1e-10)


def test_mixing_in_the_prediction_step_by_step_is_euler_in_the_time_of_flow() -> None:
    """x <- x (1 - 1 / (n - i)) + prediction / (n - i), as a first report samples from noise alone."""
    n, sigma_max = 10, 1e6
    sigmas, x = sigma_schedules.flow(sigma_max, n), sigma_max * _start() / HIGH
    z = x / (1 + sigma_max)
    for i in range(n):
        share = (n - i) / n * sigma_max / (1 + sigma_max)
        prediction = DATA.estimate(z, signal=1 - share, noise=share)
        z = z * (1 - 1 / (n - i)) + prediction / (n - i)
    torch.testing.assert_close(samplers.euler(DATA.denoise, x, sigmas), z, rtol=1e-8, atol=1e-8)


def test_ddim_reaches_from_euler_to_ancestral() -> None:
    x, sigmas = _start(), sigma_schedules.karras(0.01, HIGH, 15)
    fresh = torch.randn(15, *x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ddim = partial(samplers.ddim, DATA.denoise, x, sigmas, noise=lambda k: fresh[k])
    torch.testing.assert_close(ddim(eta=0.0), samplers.euler(DATA.denoise, x, sigmas))
    torch.testing.assert_close(ddim(eta=1.0), samplers.ancestral(DATA.denoise, x, sigmas, noise=lambda k: fresh[k]))


def test_heun_without_churn_and_sde_without_noise_are_their_odes() -> None:
    x, sigmas = _start(), sigma_schedules.karras(0.01, HIGH, 15)
    churned = samplers.heun(DATA.denoise, x, sigmas, noise=no_noise, amount=0.0)
    torch.testing.assert_close(churned, samplers.heun(DATA.denoise, x, sigmas))
    outside = samplers.heun(DATA.denoise, x, sigmas, noise=no_noise, amount=9.0, between=(900.0, 1000.0))
    torch.testing.assert_close(outside, samplers.heun(DATA.denoise, x, sigmas))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_neighbours(kind: str) -> None:
    sampler = build_sampler(SamplerConfig(kind=kind, steps=6), build_process(DiffusionConfig()))
    normal = torch.randn(40, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = sampler(DATA.denoise, sampler.start(normal[0]), lambda k: normal[k + 1])
    alone = sampler(DATA.denoise, sampler.start(normal[0, 2:3]), lambda k: normal[k + 1, 2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_promised_number_of_calls_is_made(kind: str, steps: int) -> None:
    cfg = SamplerConfig(kind=kind, steps=steps)
    sampler = build_sampler(cfg, build_process(DiffusionConfig()))
    asked: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return DATA.denoise(x, sigma)

    result = sampler(denoise, sampler.start(torch.ones(2, 1, 2, 2)), lambda _: torch.zeros(2, 1, 2, 2))
    assert len(asked) == cfg.calls and 0 not in asked
    assert result.dtype == torch.float32 and result.isfinite().all()


def test_a_stochastic_sampler_without_noise_says_so() -> None:
    sampler = build_sampler(SamplerConfig(kind="ddpm", steps=4), build_process(DiffusionConfig()))
    with pytest.raises(ValueError, match="call it with noise"):
        sampler(DATA.denoise, torch.zeros(1, 1, 2, 2))
