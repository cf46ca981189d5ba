"""Crop, resize and convert: the pixels of a protocol."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prepared import picture

from data_prep.crop import cropped, square
from data_prep.items import Unusable
from pipeline.config.schema_data import CropSettings, DataConfig

SIDES = st.integers(16, 90)


def protocol(size: int = 16, **settings: object) -> DataConfig:
    source = {"kind": "folder", "path": "unused"}
    return DataConfig.model_validate({"name": "x", "source": source, "image_size": size, **settings})


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


@given(SIDES, SIDES, st.sampled_from(["centre", "squash"]), st.sampled_from(["lanczos", "bilinear", "box"]))
def test_a_plain_colour_stays_that_colour(width: int, height: int, kind: str, name: str) -> None:
    image = Image.new("RGB", (width, height), (12, 130, 250))
    out = np.asarray(cropped(image, CropSettings(kind=kind, filter=name), size=16))
    assert out.shape == (16, 16, 3) and (out == (12, 130, 250)).all()


@given(SIDES, SIDES)
def test_mirroring_before_is_mirroring_after(width: int, height: int) -> None:
    image = picture(3, width=width, height=height)
    crop = CropSettings(size=None)
    if (width - min(width, height)) % 2 == 0:  # an odd margin has no middle
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        there = np.asarray(cropped(mirrored, crop, size=16)).astype(int)
        back = np.asarray(cropped(image, crop, size=16))[:, ::-1]
        assert np.abs(there - back).max() <= 1


def test_the_centre_crop_is_the_centre() -> None:
    values = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    out = np.asarray(cropped(Image.fromarray(values), CropSettings(size=16), size=16))
    assert np.array_equal(out, values[2:18, 7:23])


def test_celeba_s_crop_starts_at_row_20() -> None:
    """178x218 with a crop of 178 takes rows 20 to 197, as EDM's center-crop does."""
    values = np.zeros((218, 178), dtype=np.uint8)
    values[20:198] = 200
    assert (np.asarray(cropped(Image.fromarray(values), CropSettings(size=178), size=64)) == 200).all()


def test_pad_moves_no_pixel() -> None:
    digit = np.random.default_rng(0).integers(1, 256, (28, 28), dtype=np.uint8)
    out = np.asarray(cropped(Image.fromarray(digit), CropSettings(kind="pad"), size=32))
    assert np.array_equal(out[2:30, 2:30], digit) and out.sum(dtype=int) == digit.sum(dtype=int)


def test_point_bilinear_reads_four_pixels_only() -> None:
    """At a third of the size each result is the middle one of three: what lies between is not seen (cv2's default)."""
    values = np.random.default_rng(1).integers(0, 256, (48, 48), dtype=np.uint8)
    out = np.asarray(cropped(Image.fromarray(values), CropSettings(kind="squash", filter="bilinear_point"), size=16))
    assert np.array_equal(out, values[1::3, 1::3])


def test_lanczos_is_pillow_s_on_the_crop(shared: Path) -> None:
    with tarfile.open(shared / "data" / "celeba7k_89x109.tar") as archive:
        data = archive.extractfile(archive.next()).read()
    image = Image.open(io.BytesIO(data))
    exact = image.convert("RGB").crop((0, 10, 89, 99)).resize((64, 64), Image.Resampling.LANCZOS)
    pixels, converted = square(image, protocol(64, crop={"size": 89}))
    assert np.array_equal(pixels, np.asarray(exact)) and converted == []


def test_shrink_on_load_is_within_50_db_of_the_exact_pixels(shared: Path) -> None:
    exact, quick = protocol(64), protocol(64, crop={"shrink_on_load": True})
    squares, number = 0.0, 0
    with tarfile.open(shared / "data" / "102flowers_sample.tgz") as archive:
        for member in [m for m in archive if m.isfile()][:60]:
            data = archive.extractfile(member).read()
            one, other = (square(Image.open(io.BytesIO(data)), cfg)[0].astype(float) for cfg in (exact, quick))
            squares, number = squares + ((one - other) ** 2).sum(), number + one.size
    assert 10 * np.log10(255**2 / (squares / number)) >= 50


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_the_nearest_of_256_levels(channels: int) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    pixels, converted = square(stored(Image.fromarray(levels)), protocol(channels=channels))
    assert np.array_equal(pixels[:, :, 0], np.arange(256).reshape(16, 16))
    assert converted[0] == "sixteen_bit"


def test_alpha_is_laid_over_the_background() -> None:
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 100, 0, 255), (0, 0, 8, 16))
    for background in (0, 255):
        pixels, converted = square(stored(image), protocol(convert={"background": background}))
        assert (pixels[:, 8:] == background).all() and (pixels[:, :8] == (0, 100, 0)).all()
        assert converted == ["alpha"]


def test_a_palette_with_a_transparent_colour_is_alpha() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert square(stored(image, transparency=1), protocol())[1] == ["alpha"]
    assert (square(stored(image), protocol())[0] == (10, 20, 30)).all()


def test_exif_rotation_is_undone() -> None:
    image = picture(5, width=20, height=20)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = stored(image, "PNG", exif=exif)
    pixels, converted = square(turned, protocol(20))
    assert np.array_equal(pixels, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))
    assert converted == ["exif_rotation"]
    ignored = square(stored(image, "PNG", exif=exif), protocol(20, convert={"exif_rotation": "ignore"}))
    assert np.array_equal(ignored[0], np.asarray(image)) and ignored[1] == []


def test_cmyk_and_greyscale_become_what_is_asked_for() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels, converted = square(stored(cmyk, "TIFF"), protocol())
    assert (pixels == (255, 0, 0)).all() and converted == ["cmyk"]
    pixels, converted = square(stored(Image.new("L", (16, 16), 77)), protocol())
    assert (pixels == 77).all() and pixels.shape == (16, 16, 3) and converted == ["greyscale"]
    pixels, converted = square(stored(Image.new("RGB", (16, 16), (50, 50, 50))), protocol(channels=1))
    assert (pixels == 50).all() and pixels.shape == (16, 16, 1) and converted == ["colour"]


def test_an_image_that_would_be_enlarged_is_rejected_unless_the_protocol_allows() -> None:
    small = picture(0, width=12, height=40)
    with pytest.raises(Unusable, match="12x40 pixels, the protocol needs 16"):
        square(stored(small), protocol())
    assert square(stored(small), protocol(crop={"min_side": 8}))[0].shape == (16, 16, 3)
