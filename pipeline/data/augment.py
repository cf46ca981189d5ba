"""What is done to training images, keyed by image number: the same sample index gets the same change anywhere.

The changes take and return images [B, C, H, W] float32 in [-1, 1] and one value per image [B]. Formulas are those of
Pillow's ImageEnhance and torchvision's ColorJitter, without rounding to bytes in between. Sums are written out or
taken per image, since a library's reduction or product may round otherwise for another batch size.
"""

import math

import torch
from torch import Tensor

from pipeline.config.schema import AugmentConfig
from pipeline.runtime.random import Stream, uniform

# What each of the numbers drawn for an image decides.
NAMES = ("brightness", "contrast", "saturation", "hue", "sharpness", "rotation", "shift", "shift")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_TO_YIQ = torch.tensor([_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
_BACK = torch.linalg.inv(_TO_YIQ)
# A turn of hue by an angle is KEEP + cos * CHROMA + sin * QUARTER, on colours [3].
_KEEP = _BACK @ torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64)) @ _TO_YIQ
_CHROMA = torch.eye(3, dtype=torch.float64) - _KEEP
_QUARTER = _BACK @ torch.tensor([[0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]], dtype=torch.float64) @ _TO_YIQ


def flipped(sample_indices: Tensor, *, seed: int) -> Tensor:
    """Which images [B] are mirrored: bool [B], half of them."""
    return uniform(seed, Stream.FLIP, sample_indices) < 0.5


def augment_draws(sample_indices: Tensor, *, seed: int) -> Tensor:
    """The numbers that `augment` needs: uniform in (0, 1), [B, 9], each a function of its sample index.

    One for each of NAMES, then the one that decides whether the image is changed at all.
    """
    parts = [uniform(seed, Stream.AUGMENT, sample_indices, shape=(n,), draw=k) for k, n in enumerate((5, 3, 1))]
    return torch.cat(parts, dim=1)


def augment(images: Tensor, drawn: Tensor, *, cfg: AugmentConfig) -> Tensor:
    """Rotation with shift, brightness, contrast, saturation, hue and sharpness, in this order, clipped to [-1, 1].

    images [B, C, H, W] in [-1, 1], `drawn` [B, 9] from `augment_draws` -> images; the share that is not changed stays
    as it is.
    """
    draws, before = drawn.unbind(dim=1), images
    if cfg.rotation or cfg.shift:
        turn, *ways = (2 * draw - 1 for draw in draws[5:8])
        images = moved(images, cfg.rotation * turn, right=cfg.shift * ways[0], down=cfg.shift * ways[1])
    changes = ((brightness, cfg.brightness), (contrast, cfg.contrast), (saturation, cfg.saturation))
    for (change, amount), draw in zip(changes, draws[:3], strict=True):
        if amount:
            low, high = max(0.0, 1 - amount), 1 + amount
            images = change(images, low + (high - low) * draw)
    if cfg.hue:
        images = hue(images, cfg.hue * (2 * draws[3] - 1))
    if cfg.sharpness != 1 and cfg.sharpness_share:
        images = sharpness(images, torch.where(draws[4] < cfg.sharpness_share, cfg.sharpness, 1.0))
    return images if cfg.share == 1 else torch.where((draws[8] < cfg.share)[:, None, None, None], images, before)


def parameters(drawn: Tensor, *, cfg: AugmentConfig) -> Tensor:
    """What `augment` does, as [B, 8] numbers in [-1, 1], all 0 where it does nothing; `drawn` [B, 9]."""
    signs = 2 * drawn - 1
    numbers = [torch.zeros_like(drawn[:, 0])] * len(NAMES)
    for place, name in enumerate(NAMES):
        amount = getattr(cfg, name)
        if name == "sharpness":
            numbers[place] = (drawn[:, place] < cfg.sharpness_share).to(drawn.dtype) * float(amount != 1)
        elif amount and place < 3:  # factors, which are 1 where nothing changes
            low = max(0.0, 1 - amount)
            numbers[place] = (low + (1 + amount - low) * drawn[:, place] - 1) / amount
        elif amount:
            numbers[place] = signs[:, place]
    return torch.stack(numbers, dim=1) * (drawn[:, 8:] < cfg.share)


def moved(images: Tensor, degrees: Tensor, *, right: Tensor, down: Tensor) -> Tensor:
    """Square images turned by `degrees` [B] against the clock about their middle, then moved by shares [B] of a side.

    Bilinear; beyond the edge is the mirror image. Positions are written out, as a matrix product rounds by batch size.
    """
    rows, columns = (
        (2 * torch.arange(size, device=images.device, dtype=torch.float64) + 1) / size - 1 for size in images.shape[2:]
    )
    angle = torch.deg2rad(degrees.double())[:, None, None]
    x = columns[None, None, :] - 2 * right.double()[:, None, None]
    y = rows[None, :, None] - 2 * down.double()[:, None, None]
    places = torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=-1)
    found: Tensor = torch.nn.functional.grid_sample(
        images, places.to(images.dtype), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return found.clamp(-1, 1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Black at `factor` 0, the image at 1, brighter above."""
    return _blend(torch.full_like(images, -1.0), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """The image's mean grey at `factor` 0, the image at 1."""
    mean = _grey(images).double().mean(dim=(1, 2, 3), keepdim=True).to(images.dtype)
    return _blend(mean, images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Grey at `factor` 0, the image at 1. Images of one channel stay as they are."""
    return _blend(_grey(images), images, factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn colours about the grey axis by `turn` of a circle, in YIQ coordinates: luma and grey stay."""
    if images.shape[1] == 1:
        return images
    angle = 2 * math.pi * turn.double()
    # Plain numbers for the constant matrices: a small tensor would be copied to the device in every call.
    rows = [
        [luma + angle.cos() * chroma + angle.sin() * quarter for luma, chroma, quarter in zip(*columns, strict=True)]
        for columns in zip(_KEEP.tolist(), _CHROMA.tolist(), _QUARTER.tolist(), strict=True)
    ]
    matrix = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2).to(images.dtype)[..., None, None]
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
