"""Our diffusion process and sampler as a scheduler of diffusers, where one computes the same. Torch-free.

| process                       | noise level as  | scheduler                                        |
| ----------------------------- | --------------- | ------------------------------------------------ |
| eps, x0, v on DDPM's levels   | timestep        | DDPM, DDIM, Euler, Heun, DPM++ (2M, SDE), UniPC  |
| edm, v on continuous levels   | ln(sigma) / 4   | EDM Euler, EDM DPM++ 2M                          |
| flow                          | 1000 t          | flow matching Euler                              |
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import ddpm_tables
from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, SamplerConfig, SigmaSchedule
from pipeline.runtime.errors import UserError

SCHEDULES: dict[str, ddpm_tables.Schedule] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
DISCRETE = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
OWN_TIMESTEPS = ("DDPMScheduler", "DDIMScheduler")
NOT_CLIPPED = "x0 estimates are not clipped"
EDM = {"euler": "EDMEulerScheduler", "dpmpp_2m": "EDMDPMSolverMultistepScheduler"}


@dataclass(frozen=True)
class Scheduling:
    """`config`: the scheduler's own settings. `start`: deviation of the first x in the scheduler's scale.

    `flow_start`: the flow time to begin at, for flow alone. `notes`: in what the folder samples differently from us.
    """

    config: dict[str, Any]
    start: float
    notes: list[str]
    flow_start: float | None = None


def scheduling(diffusion: DiffusionConfig, sampler: SamplerConfig) -> Scheduling:
    """The scheduler that samples from our network.

    Raises:
        UserError: where diffusers has none that tells the network the noise level as we do, or reads its variance.
    """
    time_input, row, levels = diffusion.network_time_input, diffusion.parametrisation, diffusion.levels
    if time_input == "timestep" and row in PREDICTION and isinstance(levels, DDPMLevels):
        found = _discrete(diffusion, levels, sampler=sampler)
    elif time_input == "log_sigma" and row in ("edm", "v"):
        found = _edm(diffusion, sampler)
    elif time_input == "flow_time" and row == "flow":
        found = _flow(diffusion, sampler)
    else:
        raise UserError(
            f"diffusers has no scheduler for diffusion.parametrisation={row} with network_time_input={time_input}: it "
            "has eps, x0 and v with levels.kind=ddpm (timestep), edm and v (log_sigma), and flow (flow_time). Use "
            "`export --format safetensors`."
        )
    if diffusion.learned_variance and found.config.get("variance_type") != "learned_range":
        raise UserError(
            f"{found.config['_class_name']} cannot read the variance channels of a network with "
            "diffusion.learned_variance: use sample.sampler.kind=ddpm with variance=learned on a network of "
            "timesteps (eps, x0 or v), or `export --format safetensors`."
        )
    guidance = sampler.guidance
    notes = _those(
        (guidance.kind == "autoguidance" and guidance.active, "autoguidance by a second model is not in the folder"),
        (guidance.interval is not None or guidance.rescale, "guidance acts at all noise levels and is not rescaled"),
        (sampler.churn.amount, "churn is left out"),
    )
    return replace(found, notes=notes + found.notes)


def _those(*notes: tuple[Any, str]) -> list[str]:
    """The notes whose condition holds."""
    return [note for holds, note in notes if holds]


def process_of(scheduler: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a scheduler_config.json of diffusers says of training, as settings of `diffusion`; None: no equal."""
    name, prediction = str(scheduler.get("_class_name")), str(scheduler.get("prediction_type", "epsilon"))
    if name.startswith("EDM"):
        sigma_data = scheduler.get("sigma_data", 0.5)
        return {"parametrisation": "v"} if prediction == "v_prediction" else {"sigma_data": sigma_data}
    if name.startswith("FlowMatch"):
        return {"parametrisation": "flow", "levels": {"kind": "uniform_flow"}}
    rows, levels = {its: ours for ours, its in PREDICTION.items()}, _levels_of(scheduler)
    if prediction not in rows or levels is None:
        return None
    return {"parametrisation": rows[prediction], "levels": levels}


