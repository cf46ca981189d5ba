"""DDPM's discrete noise levels as plain numbers: the login node checks their range without loading torch."""

import math
from typing import Literal

Schedule = Literal["linear", "scaled_linear", "cosine", "sigmoid"]
LARGEST_BETA = 0.999  # Nichol & Dhariwal (2021), section 3.2: keeps the last levels of cosine finite


def linear_betas(steps: int, *, start: float, end: float) -> list[float]:
    """beta_t on a line from `start` to `end` (Ho et al. 2020, section 4)."""
    return [start + (end - start) * t / max(steps - 1, 1) for t in range(steps)]


def scaled_linear_betas(steps: int, *, start: float, end: float) -> list[float]:
    """sqrt(beta_t) on a line (Rombach et al. 2022: latent diffusion)."""
    return [root**2 for root in linear_betas(steps, start=math.sqrt(start), end=math.sqrt(end))]


def cosine_alpha_bar(time: float) -> float:
    """Share of signal power at `time` in [0, 1] (Nichol & Dhariwal 2021, equation 17, s = 0.008), up to a constant."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def sigmoid_alpha_bar(time: float) -> float:
    """Share of signal power at `time` in [0, 1] (Jabri et al. 2022, with start -3, end 3, temperature 1)."""

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    return (sigmoid(3) - sigmoid(6 * time - 3)) / (sigmoid(3) - sigmoid(-3))


def betas(schedule: Schedule, steps: int, *, start: float, end: float) -> list[float]:
    """Variance added at each of `steps` steps; `start` and `end` are read by the two linear ones alone."""
    if schedule == "linear":
        return linear_betas(steps, start=start, end=end)
    if schedule == "scaled_linear":
        return scaled_linear_betas(steps, start=start, end=end)
    alpha_bar = cosine_alpha_bar if schedule == "cosine" else sigmoid_alpha_bar
    return [min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), LARGEST_BETA) for t in range(steps)]


def sigmas(betas_: list[float]) -> list[float]:
    """Noise level sqrt((1 - alpha_bar) / alpha_bar) after each step, ascending. `math.inf` where no signal is left."""
    alpha_bar, levels = 1.0, []
    for beta in betas_:
        alpha_bar *= 1 - beta
        levels.append(math.sqrt((1 - alpha_bar) / alpha_bar) if alpha_bar > 0 else math.inf)
    return levels
