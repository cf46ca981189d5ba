"""The quick way for plain JPEGs: Pillow's pixels, to the bit; everything else is left to Pillow."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from prepared import picture
from test_crop import protocol

from data_prep.archives import open_image
from data_prep.crop import CURVES, FILTERS, decode_jpeg, jpeg_size, resample, square, square_of_jpeg
from data_prep.items import Unusable


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(
    before=st.integers(1, 300),
    after=st.integers(1, 140),
    channels=st.sampled_from([1, 3]),
    curve=st.sampled_from(sorted(CURVES)),
    seed=st.integers(0, 2**32),
    hard=st.booleans(),
)
@example(before=264, after=129, channels=3, curve="hamming", seed=129, hard=True)  # its constants are float32
def test_resampling_is_pillow_s(before: int, after: int, channels: int, curve: str, seed: int, hard: bool) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (before, before, channels), dtype=np.uint8)
    pixels = (pixels > 127).astype(np.uint8) * 255 if hard else pixels  # black and white overshoot on both sides
    plain = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    expected = np.asarray(plain.resize((after, after), FILTERS[curve])).reshape(after, after, channels)
    assert np.array_equal(resample(pixels, after, curve=curve), expected)


def test_only_squares_are_resampled() -> None:
    with pytest.raises(ValueError, match="a square"):
        resample(np.zeros((8, 9, 3), np.uint8), 4, curve="box")


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "quality": 20}, {"keep_rgb": True}])
@pytest.mark.parametrize("side", [64, 61, 7])
def test_decoding_is_pillow_s(subsampling: int, options: dict[str, object], side: int) -> None:
    subsampling = 0 if "keep_rgb" in options else subsampling
    content = jpeg(picture(3, width=side + 12, height=side), subsampling=subsampling, **options)
    decoded = decode_jpeg(content)
    assert jpeg_size(content) == (side + 12, side)
    assert decoded is not None and np.array_equal(decoded, np.asarray(Image.open(io.BytesIO(content))))


def test_anything_that_needs_a_rule_is_left_to_pillow() -> None:
    image = picture(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    for other in (
        jpeg(image.convert("L")),
        jpeg(image.convert("CMYK")),
        jpeg(image, exif=turned),
        b"",
        b"\xff\xd8junk",
    ):
        assert square_of_jpeg(other, protocol()) is None
    content = jpeg(image)
    assert square_of_jpeg(content[:-40], protocol()) is None  # truncated: Pillow says so
    for settings_ in ({"crop": {"kind": "squash"}}, {"crop": {"kind": "pad"}}, {"crop": {"filter": "bilinear_point"}}):
        assert square_of_jpeg(content, protocol(**settings_)) is None
    assert square_of_jpeg(content, protocol(channels=1)) is None
    assert square_of_jpeg(content, protocol(crop={"size": 30, "min_side": 4})) is None  # larger than the image
    with pytest.raises(Unusable, match="24x20 pixels"):
        square_of_jpeg(content, protocol(crop={"size": 30}))


@pytest.mark.parametrize(("archive", "side"), [("celeba7k_89x109.tar", 89), ("102flowers_sample.tgz", None)])
def test_real_images_become_the_same_pixels_both_ways(shared: Path, archive: str, side: int | None) -> None:
    with tarfile.open(shared / "data" / archive) as tar:
        files = [member for member in tar if member.name.endswith(".jpg")][:40]
        contents = [file.read() for member in files if (file := tar.extractfile(member))]
    cfg = protocol(64, crop={"size": side})
    for content in contents:
        quick = square_of_jpeg(content, cfg)
        assert quick is not None and np.array_equal(quick, square(open_image(content), cfg)[0])
