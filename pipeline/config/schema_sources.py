"""Settings of the sources of images: one class a source family."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Settings


class GlyphSource(Settings):
    """Letters rendered from fonts, centred by their ink box. Labels are letters; the font stands in the sample's json."""

    kind: Literal["glyphs"]
    fonts: Path | None = None  # a folder or tar of fonts; None: the ones that matplotlib ships
    choose: tuple[str, ...] = ()  # names of font files, without their ending, that are used; (): every usable one
    alphabet: str = Field("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_length=1)
    scales: tuple[float, ...] = (0.6, 0.75, 0.9)  # longer side of the ink box as a share of the image
    ink: int = Field(255, ge=0, le=255)
    paper: int = Field(0, ge=0, le=255)


class FolderSource(Settings):
    """A person's own images: one folder per class, or flat, or with a table of labels."""

    kind: Literal["folder"]
    path: Path
    labels: Literal["auto", "folders", "none"] = "auto"  # auto: folders where every image lies in one, else none
    splits: bool = False  # the folders at the top are splits (train/, valid/, test/), for split.rule=official


Source = Annotated[GlyphSource | FolderSource, Field(discriminator="kind")]

GENERIC = ("glyphs", "folder")  # sources that only their path tells apart
