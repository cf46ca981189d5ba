"""One image of any kind to the square of 8-bit pixels that a protocol asks for, or the reason why not.

Plain JPEGs take a quick way: the same decoder without Pillow's reading of headers, and Pillow's resampling, to the bit,
in half of its time. Pillow weighs 8-bit pixels with whole numbers of 22 fractional bits and rounds after each of its
two passes. Such sums stay below 2^53, so float64 matrix products hold them exactly whatever the order of summation: a
BLAS may do the work, and the result is Pillow's on every machine (`tests/data_prep/test_jpeg.py`). The weights are
stored as these numbers over 2^22, which changes exponents alone.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from data_prep.items import Unusable
from pipeline.config.schema_data import ConversionRules, CropSettings, DataConfig

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
}
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_EXIF_ORIENTATION = 0x0112
_EXIF = b"Exif\0\0"  # where a rotation would stand
_APP1, _SCAN = 0xE1, 0xDA
_BITS = 22  # Pillow's PRECISION_BITS: 32 less 8 for the pixel and 2 for overshoot
_TOGETHER = 1 << 16  # pixels of one product: what lies in float64 at a time stays in the cache


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)


def _bicubic(x: float) -> float:
    """Keys 1981 with a = -1/2."""
    x = abs(x)
    return (1.5 * x - 2.5) * x * x + 1 if x < 1 else (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


_LEVEL, _SWING = float(np.float32(0.54)), float(np.float32(0.46))  # Pillow writes 0.54f and 0.46f


def _hamming(x: float) -> float:
    x = abs(x)
    return 0.0 if x >= 1 else _sinc(x) * (_LEVEL + _SWING * math.cos(x * math.pi))


# name: half of the width at scale 1, and the curve, term by term as Pillow computes it
CURVES: dict[str, tuple[float, Callable[[float], float]]] = {
    "box": (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
    "bilinear": (1.0, lambda x: max(1 - abs(x), 0.0)),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, lambda x: _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0),
}


def square_of_jpeg(data: bytes, cfg: DataConfig) -> Pixels | None:
    """What `square` gives, in half of its time, for most images: plain JPEGs of which the middle square is resized.

    None where it is `square`'s to decide. One that is too small raises `Unusable`.
    """
    crop = cfg.crop
    if crop.kind != "centre" or crop.shrink_on_load or crop.filter not in CURVES or cfg.channels != 3:
        return None
    size = jpeg_size(data)
    if size is None:
        return None
    left, top, right, bottom = _box(size, crop, size=cfg.image_size)
    pixels = decode_jpeg(data) if min(left, top) >= 0 else None
    return None if pixels is None else resample(pixels[top:bottom, left:right], cfg.image_size, curve=crop.filter)


def square(image: Image.Image, cfg: DataConfig) -> tuple[Pixels, list[str]]:
    """The pixels of a protocol, uint8 [S, S, C], and the kinds of conversion that were made (see `data_prep.items`).

    An image that does not decode, is too small, or is of a kind that the protocol rejects raises `Unusable`.
    """
    shrink = _shrink(image, cfg) if cfg.crop.shrink_on_load else None
    try:
        plain, converted = convert(image, cfg.convert, channels=cfg.channels)
    except Image.DecompressionBombError as error:
        raise Unusable("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        raise Unusable(kind, f"does not decode: {error}") from error
    small = shrink(plain) if shrink else cropped(plain, cfg.crop, size=cfg.image_size)
    pixels = np.asarray(small)
    return (pixels[:, :, None] if pixels.ndim == 2 else pixels), converted


def cropped(image: Image.Image, crop: CropSettings, *, size: int) -> Image.Image:
    """Crop and resize an 8-bit image to `size` x `size`. The filters are Pillow's: their support grows when shrinking.

    bilinear_point alone reads four pixels whatever the scale, as cv2.resize does by default: it aliases.
    """
    left, top, right, bottom = _box(image.size, crop, size=size)
    if crop.kind == "pad":
        return ImageOps.pad(image, (size, size)) if max(image.size) > size else _padded(image, size)
    if (right - left, bottom - top) != image.size:
        image = image.crop((left, top, right, bottom))
    if image.size == (size, size):
        return image
    if crop.filter == "bilinear_point":
        whole = (0, 0, *image.size)
        return image.transform((size, size), Image.Transform.EXTENT, whole, Image.Resampling.BILINEAR)
    return image.resize((size, size), FILTERS[crop.filter])


def _box(full: tuple[int, int], crop: CropSettings, *, size: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is resized, in pixels of an image of `full` width and height.

    The centre crop takes rows from (height - side) // 2 and columns from (width - side) // 2.
    """
    width, height = full
    side = crop.size or min(width, height)
    least = crop.min_side or (1 if crop.kind == "pad" else crop.size or size)
    if min(width, height) < least:
        raise Unusable("too_small", f"{width}x{height} pixels, the protocol needs {least} at the shorter side")
    if crop.kind != "centre":
        return 0, 0, width, height
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _padded(image: Image.Image, size: int) -> Image.Image:
    canvas = Image.new(image.mode, (size, size))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return canvas


