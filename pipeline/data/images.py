"""One image to bytes and back. The only encodings that shards know. Torch-free."""

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.png import decode_png, encode_png
from pipeline.runtime.errors import Incomplete

Encoding = Literal["raw", "png", "jpeg"]
Pixels = npt.NDArray[np.uint8]

EXTENSIONS = {"raw": "npy", "png": "png", "jpeg": "jpg"}


def encode(pixels: Pixels, encoding: str, quality: int = 95) -> bytes:
    """Bytes of one image.

    `pixels`: uint8 [H, W, C] with C of 1 or 3. raw: the bare bytes in row order; png: lossless; jpeg: `quality` 1-100,
    colour at full resolution (4:4:4). Equal pixels give equal bytes under one version of Pillow and
    one `deflate_version`.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(f"an image is uint8 [H, W, 1 or 3], not {pixels.dtype} {pixels.shape}")
    if encoding == "raw":
        return np.ascontiguousarray(pixels).tobytes()
    if encoding == "png":
        return encode_png(np.ascontiguousarray(pixels))
    if encoding != "jpeg":
        raise ValueError(f"encoding '{encoding}' is not one of {', '.join(EXTENSIONS)}")
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def decode(data: bytes | memoryview, encoding: str, shape: tuple[int, int, int]) -> Pixels:
    """Pixels of one image, uint8 [H, W, C].

    `shape` is [C, H, W], as a manifest has it. Bytes of another size or shape, or damaged ones, raise `Incomplete`.
    The result of raw bytes is a read-only view of `data`: nothing is copied.
    """
    channels, height, width = shape
    if encoding == "raw":
        if len(data) != channels * height * width:
            raise Incomplete(f"a raw image of shape {shape} has {channels * height * width} bytes, found {len(data)}")
        return np.frombuffer(data, dtype=np.uint8).reshape(height, width, channels)
    plain = decode_png(bytes(data), shape) if encoding == "png" else None
    if plain is not None:
        return plain
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image)
    except OSError as error:
        raise Incomplete(f"an image in a shard does not decode ({error}); verify the directory") from error
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.shape != (height, width, channels) or pixels.dtype != np.uint8:
        raise Incomplete(
            f"an image in a shard is {pixels.dtype} {pixels.shape}, expected uint8 {height, width, channels}"
        )
    return pixels
