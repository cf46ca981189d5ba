"""What the network sees and what its output means: six parametrisations as rows of one table.

Everywhere x = x0 + sigma * noise (noise is standard normal), and the denoiser is

    D(x; sigma) = skip * x + out * F(inp * x; cond)            (Karras et al. 2022, equation 7)

where F is the network. A row says what F is trained to return, and in which scale it sees x:

    row    F returns           x is seen as
    eps    noise               alpha * x, alpha = 1 / sqrt(1 + sigma^2)     (Ho et al. 2020)
    x0     x0                  alpha * x
    x0_flow  x0                (1 - t) * x, t = sigma / (1 + sigma): image and noise in shares 1 - t and t
    v      alpha * noise       alpha * x                                    (Salimans & Ho 2022, appendix D)
           - alpha sigma * x0
    flow   noise - x0          (1 - t) * x, t = sigma / (1 + sigma)         (Liu et al. 2023: rectified flow)
    edm    whatever has unit   x / sqrt(sigma^2 + sigma_data^2)             (Karras et al. 2022, table 1)
           variance
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.runtime.constants import beside

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x [B, C, H, W], sigma, a scalar or [B, 1, 1, 1]) -> estimate of x0 [B, C, H, W]. What samplers are given."""


class Network(Protocol):
    """What is trained: (inp * x [B, C, H, W], cond [B], condition) -> [B, C, H, W], or more channels."""

    def __call__(self, x: Tensor, cond: Tensor, condition: Tensor | None, /) -> Tensor: ...


class Row(NamedTuple):
    """Three scales, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    inp: Tensor


class Scales(NamedTuple):
    """A row, and the number by which the network knows sigma."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    cond: Tensor


Precondition = Callable[[Tensor], Scales]


def eps(sigma: Tensor) -> Row:
    """The network returns the noise."""
    return Row(skip=torch.ones_like(sigma), out=-sigma, inp=(1 + sigma**2).rsqrt())


def x0(sigma: Tensor) -> Row:
    """The network returns the clean image."""
    return Row(skip=torch.zeros_like(sigma), out=torch.ones_like(sigma), inp=(1 + sigma**2).rsqrt())


def x0_flow(sigma: Tensor) -> Row:
    """The network returns the clean image, and sees (1 - t) * x0 + t * noise."""
    return Row(skip=torch.zeros_like(sigma), out=torch.ones_like(sigma), inp=1 / (1 + sigma))


def v(sigma: Tensor) -> Row:
    """The network returns the velocity on the circle between image and noise."""
    alpha = (1 + sigma**2).rsqrt()
    return Row(skip=alpha**2, out=-sigma * alpha, inp=alpha)


def flow(sigma: Tensor) -> Row:
    """The network returns the velocity on the straight line (1 - t) * x0 + t * noise."""
    return Row(skip=1 / (1 + sigma), out=-sigma / (1 + sigma), inp=1 / (1 + sigma))


def edm(sigma: Tensor, *, sigma_data: float) -> Row:
    """Input and target of the network have unit variance at every sigma where the data has `sigma_data`^2."""
    total = sigma**2 + sigma_data**2
    return Row(skip=sigma_data**2 / total, out=sigma * sigma_data * total.rsqrt(), inp=total.rsqrt())


def log_sigma(sigma: Tensor) -> Tensor:
    """EDM's c_noise, ln(sigma) / 4: between -1.6 and 1.1 for sigma in [0.002, 80]."""
    return sigma.log() / 4


def flow_time(sigma: Tensor) -> Tensor:
    """1000 t with t = sigma / (1 + sigma), in [0, 1000)."""
    return 1000 * sigma / (1 + sigma)


def nothing(sigma: Tensor) -> Tensor:
    """0 at every level: the network has to see by itself how much noise there is."""
    return torch.zeros_like(sigma)


def timestep(sigma: Tensor, *, table: Tensor) -> Tensor:
    """DDPM's t in [0, T - 1] with table[t] = sigma, between the entries by interpolation in ln(sigma).

    `table`: levels of the timesteps, ascending [T], float64. Levels beyond its ends count as the ends.
    """
    log_table = beside(table, sigma, table.dtype).log()
    value = sigma.to(log_table.dtype).log()
    upper = torch.searchsorted(log_table, value.contiguous()).clamp(1, len(table) - 1)
    low, high = log_table[upper - 1], log_table[upper]
    return (upper - 1 + (value - low) / (high - low)).clamp(0, len(table) - 1).to(sigma.dtype)


def precondition(row: Callable[[Tensor], Row], c_noise: Callable[[Tensor], Tensor]) -> Precondition:
    """sigma -> all four scales."""
    return lambda sigma: Scales(*row(sigma), c_noise(sigma))


def row_of(name: str, sigma_data: float) -> Callable[[Tensor], Row]:
    """The row called `name`; `sigma_data` is read by edm alone."""
    known = partial(edm, sigma_data=sigma_data)
    rows: dict[str, Callable[[Tensor], Row]] = {
        **{"eps": eps, "x0": x0, "x0_flow": x0_flow},
        **{"v": v, "flow": flow, "edm": known},
    }
    if name not in rows:
        raise ValueError(f"found the parametrisation '{name}', expected one of {', '.join(rows)}")
    return rows[name]


def denoiser(network: Network, scales: Precondition, condition: Tensor | None = None) -> Denoise:
    """The network as an estimate of x0. Channels beyond those of x (a learned variance) are left out."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = scales(sigma)
        output = network(s.inp * x, for_each(s.cond, x), condition)
        return s.skip * x + s.out * output[:, : x.shape[1]].to(x.dtype)

    return denoise


def for_each(cond: Tensor, x: Tensor) -> Tensor:
    """The number by which the network knows sigma, for each image of x: a scalar or [B, 1, 1, 1] -> [B].

    A sampler's scalars stand on the CPU, where reading them costs nothing and copying them would wait for the GPU.
    """
    if cond.numel() == 1 and cond.device.type == "cpu":
        return x.new_full((len(x),), float(cond))
    return cond.flatten().to(x).expand(len(x))
