"""What is done to images that an autoencoder reconstructs: blur, noise, a square left out; keyed by image number."""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config.schema_objectives import DegradationConfig
from pipeline.runtime.random import Stream, normal, uniform

GREY = 0.0
_REACH = 3  # deviations of a Gaussian that its kernel covers


def degraded(images: Tensor, sample_indices: Tensor, *, seed: int, cfg: DegradationConfig, draw: int = 0) -> Tensor:
    """Images [B, C, H, W], each blurred, noised and masked by amounts of its own, in this order.

    `draw` keeps apart indices that mean something else, such as the places of the validation split.
    """
    if not cfg.active:
        return images
    u = uniform(seed, Stream.DEGRADE, sample_indices, shape=(6,), draw=2 * draw, dtype=torch.float64).to(images.dtype)
    found = images
    if cfg.blur:
        found = blurred(found, cfg.blur * u[:, 1], reach=max(round(_REACH * cfg.blur), 1))
    if cfg.noise:
        noise = normal(
            seed, Stream.DEGRADE, sample_indices, shape=images.shape[1:], draw=2 * draw + 1, dtype=images.dtype
        )
        found = found + cfg.noise * u[:, 2, None, None, None] * noise
    if cfg.mask:
        found = torch.where(square(images, side=cfg.mask * u[:, 3], top=u[:, 4], left=u[:, 5]), GREY, found)
    return torch.where(u[:, 0, None, None, None] < cfg.share, found, images)


def blurred(images: Tensor, deviation: Tensor, *, reach: int) -> Tensor:
    """Each image with a Gaussian of its own deviation [B] in pixels; the border is repeated."""
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (places / deviation[:, None].clamp_min(1e-3)).square())
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [B, 2 reach + 1]
    for dim in (2, 3):
        border = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        windows = functional.pad(images, border, mode="replicate").unfold(dim, 2 * reach + 1, 1)
        images = (windows * kernel[:, None, None, None]).sum(dim=-1)
    return images


def square(images: Tensor, *, side: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Which pixels lie in a square, bool [B, 1, H, W]: `side` [B] as a share of the image's, wholly inside it.

    `top` and `left` [B] are from 0 (at that edge) to 1 (at the other).
    """
    inside = []
    for size, start in ((images.shape[2], top), (images.shape[3], left)):
        length = (side * size).round()
        first = (start * (size - length)).round()[:, None]
        place = torch.arange(size, device=images.device)[None]
        inside.append((place >= first) & (place < first + length[:, None]))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
