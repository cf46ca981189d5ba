"""Settings of the diffusion process and of sampling from it, with every rule about them that needs no torch.

All noise levels are sigma in x = x0 + sigma * noise, whatever a parametrisation calls its own time.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.config import ddpm_tables
from pipeline.config.base import Settings
from pipeline.config.explain import own_settings
from pipeline.config.registry import SAMPLERS, sampler

# float32 rounds x0 + sigma * noise by sigma / 2**24: beyond this, by more than one grey level of 2 / 255.
SIGMA_LARGEST = 2 / 255 * 2**24
# Networks that see the noise (all but x0) have targets with a rounding error of 2**-24 / sigma: here 6e-4.
SIGMA_SMALLEST = 1e-4
LEAST_SHARE = 1e-6  # of a distribution of noise levels that its range must hold


class _SigmaRange(Settings):
    """The finite range of noise levels that is trained and sampled."""

    sigma_min: float = Field(0.002, gt=0, allow_inf_nan=False)
    sigma_max: float = Field(80.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "_SigmaRange":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}: expected min < max")
        return self


def _refuse_empty(levels: "LogNormalLevels | LogitNormalLevels", centre: float) -> None:
    """A range so far from ln sigma ~ N(centre, std) that all draws would be one end of it is an error."""
    low, high = ((math.log(sigma) - centre) / levels.std for sigma in (levels.sigma_min, levels.sigma_max))
    share = abs(math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    if share < LEAST_SHARE:
        raise ValueError(
            f"mean is {levels.mean} and std {levels.std}: a share of {share:.1g} of these levels is in the range"
            f" {levels.sigma_min} to {levels.sigma_max}, expected {LEAST_SHARE:g}: widen the range or move mean"
        )


class LogNormalLevels(_SigmaRange):
    """ln sigma ~ N(mean, std), cut to the range (Karras et al. 2022, table 1)."""

    kind: Literal["log_normal"] = "log_normal"
    mean: float = -1.2
    std: float = Field(1.2, gt=0)

    @model_validator(mode="after")
    def _reaches_its_range(self) -> "LogNormalLevels":
        _refuse_empty(self, self.mean)
        return self


class LogitNormalLevels(_SigmaRange):
    """Flow time t = sigma / (1 + sigma) with logit t ~ N(mean, std) (Esser et al. 2024, equation 19), then shifted."""

    kind: Literal["logit_normal"]
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    shift: float = Field(1.0, gt=0)  # multiplies sigma: Esser et al. 2024, equation 23
    sigma_max: float = Field(1000.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _reaches_its_range(self) -> "LogitNormalLevels":
        _refuse_empty(self, self.mean + math.log(self.shift))
        return self


class UniformFlowLevels(_SigmaRange):
    """Flow time t = sigma / (1 + sigma) uniform (Liu et al. 2023: rectified flow), then shifted."""

    kind: Literal["uniform_flow"]
    shift: float = Field(1.0, gt=0)
    sigma_max: float = Field(1000.0, gt=0, allow_inf_nan=False)


class GeometricLevels(_SigmaRange):
    """The VE-SDE: sigma_min (sigma_max / sigma_min)^t with t uniform (Song et al. 2021: score SDE, appendix C)."""

    kind: Literal["geometric"]
    sigma_min: float = Field(0.01, gt=0, allow_inf_nan=False)
    sigma_max: float = Field(50.0, gt=0, allow_inf_nan=False)


class ExponentialLevels(Settings):
    """The VE process dx = scale base^t dw with t uniform in [t_min, 1] (Song et al. 2021: score SDE, in the tutorials'
    form).

    The noise at t has the deviation sigma(t) = scale sqrt((base^(2 t) - 1) / (2 ln base)). base 1: the same noise is
    added at every time, and sigma(t) = scale sqrt(t).
    """

    kind: Literal["exponential"]
    base: float = Field(25.0, ge=1, allow_inf_nan=False)
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    t_min: float = Field(1e-3, gt=0, lt=1)

    def sigma(self, t: float) -> float:
        """Noise level at time t."""
        rate = 2 * math.log(self.base)
        return self.scale * math.sqrt(math.expm1(t * rate) / rate if rate else t)

    @property
    def sigma_min(self) -> float:
        """Level at t_min."""
        return self.sigma(self.t_min)

    @property
    def sigma_max(self) -> float:
        """Level at 1."""
        return self.sigma(1.0)


class DDPMLevels(Settings):
    """T discrete levels; the range of sigma follows from them."""

    kind: Literal["ddpm"]
    schedule: ddpm_tables.Schedule = "linear"
    timesteps: int = Field(1000, ge=2, le=100_000)
    beta_start: float = Field(1e-4, gt=0, lt=1)  # linear and scaled_linear alone
    beta_end: float = Field(0.02, gt=0, lt=1)
    rescale_betas: bool = True  # betas times 1000 / T, so that any T ends in the same noise; False: as written

    @property
    def beta_scale(self) -> float:
        """Factor on beta_start and beta_end."""
        return 1000 / self.timesteps if self.rescale_betas else 1.0

    @cached_property
    def betas(self) -> list[float]:
        """Variance added at each timestep, [T]."""
        start, end = self.beta_start * self.beta_scale, self.beta_end * self.beta_scale
        return ddpm_tables.betas(self.schedule, self.timesteps, start=start, end=end)

    @cached_property
    def sigmas(self) -> list[float]:
        """Noise level of each timestep, ascending, [T]."""
        return ddpm_tables.sigmas(self.betas)

    @property
    def sigma_min(self) -> float:
        """Level of timestep 0."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """Level of timestep T - 1."""
        return self.sigmas[-1]

    @model_validator(mode="after")
    def _betas_are_variances(self) -> "DDPMLevels":
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end is {self.beta_end}, below beta_start ({self.beta_start}): noise must grow")
        if self.schedule in ("linear", "scaled_linear") and self.beta_end * self.beta_scale >= 1:
            raise ValueError(
                f"beta_end is {self.beta_end}, which 1000 / {self.timesteps} timesteps make"
                f" {self.beta_end * self.beta_scale:.3g}; expected below 1: lower beta_end, or set rescale_betas=false"
            )
        return self


Levels = Annotated[
    LogNormalLevels | LogitNormalLevels | UniformFlowLevels | GeometricLevels | ExponentialLevels | DDPMLevels,
    Field(discriminator="kind"),
]


class DiffusionConfig(Settings):
    """The process that training learns to reverse."""

    parametrisation: Literal["eps", "x0", "x0_flow", "v", "flow", "edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)  # standard deviation of the data, for edm's scales and weighting
    levels: Levels = LogNormalLevels()
    time_input: Literal["auto", "log_sigma", "flow_time", "timestep", "none"] = "auto"  # how the network gets sigma
    noise: Literal["normal", "uniform"] = "normal"  # uniform: in (-1, 1), the whole range of pixels
    weighting: Literal["plain", "uniform", "snr", "min_snr", "edm"] = "plain"  # plain: error of the network's output
    min_snr_gamma: float = Field(5.0, gt=0)
    learned_uncertainty: bool = False  # EDM2: a small head balances the loss over noise levels
    learned_variance: bool = False  # iDDPM: the network has twice the channels, the second half is the variance
    vlb_share: float = Field(0.001, ge=0)  # weight of the variational bound in the hybrid loss of learned_variance
    label_dropout: float = Field(0.1, ge=0, le=1)  # share of images whose whole condition is hidden in training
    attribute_dropout: float = Field(0.0, ge=0, le=1)  # share of single attributes hidden, each on its own

    @property
    def network_time_input(self) -> Literal["log_sigma", "flow_time", "timestep", "none"]:
        """`time_input` with auto resolved: timestep for DDPM's networks, 1000 t for flow, ln(sigma) / 4 otherwise."""
        if self.time_input != "auto":
            return self.time_input
        if self.parametrisation in ("flow", "x0_flow"):
            return "flow_time"
        vp = self.parametrisation in ("eps", "x0", "v")
        return "timestep" if vp and self.levels.kind == "ddpm" else "log_sigma"

    @field_validator("levels", mode="before")
    @classmethod
    def _log_normal_unless_said(cls, levels: Any) -> Any:
        """`levels.sigma_max=20` alone means the default kind, as it does for every other setting."""
        return {"kind": "log_normal", **levels} if isinstance(levels, dict) else levels

    @model_validator(mode="after")
    def _range_holds(self) -> "DiffusionConfig":
        if not self.levels.sigma_max <= SIGMA_LARGEST:
            raise ValueError(
                f"levels reach sigma_max = {self.levels.sigma_max:.6g}; float32 keeps one grey level of the image up to"
                f" {SIGMA_LARGEST:.6g}: lower sigma_max, or beta_end or timesteps of a DDPM schedule"
            )
        if self.parametrisation not in ("x0", "x0_flow") and self.levels.sigma_min < SIGMA_SMALLEST:
            raise ValueError(
                f"levels begin at sigma_min = {self.levels.sigma_min:.3g}; {self.parametrisation} divides by sigma and"
                f" holds down to {SIGMA_SMALLEST:g} in float32: raise sigma_min, or use parametrisation=x0"
            )
        return self

    @model_validator(mode="after")
    def _discrete_where_needed(self) -> "DiffusionConfig":
        wanting = ["learned_variance"] if self.learned_variance else []
        wanting += ["time_input=timestep"] if self.time_input == "timestep" else []
        if wanting and self.levels.kind != "ddpm":
            raise ValueError(
                f"{' and '.join(wanting)} needs discrete timesteps, found levels.kind={self.levels.kind}:"
                " set levels.kind=ddpm, or leave the setting at its default"
            )
        if self.noise == "uniform" and self.levels.kind == "ddpm":
            raise ValueError(
                "noise is uniform, but the steps and the bound of levels.kind=ddpm are those of normal noise:"
                " use noise=normal, or levels.kind=uniform_flow"
            )
        return self


