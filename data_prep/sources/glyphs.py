"""Letters rendered from fonts. Fonts that do not draw letters are recognised, and listed with the reason."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from data_prep.archives import Member, is_packed, members, read_bytes, unpacked
from data_prep.items import Item, Listing, Rejected, Unusable
from pipeline.config.schema_sources import GlyphSource
from pipeline.runtime.errors import UserError, did_you_mean

ENDINGS = (".ttf", ".otf", ".woff")
_FINE = 8  # letters are drawn this much larger, then averaged down: their edges are smooth at any size
_UNNAMED = re.compile(r"^(glyph|gid|cid|g|uni|u|index)[-_]?[0-9A-Fa-f]+$")  # names that say nothing of the picture


def listing(source: GlyphSource, directory: Path) -> Listing:
    """One item for each usable font, letter and scale. Fonts are copied beside the listing, so that it stands alone.

    Classes are the letters of the alphabet, sorted; a letter in all its scales of one font is a group, so that no
    letter is in both train and valid in two sizes.
    """
    letters = sorted(set(source.alphabet))
    rejected: list[Rejected] = []
    fonts = _found_fonts(source, directory, rejected)
    usable: list[str] = []
    (directory / "fonts").mkdir(exist_ok=True)
    for name, data in sorted(fonts.items()):
        path = directory / "fonts" / name
        path.write_bytes(data)
        try:
            check_font(path, letters)
            usable.append(name)
        except Unusable as why:
            path.unlink()
            rejected.append(Rejected(f"font {name}", why.kind, why.reason))
    if not usable:
        raise UserError(
            f"None of the {len(fonts)} fonts draws every letter of '{source.alphabet}'. First: {rejected[0]}"
        )
    items = (
        Item(
            f"{Path(font).stem}/{letter}/{scale:g}",
            ("glyph", f"fonts/{font}", letter, scale),
            label=label,
            group=f"{Path(font).stem}/{letter}",
            meta={"font": Path(font).stem},
        )
        for font in usable
        for label, letter in enumerate(letters)
        for scale in source.scales
    )
    return Listing(items, letters, rejected=rejected, made_from={"fonts": sorted(fonts), "usable": len(usable)})


def _found_fonts(source: GlyphSource, directory: Path, rejected: list[Rejected]) -> dict[str, bytes]:
    """File name -> bytes of every font, or of those that were chosen."""
    path = source.fonts if source.fonts else _matplotlib_fonts()
    if not path.exists():
        raise UserError(
            f"data.source.fonts: '{path}' does not exist. Give a folder, zip or tar of {', '.join(ENDINGS)} files."
        )
    plain = unpacked(path.resolve(), directory) if path.is_file() else path.resolve()
    found = _chosen(source, path, members(plain, root=directory, rejected=rejected), rejected)
    fonts = {name: read_bytes(member.at, directory) for name, member in found.items()}
    if plain.parent == directory:
        plain.unlink()  # the fonts are copied out of it
    return fonts


def look(source: GlyphSource, path: Path) -> None:
    """See that a folder, zip or plain tar has the fonts that are wanted, by their names."""
    if not is_packed(path):
        _chosen(source, path, members(path.resolve(), root=path.resolve(), rejected=[]), [])


def _chosen(source: GlyphSource, path: Path, found: Iterable[Member], rejected: list[Rejected]) -> dict[str, Member]:
    fonts: dict[str, Member] = {}
    for member in found:
        name = member.name.rsplit("/", 1)[-1]
        if name in fonts:
            rejected.append(Rejected(f"font {member.name}", "duplicate_key", "another font has the same name"))
        elif name.lower().endswith(ENDINGS):
            fonts[name] = member
    if not fonts:
        raise UserError(f"data.source.fonts: '{path}' holds no fonts. Expected files ending in {', '.join(ENDINGS)}.")
    stems = {Path(name).stem: name for name in fonts}
    for wanted in source.choose:
        if wanted not in stems:
            raise UserError(f"data.source.choose: no font '{wanted}' in '{path}'.{did_you_mean(wanted, stems)}")
    return {stems[stem]: fonts[stems[stem]] for stem in source.choose} if source.choose else fonts


def _matplotlib_fonts() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def check_font(path: Path, letters: list[str]) -> None:
    """Raise `Unusable` for a font that does not draw each of `letters` as itself.

    Placeholder fonts map several letters to one picture. Symbol fonts have glyphs at the letters' codes whose names
    are those of other things (cmex10 has 'parenrightbt' at A).
    """
    from fontTools import agl  # type: ignore[import-untyped]
    from fontTools.ttLib import TTFont, TTLibError  # type: ignore[import-untyped]

    try:
        _font(path, 16)
        font = TTFont(path, lazy=True)
        names = font.getBestCmap() or {}
    except (TTLibError, OSError, KeyError, AssertionError) as error:
        raise Unusable("unreadable_font", f"not a font: {error}") from error
    missing = [letter for letter in letters if ord(letter) not in names]
    if missing:
        raise Unusable(
            "missing_glyph", f"no glyph for {' '.join(missing[:8])} ({len(missing)} of {len(letters)} letters)"
        )
    glyphs = {letter: names[ord(letter)] for letter in letters}
    if len(letters) > 1 and len(set(glyphs.values())) == 1:
        raise Unusable("placeholder_font", f"draws '{glyphs[letters[0]]}' for every letter")
    for letter, name in glyphs.items():
        if not _UNNAMED.match(name) and agl.toUnicode(name) != letter:
            raise Unusable("symbol_font", f"draws '{name}' at '{letter}'")
    pictures = {_ink(path, letter, 64).tobytes() for letter in letters}
    if len(letters) > 1 and len(pictures) == 1:
        raise Unusable("placeholder_font", "draws the same picture for every letter")


@functools.lru_cache(maxsize=256)
def _font(path: Path, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)


def _ink(path: Path, letter: str, points: int) -> npt.NDArray[np.uint8]:
    """The letter's ink box, uint8 [h, w], 255 is ink. A letter without ink raises `Unusable`."""
    try:
        font = _font(path, points)
    except OSError as error:
        raise Unusable("unreadable_font", f"FreeType: {error}") from error
    left, top, right, bottom = font.getbbox(letter)
    canvas = Image.new("L", (int(right - left) + 2 * points, int(bottom - top) + 2 * points))
    ImageDraw.Draw(canvas).text((points - left, points - top), letter, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        raise Unusable("missing_glyph", f"nothing is drawn for '{letter}'")
    return np.asarray(canvas.crop(box))


def draw(path: Path, letter: str, *, scale: float, size: int) -> npt.NDArray[np.uint8]:
    """One letter, uint8 [size, size], 255 is ink: the longer side of its ink box is `scale * size` pixels, centred.

    Centred to 1/16 pixel: the letter is drawn eight times larger and averaged down.
    """
    wanted = max(round(scale * size * _FINE), 1)
    ink = _ink(path, letter, wanted)
    factor = wanted / max(ink.shape)
    height, width = (max(round(side * factor), 1) for side in ink.shape)
    large = Image.fromarray(_ink(path, letter, max(round(wanted * factor), 1))).resize(
        (width, height), Image.Resampling.BOX
    )
    canvas = Image.new("L", (size * _FINE, size * _FINE))
    canvas.paste(large, ((size * _FINE - width) // 2, (size * _FINE - height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
