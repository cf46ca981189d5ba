"""Every reason for which an image is not used, or is used only after a conversion. Nothing is dropped without one."""

KINDS = {
    "unreadable": "the bytes are not an image that Pillow knows, or are damaged",
    "truncated": "the file ends before the image does",
    "empty": "the file has no bytes",
    "too_small": "a side is shorter than the protocol needs",
    "too_large": "more pixels than Pillow decodes without fear of a decompression bomb",
    "greyscale": "greyscale where colour is asked for, and convert.greyscale=reject",
    "colour": "colour where greyscale is asked for, and convert.colour=reject",
    "alpha": "it has transparency, and convert.alpha=reject",
    "cmyk": "it is CMYK, and convert.cmyk=reject",
    "sixteen_bit": "it has more than 8 bits a channel, and convert.sixteen_bit=reject",
    "exif_rotation": "its EXIF data says it is rotated, and convert.exif_rotation=reject",
    "duplicate_key": "another image has the same key",
    "label_without_image": "the labels name an image that is not there",
    "image_without_label": "the image is not in the labels",
    "small_class": "its class has fewer images than split.min_per_class",
    "symbol_font": "the font draws symbols where letters are asked for",
    "placeholder_font": "the font draws one picture for every character",
    "missing_glyph": "the font has no picture for a letter of the alphabet",
    "unreadable_font": "FreeType cannot read the font",
}

BY_PROTOCOL = {"small_class", "symbol_font", "placeholder_font", "missing_glyph"}
"""Left out because the protocol says so: these do not count towards `max_rejected`."""


class Unusable(Exception):
    """One image cannot be used. Caught where images are read, and listed."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
