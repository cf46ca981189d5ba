"""Settings -> the functions they name: sampling from a trained process."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.config.registry import SAMPLERS
from pipeline.config.schema_diffusion import GuidanceConfig, SamplerConfig, SigmaSchedule
from pipeline.diffusion import sigma_schedules
from pipeline.diffusion.build import Process
from pipeline.diffusion.guidance import clipped, extrapolated, remembered, rescaled, within
from pipeline.diffusion.posterior import LearnedVariance, Variance, large_variance, small_variance
from pipeline.diffusion.preconditioning import Denoise, Network, denoiser
from pipeline.diffusion.samplers import Noise, no_noise

Solve = Callable[[Denoise, Tensor, Tensor, Noise], Tensor]


@dataclass(frozen=True)
class Sampler:
    """A sampler and its sigma schedule. x and results are float32 or float64 [B, C, H, W], sigmas float64."""

    solve: Solve
    sigmas: Tensor  # [steps + 1], descending to 0
    data_std: float

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> x at the first noise level, with the variance of data plus noise."""
        return noise * math.sqrt(float(self.sigmas[0]) ** 2 + self.data_std**2)

    def from_image(self, image: Tensor, noise: Tensor, *, sigma: float) -> tuple["Sampler", Tensor]:
        """The rest of the way from `sigma`, and the x to start it with (Meng et al. 2022: SDEdit, algorithm 1)."""
        if not 0 < sigma <= float(self.sigmas[0]):
            raise ValueError(f"sigma is {sigma}; expected above 0 and at most the schedule's {float(self.sigmas[0])}")
        rest = torch.cat([torch.tensor([sigma], dtype=torch.float64), self.sigmas[self.sigmas < sigma]])
        return replace(self, sigmas=rest), image + sigma * noise

    def __call__(self, denoise: Denoise, x: Tensor, noise: Noise = no_noise) -> Tensor:
        """x at the first noise level -> x0. `noise`: number of the draw -> standard normal like x."""
        return self.solve(denoise, x, self.sigmas, noise)


@dataclass(frozen=True)
class Generator:
    """All of sampling but the noise: a denoiser, guided and limited, and the sampler that asks it."""

    denoise: Denoise
    sampler: Sampler

    def __call__(self, noise: Tensor, fresh: Noise = no_noise) -> Tensor:
        """Standard normal noise [B, C, H, W], and draws of fresh noise -> x0."""
        return self.sampler(self.denoise, self.sampler.start(noise), fresh)


def build_sampler(cfg: SamplerConfig, process: Process, *, variance: Variance | None = None) -> Sampler:
    """The sampler of `cfg`. `variance` is read where cfg.variance is "learned": see `LearnedVariance`."""
    return Sampler(_solver(cfg, variance), build_sigmas(cfg.sigmas, process, steps=cfg.steps), process.data_std)


def build_sigmas(cfg: SigmaSchedule, process: Process, *, steps: int) -> Tensor:
    """Noise levels, [steps + 1], descending to 0, float64."""
    low, high = cfg.sigma_min or process.sigma_min, cfg.sigma_max or process.sigma_max
    if cfg.kind == "karras":
        return sigma_schedules.karras(low, high, steps, rho=cfg.rho)
    if cfg.kind == "exponential":
        return sigma_schedules.exponential(low, high, steps)
    if cfg.kind == "flow":
        return sigma_schedules.flow(high, steps, shift=cfg.shift)
    if cfg.kind == "uniform_t":
        return sigma_schedules.uniform_t(process.draw_sigma, steps)
    if cfg.kind != "ddpm":
        raise ValueError(f"no sigma schedule is called '{cfg.kind}'")
    if process.table is None:
        raise ValueError("sigmas of DDPM's timesteps need a process with levels.kind=ddpm")
    return sigma_schedules.ddpm(process.table, steps, spacing=cfg.spacing)


def guided(cfg: GuidanceConfig, conditional: Denoise, other: Denoise | None) -> Denoise:
    """`conditional` led away from `other`, the prediction without a condition or of a guide model."""
    if not cfg.active:
        return conditional
    if other is None:
        raise ValueError(f"guidance with scale {cfg.scale} needs a second prediction, and there is none")
    conditional = remembered(conditional)
    led = extrapolated(conditional, other, factor=cfg.factor)
    if cfg.rescale > 0:
        led = rescaled(led, conditional, share=cfg.rescale)
    return within(led, conditional, low=cfg.interval[0], high=cfg.interval[1]) if cfg.interval else led


def build_generator(
    cfg: SamplerConfig,
    process: Process,
    network: Network,
    *,
    condition: Tensor | None = None,
    hidden: Tensor | None = None,
    guide: Denoise | None = None,
) -> Generator:
    """What `cfg` makes of a network of the process.

    `hidden`: the condition with everything unknown, for classifier-free guidance. `guide`: the guide model, for
    autoguidance. Call it under `torch.no_grad`.
    """
    learned = LearnedVariance(network, process.scales, condition) if cfg.variance == "learned" else None
    denoise = learned.denoise if learned else denoiser(network, process.scales, condition)
    other = guide if cfg.guidance.kind == "autoguidance" else denoiser(network, process.scales, hidden)
    denoise = guided(cfg.guidance, denoise, other)
    denoise = clipped(denoise, bound=cfg.clip) if cfg.clip else denoise
    sampler = build_sampler(cfg, process, variance=learned.variance if learned else None)
    return Generator(denoise, sampler)


def _solver(cfg: SamplerConfig, learned: Variance | None) -> Solve:
    """The registered function, given the settings that it reads."""
    kind = SAMPLERS[cfg.kind]
    function = kind.load()
    options = kind.options(cfg) if kind.options else {name: getattr(cfg, name) for name in kind.reads}
    options = {**options, **cfg.options}
    if "variance" in options:
        options["variance"] = _variance(cfg, learned)

    def solve(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise) -> Tensor:
        fresh = {"noise": noise} if kind.noise else {}
        result: Tensor = function(denoise, x, sigmas, **fresh, **options)
        return result

    return solve


def _variance(cfg: SamplerConfig, learned: Variance | None) -> Variance:
    if cfg.variance == "learned":
        if learned is None:
            raise ValueError("sampler.variance is learned: pass the variance of a LearnedVariance")
        return learned
    return {"large": large_variance, "small": small_variance}[cfg.variance]
