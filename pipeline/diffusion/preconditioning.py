"""What the network sees and what its output means: six parametrisations, each a function of sigma.

Everywhere x = x0 + sigma * noise (noise is standard normal), and the denoiser is

    D(x; sigma) = c_skip * x + c_out * F(c_in * x; c_noise)    (Karras et al. 2022, equation 7)

where F is the network. A parametrisation says what F is trained to return, and in which scale it sees x:

    name   F returns           x is seen as
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
    """What is trained: (c_in * x [B, C, H, W], c_noise [B], condition) -> [B, C, H, W], or more channels."""

    def __call__(self, x: Tensor, c_noise: Tensor, condition: Tensor | None, /) -> Tensor: ...


class Coefficients(NamedTuple):
    """c_skip, c_out and c_in of a parametrisation, each of the shape of sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Scales(NamedTuple):
    """The coefficients, and c_noise, by which the network knows sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


Precondition = Callable[[Tensor], Scales]


def eps(sigma: Tensor) -> Coefficients:
    """The network returns the noise."""
    return Coefficients(c_skip=torch.ones_like(sigma), c_out=-sigma, c_in=(1 + sigma**2).rsqrt())


def x0(sigma: Tensor) -> Coefficients:
    """The network returns the clean image."""
    return Coefficients(c_skip=torch.zeros_like(sigma), c_out=torch.ones_like(sigma), c_in=(1 + sigma**2).rsqrt())


def x0_flow(sigma: Tensor) -> Coefficients:
    """The network returns the clean image, and sees (1 - t) * x0 + t * noise."""
    return Coefficients(c_skip=torch.zeros_like(sigma), c_out=torch.ones_like(sigma), c_in=1 / (1 + sigma))


def v(sigma: Tensor) -> Coefficients:
    """The network returns the velocity on the circle between image and noise."""
    alpha = (1 + sigma**2).rsqrt()
    return Coefficients(c_skip=alpha**2, c_out=-sigma * alpha, c_in=alpha)


def flow(sigma: Tensor) -> Coefficients:
    """The network returns the velocity on the straight line (1 - t) * x0 + t * noise."""
    return Coefficients(c_skip=1 / (1 + sigma), c_out=-sigma / (1 + sigma), c_in=1 / (1 + sigma))


def edm(sigma: Tensor, *, sigma_data: float) -> Coefficients:
    """Input and target of the network have unit variance at every sigma where the data has `sigma_data`^2."""
    total = sigma**2 + sigma_data**2
    return Coefficients(c_skip=sigma_data**2 / total, c_out=sigma * sigma_data * total.rsqrt(), c_in=total.rsqrt())


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


def precondition(coefficients: Callable[[Tensor], Coefficients], c_noise: Callable[[Tensor], Tensor]) -> Precondition:
    """sigma -> all four of them."""
    return lambda sigma: Scales(*coefficients(sigma), c_noise(sigma))


def parametrisation_of(name: str, sigma_data: float) -> Callable[[Tensor], Coefficients]:
    """The parametrisation called `name`; `sigma_data` is read by edm alone."""
    known = partial(edm, sigma_data=sigma_data)
    functions: dict[str, Callable[[Tensor], Coefficients]] = {
        **{"eps": eps, "x0": x0, "x0_flow": x0_flow},
        **{"v": v, "flow": flow, "edm": known},
    }
    if name not in functions:
        raise ValueError(f"found the parametrisation '{name}', expected one of {', '.join(functions)}")
    return functions[name]


def denoiser(network: Network, scales: Precondition, condition: Tensor | None = None) -> Denoise:
    """The network as an estimate of x0. Channels beyond those of x (a learned variance) are left out."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = scales(sigma)
        output = network(s.c_in * x, for_each(s.c_noise, x), condition)
        return s.c_skip * x + s.c_out * output[:, : x.shape[1]].to(x.dtype)

    return denoise


def for_each(c_noise: Tensor, x: Tensor) -> Tensor:
    """The number by which the network knows sigma, for each image of x: a scalar or [B, 1, 1, 1] -> [B].

    A sampler's scalars stand on the CPU, where reading them costs nothing and copying them would wait for the GPU.
    """
    if c_noise.numel() == 1 and c_noise.device.type == "cpu":
        return x.new_full((len(x),), float(c_noise))
    return c_noise.flatten().to(x).expand(len(x))
