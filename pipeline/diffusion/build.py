"""Settings -> the functions they name: the process of training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.config.schema_diffusion import DiffusionConfig, Levels
from pipeline.diffusion import noise_levels, preconditioning, weighting
from pipeline.diffusion.loss import Weight, denoising_loss
from pipeline.diffusion.noise_levels import DrawSigma
from pipeline.diffusion.preconditioning import Network, Precondition
from pipeline.diffusion.uncertainty import LossBalance, PlainLoss
from pipeline.diffusion.variational import hybrid_loss


class Loss(Protocol):
    """(network, x0 [B, C, H, W], sigma [B, 1, 1, 1], noise like x0, condition) -> per-image loss [B]."""

    def __call__(
        self, network: Network, x0: Tensor, /, *, sigma: Tensor, noise: Tensor, cond: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Process:
    """The diffusion that training learns to reverse, as functions of sigma."""

    scales: Precondition
    draw_sigma: DrawSigma  # uniform u [B] in (0, 1) -> sigma [B]
    weight: Weight
    loss: Loss
    sigma_min: float
    sigma_max: float
    data_std: float  # what the scales assume of the data: the prior at sigma is N(0, sigma^2 + data_std^2)
    table: Tensor | None  # noise levels of DDPM's timesteps, ascending [T], float64


def build_process(cfg: DiffusionConfig) -> Process:
    """The process of `cfg`."""
    levels = cfg.levels
    table = torch.tensor(levels.sigmas, dtype=torch.float64) if levels.kind == "ddpm" else None
    parametrisation = preconditioning.parametrisation_of(cfg.parametrisation, cfg.sigma_data)
    scales = preconditioning.precondition(parametrisation, _time_input(cfg, table))
    weight = _weight(cfg, scales)
    return Process(
        scales=scales,
        draw_sigma=_draw_sigma(levels),
        weight=weight,
        loss=_loss(cfg, scales, weight=weight, table=table),
        sigma_min=levels.sigma_min,
        sigma_max=levels.sigma_max,
        data_std=cfg.sigma_data if cfg.parametrisation == "edm" else 1.0,
        table=table,
    )


def build_balance(cfg: DiffusionConfig) -> nn.Module:
    """(loss [B], sigma) -> what to minimise [B]; its parameters, if any, are trained with the network."""
    return LossBalance() if cfg.learned_uncertainty else PlainLoss()


def _time_input(cfg: DiffusionConfig, table: Tensor | None) -> Callable[[Tensor], Tensor]:
    if cfg.network_time_input == "timestep":
        if table is None:
            raise ValueError("time_input=timestep needs a process with levels.kind=ddpm")
        return partial(preconditioning.timestep, table=table)
    return {
        "flow_time": preconditioning.flow_time,
        "log_sigma": preconditioning.log_sigma,
        "none": preconditioning.nothing,
    }[cfg.network_time_input]


def _draw_sigma(levels: Levels) -> DrawSigma:
    low, high = levels.sigma_min, levels.sigma_max
    if levels.kind == "ddpm":
        return noise_levels.table(torch.tensor(levels.sigmas, dtype=torch.float64))
    if levels.kind == "logit_normal":  # logit t = ln sigma, and the shift is a factor
        return noise_levels.log_normal(levels.mean + math.log(levels.shift), levels.std, sigma_min=low, sigma_max=high)
    if levels.kind == "uniform_flow":
        return noise_levels.uniform_flow(levels.shift, sigma_min=low, sigma_max=high)
    if levels.kind == "geometric":
        return noise_levels.geometric(sigma_min=low, sigma_max=high)
    if levels.kind == "exponential":
        return noise_levels.exponential(levels.base, t_min=levels.t_min, scale=levels.scale)
    if levels.kind == "log_normal":
        return noise_levels.log_normal(levels.mean, levels.std, sigma_min=low, sigma_max=high)
    raise ValueError(f"no noise levels are called '{levels.kind}'")


def _weight(cfg: DiffusionConfig, scales: Precondition) -> Weight:
    return {
        "plain": weighting.plain(scales),
        "uniform": weighting.uniform,
        "snr": weighting.snr,
        "min_snr": weighting.min_snr(cfg.min_snr_gamma),
        "edm": weighting.edm(cfg.sigma_data),
    }[cfg.weighting]


def _loss(cfg: DiffusionConfig, scales: Precondition, *, weight: Weight, table: Tensor | None) -> Loss:
    def plain(network: Network, x0: Tensor, *, sigma: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        return denoising_loss(network, scales, x0, sigma=sigma, noise=noise, weight=weight, cond=cond)

    def hybrid(network: Network, x0: Tensor, *, sigma: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        if table is None:
            raise ValueError("learned_variance needs discrete timesteps: set levels.kind=ddpm")
        return hybrid_loss(
            network,
            scales,
            x0,
            sigma=sigma,
            noise=noise,
            weight=weight,
            table=table,
            share=cfg.vlb_share,
            cond=cond,
        )

    return hybrid if cfg.learned_variance else plain
