"""The same network, the same noise, the same schedule: samplers agree with the schedulers of `diffusers`.

Its schedulers work in float32 in DDPM's scaling (VP), ours in float64 steps of x = x0 + sigma * noise; so every call
of the network is compared in what the network sees, and the result in what comes out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from oracles import Mixture
from torch import Tensor

from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, SamplerConfig, UniformFlowLevels
from pipeline.diffusion import samplers
from pipeline.diffusion.build import Process, build_process
from pipeline.diffusion.build_sampler import Sampler, build_generator, build_sampler
from pipeline.diffusion.guidance import clipped
from pipeline.diffusion.preconditioning import denoiser

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
diffusers = pytest.importorskip("diffusers", reason="needs the optional package diffusers (extra: export)")

TOLERANCE = 1e-4
SHAPE = (2, 3, 8, 8)
DATA = Mixture()


@dataclass
class Network:
    """A convolution with fixed random weights around a good denoiser, which remembers what it was shown."""

    process: Process
    variance_channels: bool = False
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.kernel = torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64) / 5
        self.variance_kernel = torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64) / 5

    def __call__(self, z: Tensor, cond: Tensor, _: Tensor | None = None) -> Tensor:
        """z as the network sees it, cond [B]; both are remembered in float32, as a network would get them."""
        z, cond = z.float(), cond.float().expand(len(z))
        self.seen.append((z, cond))
        sigma, wide = _sigma_of(self.process, cond.double()).view(-1, 1, 1, 1), z.double()
        s = self.process.scales(sigma)
        x = wide / s.c_in
        x0 = DATA.denoise(x, sigma) + 0.2 * torch.conv2d(wide, self.kernel, padding=1).tanh()
        output = (x0 - s.c_skip * x) / s.c_out
        raw = torch.conv2d(wide, self.variance_kernel, padding=1).tanh()
        return torch.cat([output, raw], 1).float() if self.variance_channels else output.float()


def _sigma_of(process: Process, cond: Tensor) -> Tensor:
    """Noise level of the number by which the network knows it."""
    if process.table is not None:
        low = cond.floor().long().clamp(0, len(process.table) - 2)
        logs = process.table.log()
        return torch.lerp(logs[low], logs[low + 1], cond - low).exp()
    if process.data_std == 1:
        return cond / (1000 - cond)
    return (4 * cond).exp()


def _noise(draws: int) -> Tensor:
    return torch.randn(draws, *SHAPE, generator=torch.Generator().manual_seed(0))


def _agree(ours: Network, diffusers_model: Network, results: tuple[Tensor, Tensor], *, calls: int) -> None:
    assert len(ours.seen) == len(diffusers_model.seen) == calls
    for (z, cond), (diffusers_z, diffusers_cond) in zip(ours.seen, diffusers_model.seen, strict=True):
        torch.testing.assert_close(cond, diffusers_cond, rtol=1e-5, atol=0.01)
        torch.testing.assert_close(z, diffusers_z, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=TOLERANCE)


def _process(parametrisation: str, schedule: str = "linear", **settings: Any) -> Process:
    levels = DDPMLevels(kind="ddpm", schedule=schedule)
    return build_process(DiffusionConfig(parametrisation=parametrisation, levels=levels, **settings))


def _kwargs(parametrisation: str, schedule: str = "linear", spacing: str = "trailing") -> dict[str, Any]:
    """Settings by which the schedulers name the same process."""
    names = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    beta_schedule = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    return {
        "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": beta_schedule,
        "prediction_type": names[parametrisation], "timestep_spacing": spacing,
    }  # fmt: skip


def _ours(network: Network, x: Tensor, noise: Tensor, **settings: Any) -> Tensor:
    """x: standard normal. Ends in x0."""
    cfg = SamplerConfig.model_validate({"sigmas": {"kind": "ddpm"}} | settings)
    return build_generator(cfg, network.process, network)(x, lambda k: noise[k])


def _by_diffusers(
    network: Network, scheduler: Any, x: Tensor, steps: int, **step: Callable[[int], Any] | Any
) -> Tensor:
    """The loop of a diffusers pipeline. Callable settings are asked for every step."""
    scheduler.set_timesteps(steps)
    for index, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, t), t)
        now = {name: value(index) if callable(value) else value for name, value in step.items()}
        x = scheduler.step(output, t, x, **now).prev_sample
    return x


@pytest.mark.parametrize(("parametrisation", "schedule", "spacing"), [
    *product(("eps", "x0", "v"), ("linear",), ("trailing", "leading")),
    *product(("x0", "v"), ("cosine",), ("trailing",)),
    # on this schedule without sigma 20291, where x0 from the noise has two decimals in float32, in either library
    *product(("eps", "x0", "v"), ("cosine",), ("leading",)),
])  # fmt: skip
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim(parametrisation: str, schedule: str, spacing: str, eta: float) -> None:
    process, noise = _process(parametrisation, schedule), _noise(21)
    ours, diffusers_model = Network(process), Network(process)
    scheduler = diffusers.DDIMScheduler(**_kwargs(parametrisation, schedule, spacing), clip_sample=False)
    sigmas = {"kind": "ddpm", "spacing": spacing}
    results = (
        _ours(ours, noise[20], noise, kind="ddim", steps=20, eta=eta, sigmas=sigmas),
        _by_diffusers(diffusers_model, scheduler, noise[20], 20, eta=eta, variance_noise=lambda k: noise[k]),
    )
    _agree(ours, diffusers_model, results, calls=20)


@pytest.mark.parametrize(("variance", "diffusers_name"), [
    ("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range"),
])  # fmt: skip
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddpm(variance: str, diffusers_name: str, clip: float | None) -> None:
    """With leading spacing: with others diffusers adds noise to the finished image, unless the last timestep is 0."""
    learned = variance == "learned"
    process = _process("eps", learned_variance=learned)
    ours, diffusers_model = Network(process, learned), Network(process, learned)
    start, generator = _noise(1)[0], torch.Generator().manual_seed(9)
    noise = torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(25)])
    kwargs = _kwargs("eps", spacing="leading")
    scheduler = diffusers.DDPMScheduler(**kwargs, variance_type=diffusers_name, clip_sample=clip is not None)
    sigmas = {"kind": "ddpm", "spacing": "leading"}
    results = (
        _ours(ours, start, noise, kind="ddpm", steps=25, variance=variance, clip=clip, sigmas=sigmas),
        _by_diffusers(diffusers_model, scheduler, start, 25, generator=torch.Generator().manual_seed(9)),
    )
    _agree(ours, diffusers_model, results, calls=25)


@pytest.mark.parametrize("parametrisation", ["eps", "v"])
def test_dpmpp_2m(parametrisation: str) -> None:
    process, noise = _process(parametrisation), _noise(1)
    ours, diffusers_model = Network(process), Network(process)
    scheduler = diffusers.DPMSolverMultistepScheduler(**_kwargs(parametrisation), algorithm_type="dpmsolver++")
    results = (
        _ours(ours, noise[0], noise, kind="dpmpp_2m", steps=20),
        _by_diffusers(diffusers_model, scheduler, noise[0], 20),
    )
    _agree(ours, diffusers_model, results, calls=20)


def test_dpmpp_2m_sde() -> None:
    process, noise = _process("eps"), _noise(21)
    ours, diffusers_model = Network(process), Network(process)
    scheduler = diffusers.DPMSolverMultistepScheduler(**_kwargs("eps"), algorithm_type="sde-dpmsolver++")
    results = (
        _ours(ours, noise[20], noise, kind="dpmpp_2m_sde", steps=20),
        _by_diffusers(diffusers_model, scheduler, noise[20], 20, variance_noise=lambda k: noise[k]),
    )
    _agree(ours, diffusers_model, results, calls=20)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [5, 20])
def test_unipc(order: int, steps: int) -> None:
    process, noise = _process("eps"), _noise(1)
    ours, diffusers_model = Network(process), Network(process)
    scheduler = diffusers.UniPCMultistepScheduler(**_kwargs("eps"), solver_order=order, solver_type="bh2")
    results = (
        _ours(ours, noise[0], noise, kind="unipc", steps=steps, order=order),
        _by_diffusers(diffusers_model, scheduler, noise[0], steps),
    )
    _agree(ours, diffusers_model, results, calls=steps)


def _with_karras_sigmas(process: Process, **settings: Any) -> Sampler:
    return build_sampler(SamplerConfig.model_validate(settings), process)


@pytest.mark.parametrize("parametrisation", ["eps", "v"])
def test_heun_on_karras_levels_of_a_ddpm_process(parametrisation: str) -> None:
    """Between its timesteps, too, both tell the network the same fractional t."""
    process, noise = _process(parametrisation), _noise(1)
    ours, diffusers_model = Network(process), Network(process)
    scheduler = diffusers.HeunDiscreteScheduler(
        **(_kwargs(parametrisation) | {"timestep_spacing": "linspace"}), use_karras_sigmas=True
    )
    sampler = _with_karras_sigmas(process, kind="heun", steps=12)
    x = noise[0] * float(sampler.sigmas[0])
    results = (sampler(denoiser(ours, process.scales), x), _by_diffusers(diffusers_model, scheduler, x, 12))
    _agree(ours, diffusers_model, results, calls=23)


def test_euler_ancestral_is_ancestral_sampling() -> None:
    process = _process("eps")
    ours, diffusers_model = Network(process), Network(process)
    generator = torch.Generator().manual_seed(9)
    noise = torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(20)])
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**_kwargs("eps"))
    sampler = build_sampler(
        SamplerConfig.model_validate({"kind": "ddpm", "steps": 20, "sigmas": {"kind": "ddpm"}}), process
    )
    x = _noise(1)[0] * float(sampler.sigmas[0])
    results = (
        sampler(denoiser(ours, process.scales), x, lambda k: noise[k]),
        _by_diffusers(diffusers_model, scheduler, x, 20, generator=torch.Generator().manual_seed(9)),
    )
    _agree(ours, diffusers_model, results, calls=20)


@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
@pytest.mark.parametrize("kind", ["euler", "dpmpp_2m", "dpmpp_2m_sde"])
def test_edm(kind: str, sigmas: str) -> None:
    process = build_process(DiffusionConfig())
    ours, diffusers_model = Network(process), Network(process)
    settings = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": sigmas}
    generator = torch.Generator().manual_seed(9)
    noise = torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(18)])
    if kind == "euler":
        scheduler = diffusers.EDMEulerScheduler(**settings)
    else:
        algorithm = "dpmsolver++" if kind == "dpmpp_2m" else "sde-dpmsolver++"
        scheduler = diffusers.EDMDPMSolverMultistepScheduler(**settings, algorithm_type=algorithm)
    sampler = _with_karras_sigmas(process, kind=kind, steps=18, sigmas={"kind": sigmas})
    x = _noise(1)[0] * 80
    results = (
        sampler(denoiser(ours, process.scales), x, lambda k: noise[k]),
        _by_diffusers(diffusers_model, scheduler, x, 18, generator=torch.Generator().manual_seed(9)),
    )
    _agree(ours, diffusers_model, results, calls=18)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_with_shift(shift: float) -> None:
    levels = UniformFlowLevels(kind="uniform_flow")
    process, noise = build_process(DiffusionConfig(parametrisation="flow", levels=levels)), _noise(1)
    ours, diffusers_model = Network(process), Network(process)
    cfg = SamplerConfig.model_validate({"kind": "euler", "steps": 20, "sigmas": {"kind": "flow", "shift": shift}})
    sampler = build_sampler(cfg, process)
    times = sampler.sigmas / (1 + sampler.sigmas)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=times[:-1].tolist())
    z = noise[0]
    for t in scheduler.timesteps:
        z = scheduler.step(diffusers_model(z, t), t, z).prev_sample
    result = sampler(denoiser(ours, process.scales), noise[0] * (1 + sampler.sigmas[0]))
    _agree(ours, diffusers_model, (result, z), calls=20)
    published = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)  # its own shift, from t = sigma_max's
    first = 1000 / (shift + 1000)
    published.set_timesteps(sigmas=[first * (1 - i / 20) for i in range(20)])
    torch.testing.assert_close(published.sigmas.double(), times, rtol=0, atol=1e-6)


@pytest.mark.parametrize("corrector_steps", [0, 1, 2])
def test_predictor_corrector_for_one_image(corrector_steps: int) -> None:
    """For one image the batch's mean norms, which diffusers uses, are the image's own."""
    steps, generator = 30, torch.Generator().manual_seed(9)
    shape = (1, 3, 8, 8)
    noise = [torch.randn(shape, generator=generator) for _ in range(steps * (corrector_steps + 1))]
    scheduler = diffusers.ScoreSdeVeScheduler(snr=0.16, sigma_min=0.01, sigma_max=50.0, correct_steps=corrector_steps)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    x, generator = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 50, torch.Generator().manual_seed(9)
    z = x
    for index, t in enumerate(scheduler.timesteps):
        sigma = scheduler.discrete_sigmas[steps - 1 - index]
        for _ in range(corrector_steps):
            z = scheduler.step_correct((DATA.denoise(z, sigma) - z) / sigma**2, z, generator=generator).prev_sample
        score = (DATA.denoise(z, sigma) - z) / sigma**2
        step = scheduler.step_pred(score, t, z, generator=generator)
        z = step.prev_sample
    cfg = {"kind": "langevin", "steps": steps, "corrector_steps": corrector_steps, "sigmas": {"kind": "exponential"}}
    levels = {"kind": "geometric"}
    sampler = build_sampler(
        SamplerConfig.model_validate(cfg), build_process(DiffusionConfig.model_validate({"levels": levels}))
    )
    result = sampler(DATA.denoise, x, lambda k: noise[k])
    torch.testing.assert_close(result, step.prev_sample_mean, rtol=0, atol=TOLERANCE)


def test_clipping_bounds_every_estimate() -> None:
    x = torch.linspace(-80, 80, 24).view(1, 3, 2, 4)
    assert clipped(DATA.denoise, bound=0.5)(x, torch.tensor(0.1)).abs().max() == 0.5
    assert samplers.euler(clipped(DATA.denoise, bound=0.5), x, torch.tensor([80.0, 1.0, 0.0])).abs().max() <= 0.5
