"""What the latents of an autoencoder are like, channel by channel, from sums that can be added up in any order."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

DEAD_NATS = 0.01  # a channel whose coordinates say less than this about an image is dead
DEAD_SPREAD = 0.01  # the same for a code without noise: the deviation of its values over images and places

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatentSums:
    """Over images and places: `count` of them; per channel the sums of mean, mean^2, variance, and divergence [d]."""

    count: int
    sums: Sums  # [4, d]

    @classmethod
    def of(cls, mean: Tensor, std: Tensor, divergence: Tensor | None) -> "LatentSums":
        """Of a batch of posteriors, [B, d, h, w] each; None: there is no noise, and so no divergence."""
        parts = (mean, mean.double().square(), std.double().square(), divergence)
        sums = [np.zeros(mean.shape[1]) if x is None else x.double().sum((0, 2, 3)).cpu().numpy() for x in parts]
        return cls(mean[:, 0].numel(), np.stack(sums))

    @classmethod
    def total(cls, parts: Iterable["LatentSums"]) -> "LatentSums":
        """Of all of them."""
        found = list(parts)
        return cls(sum(p.count for p in found), np.sum([p.sums for p in found], axis=0))

    def facts(self, *, noise: bool) -> dict[str, list[float]]:
        """Per channel: mean and deviation of the posterior's mean, and where there is `noise` its deviation and the
        divergence of a coordinate in nats."""
        mean, square, variance, divergence = self.sums / self.count
        found = {"mean": mean, "deviation": np.sqrt(np.maximum(square - mean**2, 0))}
        if noise:
            found |= {"posterior_deviation": np.sqrt(variance), "kl_nats": divergence}
        return {name: values.tolist() for name, values in found.items()}


def dead_channels(facts: dict[str, list[float]]) -> list[int]:
    """Channels that say next to nothing about an image."""
    if "kl_nats" in facts:
        return [k for k, nats in enumerate(facts["kl_nats"]) if nats < DEAD_NATS]
    return [k for k, deviation in enumerate(facts["deviation"]) if deviation < DEAD_SPREAD]
