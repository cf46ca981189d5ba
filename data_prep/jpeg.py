"""Plain colour JPEGs straight to arrays, without Pillow's reading of their headers. Same library, same pixels."""

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

_EXIF, _LOOK = b"Exif\0\0", 1 << 16  # where a rotation would stand: in one of the first segments


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a colour JPEG that nothing has to be done to but decoding; None for anything else."""
    if data[:2] != b"\xff\xd8" or data.find(_EXIF, 0, _LOOK) >= 0:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    too_large = (
        Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS
    )  # Pillow warns or refuses
    return None if too_large or colours not in ("YCbCr", "RGB") else (width, height)


def decode_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """uint8 [H, W, 3], as Pillow decodes it: both call libjpeg-turbo.

    None where the decoder has anything to complain about: Pillow then repairs, or says what is wrong.
    """
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None
    return pixels