def _shrink(image: Image.Image, cfg: DataConfig) -> Callable[[Image.Image], Image.Image] | None:
    """Let a JPEG's decoder shrink by 2, 4 or 8, and return what takes the place of `cropped` then.

    It does so where the crop stays at least three times the result: measured on the Flowers, whole-set PSNR to the
    exact pixels is above 50 dB then, and 47 dB at twice the result. The box is the exact one, at fractions of pixels.
    """
    if image.format != "JPEG" or "exif" in image.info or cfg.crop.kind == "pad":
        return None
    left, top, right, bottom = _box(image.size, cfg.crop, size=cfg.image_size)
    factor = next((k for k in (8, 4, 2) if min(right - left, bottom - top) >= 3 * k * cfg.image_size), 1)
    if factor == 1 or image.draft(None, (image.width // factor, image.height // factor)) is None:
        return None

    def resize(small: Image.Image) -> Image.Image:
        edges = (left // factor, top // factor, -(-right // factor), -(-bottom // factor))  # the filter sees no more
        inner = small.crop(edges)
        box = (left / factor - edges[0], top / factor - edges[1], right / factor - edges[0], bottom / factor - edges[1])
        box = (box[0], box[1], min(box[2], inner.width), min(box[3], inner.height))
        return inner.resize((cfg.image_size, cfg.image_size), FILTERS[cfg.crop.filter], box=box)

    return resize


def convert(image: Image.Image, rules: ConversionRules, *, channels: int) -> tuple[Image.Image, list[str]]:
    """An image of any mode as 8-bit RGB (`channels` 3) or greyscale (1), and what was converted for it."""
    # The first frame is taken. Second pictures of a camera's JPEG (MPO) are no frames of it.
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    converted: list[str] = ["animated"] if animated else []

    def by_rule(kind: str, rule: str, found: str) -> bool:
        if rule == "reject":
            raise Unusable(kind, f"{found}, and convert.{kind}=reject")
        if rule == "convert":
            converted.append(kind)
        return rule == "convert"

    wide = image.mode in _SIXTEEN_BIT or _wide_png(image)
    image.load()
    tagged = "exif" in image.info or image.format == "TIFF"  # reading what is not there costs as much as a small decode
    turn = image.getexif().get(_EXIF_ORIENTATION, 1) if tagged else 1
    if turn != 1 and by_rule("exif_rotation", rules.exif_rotation, f"EXIF orientation {turn}"):
        image = ImageOps.exif_transpose(image)
    if wide:
        by_rule("sixteen_bit", rules.sixteen_bit, f"more than 8 bits a channel (mode {image.mode})")
        image = _eight_bit(image)
    if image.mode == "CMYK":
        by_rule("cmyk", rules.cmyk, "CMYK")
        image = image.convert("RGB")
    if image.has_transparency_data:
        by_rule("alpha", rules.alpha, f"transparency (mode {image.mode})")
        image = _over(image, rules.background)
    if image.mode in ("1", "L") and channels == 3:
        by_rule("greyscale", rules.greyscale, f"greyscale (mode {image.mode})")
    if image.mode not in ("1", "L") and channels == 1:
        by_rule("colour", rules.colour, f"colour (mode {image.mode})")
    wanted = "RGB" if channels == 3 else "L"
    return (image if image.mode == wanted else image.convert(wanted)), converted


def _wide_png(image: Image.Image) -> bool:
    """A PNG with 16 bits in several channels, not decoded yet: Pillow will keep the high bytes without a word."""
    return image.format == "PNG" and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale to the nearest of 256 levels: 65535 is 255. Floats are taken as 0 to 1."""
    if image.mode not in _SIXTEEN_BIT:
        return image
    values: npt.NDArray[Any] = np.asarray(image).astype(np.float64)
    values = values * 255 if image.mode == "F" else values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _over(image: Image.Image, background: int) -> Image.Image:
    """The image laid over one shade of grey."""
    colours = image.convert("RGBA")
    paper = Image.new("RGBA", colours.size, (background, background, background, 255))
    flat = Image.alpha_composite(paper, colours)
    return flat.convert("L" if image.mode == "LA" else "RGB")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a colour JPEG that nothing has to be done to but decoding; None for anything else."""
    if not _without_exif(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    most = Image.MAX_IMAGE_PIXELS
    too_large = most is not None and width * height > most  # Pillow warns or refuses
    return None if too_large or colours not in ("YCbCr", "RGB") else (width, height)


def _without_exif(data: bytes) -> bool:
    """Whether the segments before the image (ITU T.81, B.1.1.4) are whole and none of them is EXIF's."""
    if data[:2] != b"\xff\xd8":
        return False
    place, end = 2, len(data) - 4
    while place < end and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == _SCAN:
            return True
        if marker == _APP1 and data.startswith(_EXIF, place + 4):
            return False
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return False


def decode_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """uint8 [H, W, 3], as Pillow decodes it: both call libjpeg-turbo.

    None where the decoder has anything to complain about: Pillow then repairs, or says what is wrong.
    """
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None
    return pixels


@dataclass(frozen=True)
class Taps:
    """Weights of the outputs in `to` as a matrix [inputs, outputs] over the inputs in `span`, and its transpose."""

    to: slice
    span: slice
    weights: Floats
    across: Floats


def resample(pixels: Pixels, size: int, *, curve: str) -> Pixels:
    """uint8 [N, N, C] -> [size, size, C], equal to `PIL.Image.resize((size, size), curve)`.

    Squares alone: of other images Pillow takes the passes in an order that depends on the sides.
    """
    side, other, channels = pixels.shape
    if side != other:
        raise ValueError(f"an image of {other}x{side} pixels, expected a square")
    if side == size:
        return pixels
    taps = _taps(side, size, curve)
    step = min(max(_TOGETHER // side, 16), side)
    planes, sums = np.empty((channels * step, side)), np.empty((channels * step, size))  # new pages cost more
    columns = np.empty((side, size, channels))
    for top in range(0, side, step):
        rows = pixels[top : top + step]
        wide, narrow = planes[: channels * len(rows)], sums[: channels * len(rows)]
        wide.reshape(channels, -1, side)[...] = rows.transpose(2, 0, 1)
        for tap in taps:
            np.matmul(wide[:, tap.span], tap.weights, out=narrow[:, tap.to])
        narrow += 0.5
        np.floor(narrow, out=narrow)
        out = columns[top : top + step].transpose(2, 0, 1)
        np.clip(narrow.reshape(out.shape), 0, 255, out=out)
    small, flat = np.empty((size, size * channels)), columns.reshape(side, -1)
    for tap in taps:
        np.matmul(tap.across, flat[tap.span], out=small[tap.to])
    small += 0.5
    np.clip(small, 0, 255, out=small)
    return small.astype(np.uint8).reshape(size, size, channels)  # from 0 on, this is the floor


@functools.lru_cache(maxsize=256)
def _taps(before: int, after: int, curve: str) -> tuple[Taps, ...]:
    """The weights of one axis, grouped (Pillow's Resample.c: precompute_coeffs, normalize_coeffs_8bpc)."""
    rows = [_weights(before, after, place, curve) for place in range(after)]
    together = 8 if before >= 4 * after else 16  # outputs of one product: more of them multiply more zeros
    groups = []
    for first in range(0, after, together):
        members = rows[first : first + together]
        start, end = min(s for s, _ in members), max(s + len(w) for s, w in members)
        matrix = np.zeros((end - start, len(members)))
        for column, (begin, weights) in enumerate(members):
            matrix[begin - start : begin - start + len(weights), column] = weights
        matrix *= 2.0**-_BITS
        across = np.ascontiguousarray(matrix.T)
        groups.append(Taps(slice(first, first + len(members)), slice(start, end), matrix, across))
    return tuple(groups)


def _weights(before: int, after: int, place: int, curve: str) -> tuple[int, list[int]]:
    """The first input pixel of an output pixel, and whole weights from there on: they add up to about 2^22."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach, shape = CURVES[curve]
    centre = (place + 0.5) * scale
    first = max(int(centre - reach * stretch + 0.5), 0)
    end = min(int(centre + reach * stretch + 0.5), before)
    weights = [shape((x - centre + 0.5) * (1 / stretch)) for x in range(first, end)]
    total = functools.reduce(float.__add__, weights, 0.0)  # not sum(): newer Pythons round it better than C does
    return first, [int(math.copysign(0.5, w) + w / total * (1 << _BITS)) for w in weights]