class GuidanceConfig(Settings):
    """Guidance at sampling, away from `kind`'s second prediction."""

    kind: Literal["classifier_free", "autoguidance"] = "classifier_free"
    scale: float = 1.0
    # What w = scale means. cfg: w cond + (1 - w) uncond (Saharia et al. 2022: Imagen, equation 2), 1 is the conditional
    # model; ho: (1 + w) cond - w uncond (Ho & Salimans 2022, equation 6), 0 is.
    convention: Literal["cfg", "ho"] = "cfg"
    interval: tuple[float, float] | None = None  # noise levels with guidance; None: all (Kynkaanniemi et al. 2024)
    rescale: float = Field(0.0, ge=0, le=1)  # Lin et al. 2023: share of the conditional's contrast that is restored
    guide_model: str | None = None  # autoguidance: run directory or checkpoint of a weaker model

    @property
    def factor(self) -> float:
        """The scale in the convention in which 1 is the conditional model itself."""
        return self.scale + 1 if self.convention == "ho" else self.scale

    @property
    def off(self) -> int:
        """The scale that guides nothing."""
        return 0 if self.convention == "ho" else 1

    @property
    def active(self) -> bool:
        """Whether a second prediction is needed."""
        return self.scale != self.off

    @model_validator(mode="after")
    def _complete(self) -> "GuidanceConfig":
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval is {self.interval}, expected two noise levels 0 <= low < high")
        if self.kind == "autoguidance" and self.active and self.guide_model is None:
            raise ValueError(
                "autoguidance needs a second model: set guide_model to a run directory or one of its checkpoints"
            )
        if self.kind == "classifier_free" and self.guide_model is not None:
            raise ValueError(
                f"guide_model is {self.guide_model!r}, which only kind=autoguidance reads: set kind, or remove it"
            )
        return self


