"""Pictures for people: quantised pixels and contact grids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.runtime.files import atomic_path

Pixels = npt.NDArray[np.uint8]
WIDTH = 640  # small pictures are enlarged to about this many pixels
_GAP = 2  # pixels between images of a grid
_LETTERS, _LONGEST = 22, 28  # height in pixels, and number, of the letters before a row


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


def picture_of(images: Pixels, *, columns: int, names: Sequence[str] = ()) -> Pixels:
    """Images [B, H, W, C] in rows of `columns`, large enough to look at; `names` stand before the rows. [H, W, 3]."""
    picture = tile(images, columns=columns)
    picture = enlarged(picture, factor=max(round(WIDTH / picture.shape[1]), 1))
    return _named(picture, names) if any(names) else picture


def write_picture(path: Path, images: Pixels, *, columns: int, names: Sequence[str] = ()) -> Path:
    """The picture of `picture_of` as a PNG."""
    with atomic_path(path) as partial:
        Image.fromarray(picture_of(images, columns=columns, names=names)).save(partial, "PNG")
    return path


def _named(picture: Pixels, names: Sequence[str]) -> Pixels:
    """A picture [H, W, 3] of as many rows as names, with the names in a margin on the left."""
    height = picture.shape[0] / len(names)
    font = ImageFont.load_default(size=min(_LETTERS, max(height - 2, 8)))
    short = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\u2026" for name in names]
    margin = max(round(font.getlength(name)) for name in short) + 12
    page = Image.new("RGB", (margin + picture.shape[1], picture.shape[0]), "white")
    page.paste(Image.fromarray(picture), (margin, 0))
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(short):
        draw.text((margin - 6, round((row + 0.5) * height)), name, fill="black", font=font, anchor="rm")
    return np.asarray(page)


def class_names(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """The names of some classes for a picture; "" for none, and where names only count the classes."""
    counted = list(names) == [str(number) for number in range(len(names))]
    return ["" if counted or label < 0 else names[label] for label in labels]
