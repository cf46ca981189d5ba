"""Pictures for people: quantised pixels and contact grids."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.runtime.files import atomic_path

Pixels = npt.NDArray[np.uint8]
WIDTH = 640  # small pictures are enlarged to about this many pixels
_GAP = 2  # pixels between images of a grid


def to_uint8(images: Tensor) -> Pixels:
    """[B, C, H, W] in [-1, 1] to uint8 [B, H, W, C]: clipped, x * 127.5 + 127.5, rounded once, half to even."""
    scaled = (images.detach().float().clamp(-1, 1) * 127.5 + 127.5).round()
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def from_uint8(pixels: Pixels) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [-1, 1], the same values as a batch of training has."""
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    return torch.from_numpy((planes - np.float32(127.5)) / np.float32(127.5))


def tile(images: Pixels, *, columns: int) -> Pixels:
    """[B, H, W, C] to one picture [rows * H, columns * W, 3] in reading order, white between and after the images."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    page = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for k in range(count):
        top, left = _GAP + (k // columns) * (height + _GAP), _GAP + (k % columns) * (width + _GAP)
        page[top : top + height, left : left + width] = images[k] if channels == 3 else images[k].repeat(3, axis=2)
    return page


def enlarged(picture: Pixels, *, factor: int) -> Pixels:
    """[H, W, C] with every pixel `factor` times as wide and high, for images too small to look at."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def write_picture(path: Path, images: Pixels, *, columns: int) -> Path:
    """Images [B, H, W, C] in rows of `columns` as a PNG, large enough to look at."""
    picture = tile(images, columns=columns)
    picture = enlarged(picture, factor=max(round(WIDTH / picture.shape[1]), 1))
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, "PNG")
    return path
