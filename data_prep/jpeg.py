"""Plain colour JPEGs straight to arrays, without Pillow's reading of their headers. Same library, same pixels."""

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

_EXIF = b"Exif\0\0"  # where a rotation would stand
_APP1, _SCAN = 0xE1, 0xDA


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
