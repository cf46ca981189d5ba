"""What is done to training images, keyed by image number: the same visit gets the same change anywhere.

The changes take and return images [B, C, H, W] float32 in [-1, 1] and one value per image [B]. Formulas are those of
Pillow's ImageEnhance and torchvision's ColorJitter, without rounding to bytes in between. Sums are written out or
taken per image, since a library's reduction or product may round otherwise for another batch size.
"""

import math

import torch
from torch import Tensor

from pipeline.config.schema_augment import AugmentConfig
from pipeline.runtime.random import Stream, uniform

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_TO_YIQ = torch.tensor([_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)


def flipped(visits: Tensor, *, seed: int) -> Tensor:
    """Which visits [B] show their image mirrored: bool [B], half of them."""
    return uniform(seed, Stream.FLIP, visits) < 0.5


def augment(images: Tensor, visits: Tensor, *, seed: int, cfg: AugmentConfig) -> Tensor:
    """Brightness, contrast, saturation, hue and sharpness, in this order, each clipped to [-1, 1]."""
    draws = uniform(seed, Stream.AUGMENT, visits, shape=(5,)).unbind(dim=1)
    changes = ((brightness, cfg.brightness), (contrast, cfg.contrast), (saturation, cfg.saturation))
    for (change, amount), draw in zip(changes, draws[:3], strict=True):
        if amount:
            low, high = max(0.0, 1 - amount), 1 + amount
            images = change(images, low + (high - low) * draw)
    if cfg.hue:
        images = hue(images, cfg.hue * (2 * draws[3] - 1))
    if cfg.sharpness != 1 and cfg.sharpness_share:
        images = sharpness(images, torch.where(draws[4] < cfg.sharpness_share, cfg.sharpness, 1.0))
    return images


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Black at `factor` 0, the image at 1, brighter above."""
    return _blend(torch.full_like(images, -1.0), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The image's mean grey at `factor` 0, the image at 1."""
    mean = torch.stack([grey.double().mean().to(images.dtype) for grey in _grey(images)])
    return _blend(mean[:, None, None, None], images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Grey at `factor` 0, the image at 1. Images of one channel stay as they are."""
    return _blend(_grey(images), images, factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn colours about the grey axis by `turn` of a circle, in YIQ coordinates: luma and grey stay."""
    if images.shape[1] == 1:
        return images
    back = torch.linalg.inv(_TO_YIQ)
    luma = back @ torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64)) @ _TO_YIQ
    chroma = torch.eye(3, dtype=torch.float64) - luma
    quarter = back @ torch.tensor([[0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]], dtype=torch.float64) @ _TO_YIQ
    angle = 2 * math.pi * turn.double()[:, None, None]
    matrix = (luma + angle.cos() * chroma + angle.sin() * quarter).to(images.dtype)[..., None, None]
    red, green, blue = images[:, None].unbind(dim=2)
    turned: Tensor = matrix[:, :, 0] * red + matrix[:, :, 1] * green + matrix[:, :, 2] * blue
    return turned.clamp(-1, 1)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """A 3 x 3 blur (centre 5/13, others 1/13; not on the border) at `factor` 0, the image at 1, sharper above."""
    height, width = images.shape[2:]
    inner = 4 * images[:, :, 1:-1, 1:-1]
    for y in range(3):
        for x in range(3):
            inner = inner + images[:, :, y : y + height - 2, x : x + width - 2]
    blurred = images.clone()
    blurred[:, :, 1:-1, 1:-1] = inner / 13
    return _blend(blurred, images, factor)


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return (other + factor[:, None, None, None] * (images - other)).clamp(-1, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, :, None].unbind(dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
