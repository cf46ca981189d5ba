"""Does the model reproduce training images? Nearest neighbours, judged by what held-out images look like.

The score of an image is its distance to the nearest training image over the mean distance to its 50 nearest
(Carlini et al. 2023, "Extracting training data from diffusion models", section 5.1: a copy is much nearer to one
training image than to the others; a blur is near to all of them and no copy). Both the image and its mirror image
are compared. The threshold is the score that a given share of held-out images, which nobody can have copied, is below.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.metrics.nearest import Floats, nearest_streamed

SIDE = 32
NEAR = 50  # neighbours that set the local scale
UNCALIBRATED = 0.5  # Carlini et al.'s own threshold, where there are no held-out images

Blocks = Callable[[], Iterable[tuple[int, Floats]]]


@dataclass(frozen=True)
class Closeness:
    """For each of N images: `score` (0 is an exact copy, 1 nothing special), nearest training image, its distance."""

    score: npt.NDArray[np.float64]
    index: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CopyRate:
    """Share of images below `threshold`; `expected`: the share of held-out images below it (None: not calibrated)."""

    rate: float
    expected: float | None
    threshold: float
    flagged: npt.NDArray[np.bool_]


def closeness(views: Sequence[Floats], candidates: Blocks, *, count: int, device: str = "cpu") -> Closeness:
    """Closeness of images to the nearest of `count` candidates.

    Args:
        views: vectors [N, D] of the images and of their mirror images: each image counts with its nearest view.
        candidates: yields (first index, vectors [B, D]) of all training images; they are read once.
    """
    found = nearest_streamed(np.concatenate(views), candidates(), k=min(NEAR, count), device=device)
    first, mean = found.distance[:, 0], found.distance.mean(axis=1)
    scores, index, distance = (
        values.reshape(len(views), -1) for values in (first / np.maximum(mean, 1e-12), found.index[:, 0], first)
    )
    best, rows = scores.argmin(axis=0), np.arange(scores.shape[1])
    return Closeness(scores[best, rows], index[best, rows], distance[best, rows])


def copy_rate(samples: Closeness, held_out: Closeness | None, *, level: float) -> CopyRate:
    """Share of samples that are nearer to a training image than all but `level` of the held-out images are.

    A model that copies nothing has a rate of about `level`. An exact copy (score 0) is always flagged.
    """
    if held_out is None or len(held_out.score) == 0:
        flagged = samples.score < UNCALIBRATED
        return CopyRate(float(flagged.mean()), None, UNCALIBRATED, flagged)
    threshold = float(np.quantile(held_out.score, level, method="lower"))
    flagged = (samples.score < threshold) | (samples.score <= 1e-6)
    expected = float(((held_out.score < threshold) | (held_out.score <= 1e-6)).mean())
    return CopyRate(float(flagged.mean()), expected, threshold, flagged)


def pixels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Images [B, H, W, C] as vectors in [-1, 1]; larger ones are averaged down to SIDE x SIDE pixels first.

    A copy stays a copy at that size, encoded again it is nearer, and the search costs as much as for small images.
    """
    values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if max(images.shape[1:3]) > SIDE:
        values = functional.adaptive_avg_pool2d(values, SIDE)
    return np.asarray(values.flatten(1).numpy())


def mirrored(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Images [B, H, W, C] with left and right exchanged."""
    return np.ascontiguousarray(images[:, :, ::-1])