def _refuse_unread(settings: Settings, readers: Mapping[str, tuple[str, ...]]) -> None:
    """A setting that `kind` would ignore is an error; `readers`: setting -> kinds that read it."""
    kind = settings.kind  # type: ignore[attr-defined]
    for name, kinds in readers.items():
        if kind not in kinds and getattr(settings, name) != type(settings).model_fields[name].default:
            raise ValueError(f"{name} is set, but kind={kind} does not read it; only {', '.join(kinds)} does")


_SCHEDULE_READ_BY: Mapping[str, tuple[str, ...]] = {
    "rho": ("karras",),
    "shift": ("flow",),
    "spacing": ("ddpm",),
    "sigma_min": ("karras", "exponential"),
    "sigma_max": ("karras", "exponential", "flow"),
}


class SigmaSchedule(Settings):
    """The sigma schedule: the noise levels that a sampler steps through."""

    kind: Literal["karras", "exponential", "uniform_t", "ddpm", "flow"] = "karras"
    rho: float = Field(7.0, gt=0)  # karras alone
    shift: float = Field(1.0, gt=0)  # flow alone
    spacing: Literal["leading", "trailing", "linspace"] = "trailing"  # ddpm alone
    sigma_min: float | None = Field(None, gt=0)  # None: as trained; the others' ends follow from the process
    sigma_max: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "SigmaSchedule":
        _refuse_unread(self, _SCHEDULE_READ_BY)
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}: expected min < max")
        return self


