"""What a directory of latents says: their size, their spread per channel, and whose they are. Torch-free.

A stored latent is the means of an image's posterior, channel by channel, then its deviations; where the images were
also encoded mirrored, means and deviations of the mirrored image follow.
"""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.data.shards import Manifest
from pipeline.runtime.errors import Incomplete, UserError

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of each latent channel, over images, places and the posterior's noise."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    informed: tuple[float, ...]  # share of the variance that is the means': near 0 a channel tells nothing of the image


def image_shape(manifest: Manifest) -> Shape:
    """[C, H, W] of the images of a directory, or of those whose latents it holds."""
    if manifest.kind == "images":
        return manifest.layout.shape
    channels, height, width = _known(manifest, "image_shape")
    return channels, height, width


def latent_shape(manifest: Manifest) -> Shape:
    """[d, h, w] of one latent."""
    channels, height, width = manifest.layout.shape
    return channels // (4 if manifest.made_from.get("mirrored") else 2), height, width


def spread_of(manifest: Manifest) -> Spread:
    """Per channel; the variance of a latent is that of its means and the mean of its variances (total variance).

    Raises:
        UserError: for a channel that is constant or not finite: it has no scale to normalise it by.
    """
    d = latent_shape(manifest)[0]
    copies = manifest.layout.shape[0] // (2 * d)
    first = [sum(manifest.mean[c + 2 * d * k] for k in range(copies)) / copies for c in range(2 * d)]
    second = [
        sum(manifest.std[c + 2 * d * k] ** 2 + manifest.mean[c + 2 * d * k] ** 2 for k in range(copies)) / copies
        for c in range(2 * d)
    ]
    between = [max(second[c] - first[c] ** 2, 0.0) for c in range(d)]
    total = [between[c] + second[d + c] for c in range(d)]
    for channel, variance in enumerate(total):
        if not (math.isfinite(variance) and math.isfinite(first[channel])) or variance <= 1e-12 * first[channel] ** 2:
            raise UserError(
                f"Latents of {manifest.made_from.get('autoencoder', {}).get('path', manifest.protocol)}: channel "
                f"{channel} has mean {first[channel]:g} and variance {variance:g} over {manifest.count} images, so "
                "there is no scale to normalise it by. The autoencoder ignores this channel: train it longer, with a "
                "smaller weight of its KL term, or with fewer latent channels, and encode again."
            )
    std = [math.sqrt(variance) for variance in total]
    return Spread(tuple(first[:d]), tuple(std), tuple(b / t for b, t in zip(between, total, strict=True)))


def autoencoder_hash(manifest: Manifest) -> str:
    """sha256 of the file of weights that made the latents."""
    return str(_known(manifest, "autoencoder")["sha256"])


def _known(manifest: Manifest, name: str) -> Any:
    if name not in manifest.made_from:
        raise Incomplete(f"A manifest of latents of '{manifest.protocol.get('name')}' has no {name}. Encode them anew.")
    return manifest.made_from[name]
