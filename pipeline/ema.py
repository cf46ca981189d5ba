"""EMAs of the weights: exponential with a half-life in images, and EDM2's power-function EMAs.

Every decay is a function of images seen, so an average is the same whatever the hardware and however often the run
was interrupted. Weights are kept in fp32 (fp64 where training is), apart from the training weights.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_SOLVED = 200  # stored averages from which another one is rebuilt


def exponential_decay(images: int, *, batch: int, half_life: float, ramp_up: float | None) -> float:
    """Share of the average that stays at the update after `images` images, the last `batch` of them new.

    beta = 0.5 ** (batch / h) with h = min(half_life, ramp_up * images): early weights are forgotten sooner
    (Karras et al. 2022, appendix F.2; its training code's ramp-up of 0.05).
    """
    h = half_life if ramp_up is None else min(half_life, images * ramp_up)
    return float(0.5 ** (batch / max(h, 1e-8)))


def power_decay(images: int, *, batch: int, gamma: float) -> float:
    """beta = (1 - 1/t) ** (gamma + 1), t the number of updates (Karras et al. 2024, equation 127); 0 at the first."""
    return float((1 - batch / images) ** (gamma + 1))


def gamma_of(width: float) -> float:
    """The exponent of the power function whose profile has relative standard deviation `width`.

    Solves width**2 = (gamma + 1) / ((gamma + 2)**2 (gamma + 3)) (Karras et al. 2024, equation 126; algorithm 2).
    `width` is in (0, 1 / sqrt(12)], where gamma >= 0: the profile of a wider one would fall towards the present.
    """
    if not 0 < width <= 12**-0.5:
        raise ValueError(f"found a relative width of {width}, expected one in (0, 0.2886]")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-8))


@torch.no_grad()
def update(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights, in place, in the average's precision.

    What is not floating point (a counter in a buffer) is copied.
    """
    names = [name for name, tensor in average.items() if tensor.is_floating_point()]
    if names:
        new = [weights[n].detach().to(average[n].dtype) for n in names]
        torch._foreach_lerp_([average[n] for n in names], new, 1 - decay)
    for name in average.keys() - set(names):
        average[name].copy_(weights[name])


def solve_weights(times: Sequence[float], gammas: Sequence[float], *, time: float, gamma: float) -> NDArray[np.float64]:
    """Coefficients that rebuild the average (time, gamma) from stored ones: least squares on their profiles.

    Minimises the L2 distance between sum_i c_i p_i and the wanted profile (Karras et al. 2024, appendix C.2,
    algorithm 3), among coefficients whose sum is 1. Theirs are free, which its networks forgive, whose layers normalise
    their weights; ours would be scaled as a whole: by 0.90 for width 0.15 from those of 0.05 and 0.10 at 11,000 and
    12,000 steps. `times` and `gammas` belong to the stored averages, one each; times in any unit.
    """
    t, g = np.asarray(times, float) / time, np.asarray(gammas, float)
    count = len(t)
    if count > MOST_SOLVED:  # the cost is cubic; more profiles tell no more than rounding does
        chosen = np.unique(np.linspace(0, count - 1, MOST_SOLVED).round().astype(int))
        found = np.zeros(count)
        found[chosen] = solve_weights([times[k] for k in chosen], [gammas[k] for k in chosen], time=time, gamma=gamma)
        return found
    a = np.ones((count + 1, count + 1))  # the last row and column: Lagrange's condition of the sum
    a[:count, :count] = _inner(t[:, None], g[:, None], t[None, :], g[None, :])
    a[count, count] = 0
    b = np.ones(count + 1)
    b[:count] = _inner(t, g, np.ones_like(t), np.full_like(g, gamma))
    return np.asarray(np.linalg.lstsq(a, b, rcond=None)[0][:count], np.float64)


def _inner(
    t1: NDArray[np.float64], g1: NDArray[np.float64], t2: NDArray[np.float64], g2: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integral of the product of two power profiles p(x) = (g+1) x**g / t**(g+1) on [0, t] (equation 155)."""
    low, high = np.minimum(t1, t2), np.maximum(t1, t2)
    g_low, g_high = np.where(t1 <= t2, g1, g2), np.where(t1 <= t2, g2, g1)
    result = (g1 + 1) * (g2 + 1) * (low / high) ** g_high / ((g_low + g_high + 1) * high)
    return np.asarray(result, np.float64)


def combine(averages: Iterable[Mapping[str, Tensor]], coefficients: NDArray[np.float64]) -> dict[str, Tensor]:
    """sum_i c_i average_i for each tensor, accumulated in float64. What is not floating point is the last one's.

    Averages are taken one at a time: of a generator, two are in memory at once, the next one and the sum.
    """
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    for coefficient, last in zip(coefficients, averages, strict=True):
        for name, tensor in last.items():
            if tensor.is_floating_point():
                part = float(coefficient) * tensor.double()
                sums[name] = sums[name].add_(part) if name in sums else part
    return {name: sums[name].to(like.dtype) if name in sums else like.clone() for name, like in last.items()}
