"""An item's image, from wherever it lies. `at` is a plain tuple, so that listings are text and workers share nothing.

("file", path)                                   a file of its own
("range", path, offset, size)                    bytes inside a larger file: a tar, a stored zip member
("deflate", path, offset, size)                  a compressed zip member
("array", path, offset, [H, W, C], "hwc"|"chw")  bare pixels: idx, CIFAR batches
("lmdb", path, key in hex)                       an entry of an lmdb database
("glyph", font, number, letter, scale)           nothing yet: a letter to draw
"""

import functools
import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.reasons import Unusable


def read_bytes(at: tuple[Any, ...], root: Path) -> bytes:
    """The encoded bytes of an image that lies in a file."""
    kind, name = at[0], at[1]
    if kind == "file":
        try:
            with Path(root, name).open("rb", buffering=0) as file:
                return file.readall()
        except OSError as error:
            raise Unusable("unreadable", f"cannot be read: {error.strerror}") from error
    if kind == "range":
        return _read_range(root / name, at[2], at[3])
    if kind == "deflate":
        try:
            return zlib.decompress(_read_range(root / name, at[2], at[3]), wbits=-15)
        except zlib.error as error:
            raise Unusable("unreadable", f"the zip member is damaged: {error}") from error
    if kind == "lmdb":
        return _read_lmdb(root / name, bytes.fromhex(at[2]))
    raise ValueError(f"no way to read an item at {at}")


def open_image(data: bytes) -> Image.Image:
    """The bytes of a file as a Pillow image, not decoded yet. What is no image raises `Unusable`."""
    if not data:
        raise Unusable("empty", "the file has no bytes")
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise Unusable("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Unusable("unreadable", f"not an image ({len(data)} bytes, starting {data[:12]!r})") from error


def array_image(at: tuple[Any, ...], root: Path) -> Image.Image:
    """An item of bare pixels as a Pillow image."""
    height, width, channels = at[3]
    pixels = np.frombuffer(_read_range(root / at[1], at[2], height * width * channels), dtype=np.uint8)
    if at[4] == "chw":
        pixels = pixels.reshape(channels, height, width).transpose(1, 2, 0)
    pixels = pixels.reshape(height, width, channels)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels))


def _read_range(path: Path, offset: int, size: int) -> bytes:
    data = os.pread(_opened(path), size, offset)
    if len(data) != size:
        raise Unusable("truncated", f"{path.name} ends at byte {offset + len(data)}, the image at {offset + size}")
    return data


@functools.lru_cache(maxsize=64)
def _opened(path: Path) -> int:
    """A file kept open while the process lives: a data set is one file, or a few."""
    return os.open(path, os.O_RDONLY)


@functools.lru_cache(maxsize=4)
def _opened_lmdb(path: Path) -> Any:
    import lmdb  # only who has LSUN's own exports needs it

    return lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir())


def _read_lmdb(path: Path, key: bytes) -> bytes:
    with _opened_lmdb(path).begin() as transaction:
        data = transaction.get(key)
    if data is None:
        raise Unusable("unreadable", f"{path.name} has no entry {key!r}")
    return bytes(data)