class ChurnConfig(Settings):
    """Noise added on the way down (Karras et al. 2022, algorithm 2: S_churn, S_tmin, S_tmax, S_noise)."""

    amount: float = Field(0.0, ge=0)
    sigma_min: float = Field(0.0, ge=0)
    sigma_max: float = Field(1e6, gt=0)
    noise: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "ChurnConfig":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}: no noise level lies between,"
                " expected min < max"
            )
        return self


class SamplerConfig(Settings):
    """How a denoiser becomes images. A setting that the sampler does not read is an error where it is set."""

    kind: str = "heun"  # one of SAMPLERS, below
    steps: int = Field(18, ge=1)
    sigmas: SigmaSchedule = SigmaSchedule()
    churn: ChurnConfig = ChurnConfig()
    eta: float | None = Field(None, ge=0)  # fresh noise of ddim (None: 0) and dpmpp_2m_sde (None: 1)
    variance: Literal["small", "large", "learned"] = "small"  # of each step
    order: Literal[1, 2, 3] = 2
    corrector_steps: int = Field(1, ge=0)
    corrector_snr: float = Field(0.16, gt=0)
    options: dict[str, Any] = {}  # of a sampler that has settings of its own
    # Bound of every x0 estimate; None: none. Pixels by eps want 1: an error of the noise counts sigma-fold in x0.
    clip: float | None = Field(None, gt=0)
    guidance: GuidanceConfig = GuidanceConfig()
    # Of a GAN: psi, how far styles are from the average style (Karras et al. 2019, appendix B). Below 1, images are
    truncation: float = Field(1.0, ge=0, le=1)  # more typical and differ less

    @property
    def calls(self) -> int:
        """Calls of the denoiser for one image; guidance makes each of them two of the network."""
        return SAMPLERS[self.kind].calls(self)

    @property
    def alone(self) -> "SamplerConfig":
        """Without a second model: how training shows itself, when the one for autoguidance may not be there yet."""
        return self if self.guidance.kind != "autoguidance" else self.model_copy(update={"guidance": GuidanceConfig()})

    @field_validator("kind")
    @classmethod
    def _is_registered(cls, kind: str) -> str:
        if kind not in SAMPLERS:
            raise ValueError(SAMPLERS.unknown(kind))
        return kind

    @field_validator("options")
    @classmethod
    def _of_the_kind(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Checked by the sampler's own class of settings, with its defaults put in."""
        kind = str(info.data.get("kind"))  # not there where it is wrong itself
        settings = SAMPLERS[kind].settings if kind in SAMPLERS else None
        if settings is None:
            if options and kind in SAMPLERS:
                raise ValueError(f"found {options}, but sampler kind={kind} has no settings of its own: leave them out")
            return options
        return own_settings(settings, options)

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "SamplerConfig":
        _refuse_unread(self, {name: _readers(name) for name in _NOT_READ_BY_ALL})
        if self.kind == "ddim" and self.eta is not None and self.eta > 1:
            raise ValueError(f"eta is {self.eta}; ddim has a variance only for 0 <= eta <= 1")
        return self


def _readers(name: str) -> tuple[str, ...]:
    return SAMPLERS.names(lambda kind: name in kind.reads)


_NOT_READ_BY_ALL = ("churn", "eta", "variance", "order", "corrector_steps", "corrector_snr")

sampler("euler", "pipeline.diffusion.samplers:euler")
sampler(
    "heun",
    "pipeline.diffusion.samplers:heun",
    noise=True,
    reads=("churn",),
    options=lambda s: {
        "amount": s.churn.amount,
        "between": (s.churn.sigma_min, s.churn.sigma_max),
        "scale": s.churn.noise,
    },
    calls=lambda s: 2 * s.steps - 1,
)
sampler("ddim", "pipeline.diffusion.samplers:ddim", noise=True, reads=("eta",), options=lambda s: {"eta": s.eta or 0.0})
sampler("ddpm", "pipeline.diffusion.samplers:ancestral", noise=True, reads=("variance",))
sampler("dpmpp_2m", "pipeline.diffusion.multistep:dpmpp_2m")
sampler(
    "dpmpp_2m_sde",
    "pipeline.diffusion.multistep:dpmpp_2m",
    noise=True,
    reads=("eta",),
    options=lambda s: {"eta": 1.0 if s.eta is None else s.eta},
)
sampler("unipc", "pipeline.diffusion.multistep:unipc", reads=("order",))
sampler(
    "langevin",
    "pipeline.diffusion.samplers:langevin",
    noise=True,
    reads=("corrector_steps", "corrector_snr"),
    options=lambda s: {"corrector_steps": s.corrector_steps, "snr": s.corrector_snr},
    calls=lambda s: s.steps * (1 + s.corrector_steps),
)


def sampling_problems(cfg: SamplerConfig, diffusion: DiffusionConfig, *, conditional: bool) -> list[str]:
    """What does not fit between a sampler and the process it shall reverse; empty where all is well.

    `conditional`: whether the network is given classes or attributes.
    """
    return [
        *_variance_problems(cfg, diffusion),
        *_noise_problems(cfg, diffusion),
        *_sigmas_problems(cfg, diffusion),
        *_guidance_problems(cfg.guidance, diffusion, conditional=conditional),
    ]


def _variance_problems(cfg: SamplerConfig, diffusion: DiffusionConfig) -> Iterator[str]:
    if cfg.variance == "learned" and not diffusion.learned_variance:
        yield (
            "sampler.variance: found learned, but the network has no variance. Train with"
            " diffusion.learned_variance=true, or use variance=small."
        )
    if cfg.variance == "large" and diffusion.levels.kind != "ddpm":
        yield (
            "sampler.variance: found large, the beta of a DDPM process, but diffusion.levels.kind is"
            f" {diffusion.levels.kind}. Use levels.kind=ddpm, or variance=small."
        )


def _noise_problems(cfg: SamplerConfig, diffusion: DiffusionConfig) -> Iterator[str]:
    drawn = {"heun": cfg.churn.amount > 0, "ddim": bool(cfg.eta)}.get(cfg.kind, SAMPLERS[cfg.kind].noise)
    if diffusion.noise == "uniform" and drawn:
        yield (
            f"sampler.kind: found {cfg.kind} with fresh noise, but diffusion.noise=uniform and a sum of two uniform"
            " numbers is none. Use euler, heun, dpmpp_2m or unipc, or train with diffusion.noise=normal."
        )


def _sigmas_problems(cfg: SamplerConfig, diffusion: DiffusionConfig) -> Iterator[str]:
    sigmas, levels = cfg.sigmas, diffusion.levels
    low, high = levels.sigma_min, levels.sigma_max
    if sigmas.kind == "ddpm" and not isinstance(levels, DDPMLevels):
        yield f"sampler.sigmas.kind: found ddpm, but diffusion.levels.kind is {levels.kind}. Use sigmas.kind=uniform_t."
    if isinstance(levels, DDPMLevels) and sigmas.kind in ("ddpm", "uniform_t") and cfg.steps > levels.timesteps:
        yield (
            f"sampler.steps: found {cfg.steps}, more than the process's {levels.timesteps} timesteps. Use fewer,"
            " or sigmas.kind=karras, which stands between them."
        )
    ends = {"sigma_min": sigmas.sigma_min, "sigma_max": sigmas.sigma_max}
    outside = {name: value for name, value in ends.items() if value is not None and not low <= value <= high}
    for name, value in outside.items():
        yield f"sampler.sigmas.{name}: found {value}, expected within the trained range [{low:.4g}, {high:.4g}]."
    if not outside and (sigmas.sigma_min or low) >= (sigmas.sigma_max or high):
        yield (
            f"sampler.sigmas: found levels from {sigmas.sigma_max or high:.4g} down to {sigmas.sigma_min or low:.4g},"
            " expected sigma_min < sigma_max. Leave one of them out: it is then that of the trained range."
        )


def _guidance_problems(guidance: GuidanceConfig, diffusion: DiffusionConfig, *, conditional: bool) -> Iterator[str]:
    if not guidance.active:
        return
    low, high = diffusion.levels.sigma_min, diffusion.levels.sigma_max
    if guidance.interval and not (guidance.interval[0] <= high and guidance.interval[1] >= low):
        yield (
            f"sampler.guidance.interval: found {guidance.interval}, but noise levels are in [{low:.4g}, {high:.4g}]:"
            " guidance would never occur. Give noise levels sigma in that range."
        )
    if guidance.kind == "autoguidance":
        return
    if not conditional:
        yield (
            f"sampler.guidance.scale: found {guidance.scale}, but the model is unconditional, so there is nothing to"
            f" guide. Set it to {guidance.off}, or set model.condition, or guidance.kind=autoguidance."
        )
    elif diffusion.label_dropout == 0:
        yield (
            f"sampler.guidance.scale: found {guidance.scale}, but diffusion.label_dropout is 0: the model has never"
            f" seen an image without its label. Set it to {guidance.off}, or train with label_dropout=0.1."
        )
