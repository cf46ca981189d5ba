"""PNG files of one filter: any program reads them, and they read back as they were."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib
from PIL import Image

from pipeline.data.png import decode_png, encode_png


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 2**32))
def test_pillow_and_this_module_read_what_was_written(height, width, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    data = encode_png(pixels)
    assert np.array_equal(decode_png(data, (channels, height, width)), pixels)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", {1: "L", 3: "RGB"}[channels])
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_a_view_of_an_image_is_written_as_it_looks():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    for view in (pixels[:, ::-1], pixels[2:9, 1:5], pixels.transpose(1, 0, 2)):
        height, width = view.shape[:2]
        assert np.array_equal(decode_png(encode_png(view), (3, height, width)), view)


def test_other_kinds_of_png_are_left_to_others():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("P"), Image.fromarray(pixels[:, :, 0])):
        for options in ({}, {"compress_level": 0}, {"dpi": (72, 72)}):
            buffer = io.BytesIO()
            image.save(buffer, "PNG", **options)
            assert decode_png(buffer.getvalue(), (3, 16, 16)) is None
    data = encode_png(pixels)
    for shape in ((1, 16, 16), (3, 16, 17), (3, 8, 32)):
        assert decode_png(data, shape) is None


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
def test_every_damaged_byte_is_noticed(place, change):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    data = bytearray(encode_png(pixels))
    place %= len(data) - 12  # the end mark has nothing to say
    data[place] ^= change
    assert decode_png(bytes(data), (3, 8, 8)) is None


@pytest.mark.parametrize("length", [0, 7, 33, 40, 60])
def test_a_file_that_was_cut_is_noticed(length):
    assert decode_png(encode_png(np.zeros((8, 8, 3), dtype=np.uint8))[:length], (3, 8, 8)) is None


def test_a_right_checksum_over_wrong_content_is_an_error():
    """A broken writer, not a broken disk."""
    header = encode_png(np.zeros((8, 8, 3), dtype=np.uint8))[:33]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for body in (b"nothing that inflates", zlib.compress(bytes(17))):
        with pytest.raises((isal_zlib.error, ValueError)):
            decode_png(header + chunk(b"IDAT", body) + chunk(b"IEND", b""), (3, 8, 8))