def _levels_of(scheduler: Mapping[str, Any]) -> dict[str, Any] | None:
    """Our settings for a scheduler's betas, by the name of their schedule or as a list; None where ours differ."""
    total, listed = scheduler.get("num_train_timesteps"), scheduler.get("trained_betas")
    if total is None or not (listed or "beta_schedule" in scheduler) or scheduler.get("rescale_betas_zero_snr"):
        return None
    name = SCHEDULES.get(scheduler.get("beta_schedule", "linear"))
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    candidates = [(name, start, end)] if not listed else [(n, listed[0], listed[-1]) for n in SCHEDULES.values()]
    for schedule, first, last in candidates:
        ends = {} if schedule == "cosine" else {"beta_start": first, "beta_end": last, "rescale_betas": total == 1000}
        found = {"kind": "ddpm", "schedule": schedule, "timesteps": total, **ends}
        if schedule and (not listed or _same_betas(DDPMLevels.model_validate(found).betas, listed)):
            return found
    return None


def _same_betas(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and all(
        math.isclose(a, b, rel_tol=1e-6) for a, b in zip(first, second, strict=True)
    )


def disagreements(trained: DiffusionConfig, cfg: DiffusionConfig) -> list[str]:
    """In what the process `cfg` differs from that by which a network was trained, where the network notices it."""
    fields = ["parametrisation", "network_time_input", "learned_variance"]
    fields += ["sigma_data"] if trained.parametrisation == "edm" else []
    found = [
        f"diffusion.{name}: found {getattr(cfg, name)}, the network was trained with {getattr(trained, name)}"
        for name in fields
        if getattr(cfg, name) != getattr(trained, name)
    ]
    betas = cfg.levels.betas if isinstance(cfg.levels, DDPMLevels) else []
    timesteps = trained.levels if trained.network_time_input == "timestep" else None
    if not found and isinstance(timesteps, DDPMLevels) and not _same_betas(betas, timesteps.betas):
        found = [f"diffusion.levels: found {cfg.levels}, but the network knows noise by the timesteps of {timesteps}"]
    return found


def _discrete(diffusion: DiffusionConfig, levels: DDPMLevels, *, sampler: SamplerConfig) -> Scheduling:
    name, sigmas, steps = DISCRETE.get(sampler.kind, "DDIMScheduler"), sampler.sigmas, sampler.steps
    # Karras's schedule spans the timesteps that are picked first: linspace has both ends.
    spacing = sigmas.spacing if sigmas.kind == "ddpm" else "linspace"
    ddim, multistep, sde = name == "DDIMScheduler", "Multistep" in name, sampler.kind == "dpmpp_2m_sde"
    config: dict[str, Any] = {
        "_class_name": name,
        "num_train_timesteps": levels.timesteps,
        "trained_betas": levels.betas,
        "prediction_type": PREDICTION[diffusion.parametrisation],
        "timestep_spacing": spacing,
    }
    if name in OWN_TIMESTEPS:
        config |= {"clip_sample": sampler.clip is not None, "clip_sample_range": sampler.clip or 1.0}
    else:
        exponential = sigmas.kind == "exponential"
        config |= {"use_karras_sigmas": sigmas.kind == "karras", "use_exponential_sigmas": exponential}
    if multistep:
        config["final_sigmas_type"] = "zero"
    if name == "DDPMScheduler":
        learned = diffusion.learned_variance and sampler.variance == "learned"
        config["variance_type"] = "learned_range" if learned else f"fixed_{sampler.variance}"
    if name == "DPMSolverMultistepScheduler":
        config["algorithm_type"] = "sde-dpmsolver++" if sde else "dpmsolver++"
    if name == "UniPCMultistepScheduler":
        config["solver_order"] = sampler.order
    stride, rest = divmod(levels.timesteps, steps)
    even = spacing == "leading" or (spacing == "trailing" and not rest)
    noisy_end = name == "DDPMScheduler" and sampler.variance != "small" and spacing == "trailing"
    own = [] if name in OWN_TIMESTEPS else [*_own_sigmas(name, sigmas), *_those((sampler.clip, NOT_CLIPPED))]
    notes = own + _those(
        (
            name in OWN_TIMESTEPS and sigmas.kind != "ddpm",
            f"the sigma schedule is {name}'s own timesteps, not {sigmas.kind}",
        ),
        (
            ddim and sigmas.kind == "ddpm" and not even,
            f"DDIMScheduler steps back by {stride} timesteps, whatever sigmas.spacing={spacing} of {steps} steps says: "
            "use leading, or trailing with steps that divide the timesteps",
        ),
        (steps == 1 and spacing == "linspace", f"one step of {name} begins at timestep 0, the least noise: use more"),
        (noisy_end, f"{name} adds noise to the finished image: use sigmas.spacing=leading, which ends at 0"),
        (sde and sampler.eta not in (None, 1), f"fresh noise is that of eta=1, not {sampler.eta}"),
        (
            ddim and sampler.clip,
            "pass use_clipped_model_output=True to DDIMPipeline: clipped estimates then lead the way, as here",
        ),
        (sampler.kind not in DISCRETE, f"diffusers has no {sampler.kind} sampler: DDIM stands in"),
    )
    start = 1.0  # x as DDPM has it
    if name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):  # x0 + sigma * noise
        leading = sigmas.kind == "ddpm" and spacing == "leading"
        start = math.hypot(levels.sigmas[(steps - 1) * stride] if leading else levels.sigma_max, 1.0)
    return Scheduling(config, start, notes)


