"""One image to bytes and back."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from PIL import Image

from pipeline.data.images import decode, encode
from pipeline.runtime.errors import Incomplete

IMAGES = some.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])))


def chw(pixels: np.ndarray) -> tuple[int, int, int]:
    height, width, channels = pixels.shape
    return channels, height, width


@given(IMAGES, st.sampled_from(["raw", "png"]))
def test_lossless_encodings_give_back_every_pixel(pixels: np.ndarray, encoding: str) -> None:
    assert np.array_equal(decode(encode(pixels, encoding), encoding, chw(pixels)), pixels)


@given(IMAGES)
def test_any_program_opens_the_png(pixels: np.ndarray) -> None:
    opened = np.asarray(Image.open(io.BytesIO(encode(pixels, "png"))))
    assert np.array_equal(opened.reshape(pixels.shape), pixels)


def test_jpeg_is_close_and_closer_with_quality() -> None:
    ramp = np.linspace(0, 255, 32)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 128.0), axis=2).astype(np.uint8)
    errors = [
        np.abs(decode(encode(smooth, "jpeg", quality), "jpeg", (3, 32, 32)).astype(int) - smooth).mean()
        for quality in (30, 75, 98)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1.5


def test_a_raw_image_is_a_view_of_its_bytes() -> None:
    data = bytes(range(12))
    pixels = decode(memoryview(data), "raw", (3, 2, 2))
    assert not pixels.flags.writeable and pixels.tobytes() == data


@pytest.mark.parametrize("encoding", ["raw", "png", "jpeg"])
def test_damaged_bytes_and_other_shapes_are_named(encoding: str) -> None:
    data = encode(np.zeros((8, 8, 3), dtype=np.uint8), encoding)
    with pytest.raises(Incomplete, match=r"raw image|does not decode"):
        decode(data[: len(data) // 2], encoding, (3, 8, 8))
    with pytest.raises(Incomplete, match=r"expected uint8|has 27 bytes"):
        decode(data, encoding, (3, 3, 3))


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="not float64"):
        encode(np.zeros((8, 8, 3)), "png")
    with pytest.raises(ValueError, match="'webp' is not one of raw, png, jpeg"):
        encode(np.zeros((8, 8, 3), dtype=np.uint8), "webp")
