"""The bytes of a tar member and of an npy file: fixed metadata, so that equal content gives equal bytes."""

from typing import Any

import numpy as np

BLOCK = 512  # tar's
BLANK_CHECKSUM = 8 * 32  # a tar checksum counts its own eight bytes as spaces
END = bytes(2 * BLOCK)  # of an archive
_OWNER = b"".join((b"0000644\0", b"0000000\0", b"0000000\0"))  # mode, user, group
_TYPE = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
_FIXED = sum(_OWNER) + BLANK_CHECKSUM + sum(_TYPE)


def tar_header(name: str, size: int) -> bytes:
    """A ustar header: regular file, mode 0644, owner 0, time 0 (POSIX.1-1988, the bytes that `tarfile` writes)."""
    encoded = name.encode()
    if len(encoded) > 100:
        raise ValueError(f"'{name}' is longer than the 100 bytes of a tar name")
    length_time = b"%011o\0%011o\0" % (size, 0)
    checksum = sum(encoded) + sum(length_time) + _FIXED
    return b"".join((encoded.ljust(100, b"\0"), _OWNER, length_time, b"%06o\0 " % checksum, _TYPE))


def array_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The npy header (format 1.0) before a bare array in row order; data start at a multiple of 64 bytes."""
    words = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(10 + len(words) + 1) % 64
    text = words.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def member(name: str, content: bytes) -> bytes:
    """A file of an archive: header, content, zeros up to the next block."""
    return b"".join((tar_header(name, len(content)), content, bytes(-len(content) % BLOCK)))
