"""The scale of fp16 losses, which keeps small gradients from becoming zero (Micikevicius et al. 2018, section 3.2).

torch's GradScaler with its default numbers, but its state is two tensors that a step updates without the host, and it
takes the word of all ranks for whether a step was finite.
"""

import torch
from torch import Tensor

START, GROWTH, BACKOFF, INTERVAL = 65536.0, 2.0, 0.5, 2000


class LossScale:
    """`value`: what losses are multiplied by, a scalar on the device; `streak`: finite steps since it last changed."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), START, device=device)
        self.streak = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, bad: Tensor) -> None:
        """After a step: half of it where the step was not finite, twice after 2,000 finite steps in a row."""
        streak = torch.where(bad, 0, self.streak + 1)
        grown = torch.where(streak == INTERVAL, self.value * GROWTH, self.value)
        self.value = torch.where(bad, self.value * BACKOFF, torch.where(grown.isfinite(), grown, self.value))
        self.streak = torch.where(streak == INTERVAL, 0, streak)

    def numbers(self) -> tuple[float, int]:
        """Value and streak, for a checkpoint. Waits for the device."""
        return float(self.value), int(self.streak)

    def restore(self, value: float | None, streak: int) -> None:
        """Go on from a checkpoint's numbers; None: from the start."""
        self.value = torch.full_like(self.value, START if value is None else value)
        self.streak = torch.full_like(self.streak, streak)