def _own_sigmas(name: str, sigmas: SigmaSchedule) -> list[str]:
    """In what a scheduler of DDPM's timesteps differs from the sigma schedule."""
    multistep = "Multistep" in name
    if sigmas.kind not in ("ddpm", "karras", "exponential"):
        return [f"the sigma schedule is even in timesteps, not {sigmas.kind}"]
    if multistep and sigmas.kind != "ddpm":
        return [
            f"{name} rounds the timesteps that the network sees with sigmas of kind {sigmas.kind}: use sigmas.kind=ddpm"
        ]
    moved = [n for n in ("rho", "sigma_min", "sigma_max") if getattr(sigmas, n) != type(sigmas).model_fields[n].default]
    return _those(
        (
            multistep and sigmas.spacing != "trailing",
            f"{name} understands sigmas.spacing={sigmas.spacing} otherwise: use trailing for the same timesteps",
        ),
        (moved, f"the sigma schedule has its own {' and '.join(moved)}: rho=7, over the whole range of levels"),
    )


def _edm(diffusion: DiffusionConfig, sampler: SamplerConfig) -> Scheduling:
    name, sigmas, levels = EDM.get(sampler.kind, "EDMEulerScheduler"), sampler.sigmas, diffusion.levels
    edm, high = diffusion.parametrisation == "edm", sigmas.sigma_max or levels.sigma_max
    sigma_data = diffusion.sigma_data if edm else 1.0
    start, its = math.hypot(high, sigma_data), math.hypot(high, 1.0)
    notes = _those(
        (sampler.kind not in EDM, f"diffusers has no {sampler.kind} for EDM: Euler stands in, give it more steps"),
        (sigmas.kind not in ("karras", "exponential"), f"the sigma schedule is Karras's, not {sigmas.kind}"),
        (sampler.clip, NOT_CLIPPED),
        (
            start != its,
            f"noise begins with a deviation of {start:.8g}, as in LabelPipeline: init_noise_sigma of {name} is "
            f"{its:.8g}, for sigma_data=1, and moves images by some 1e-4",
        ),
    )
    config = {
        "_class_name": name,
        "sigma_min": sigmas.sigma_min or levels.sigma_min,
        "sigma_max": high,
        "sigma_data": sigma_data,
        "sigma_schedule": "exponential" if sigmas.kind == "exponential" else "karras",
        "rho": sigmas.rho,
        "prediction_type": "epsilon" if edm else "v_prediction",
        "final_sigmas_type": "zero",
    }
    return Scheduling(config, start, notes)


def _flow(diffusion: DiffusionConfig, sampler: SamplerConfig) -> Scheduling:
    sigmas, high = sampler.sigmas, sampler.sigmas.sigma_max or diffusion.levels.sigma_max
    notes = _those(
        (sampler.kind != "euler", f"diffusers has Euler alone for flow matching, not {sampler.kind}"),
        (sigmas.kind != "flow", f"the sigma schedule is even in flow time, not {sigmas.kind}"),
    )
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": sigmas.shift}
    return Scheduling(config, math.hypot(high, 1.0) / (1 + high), notes, flow_start=high / (sigmas.shift + high))
