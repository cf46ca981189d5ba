"""Settings of a data protocol: where the images come from and what is done to them until they are shards."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Settings


class GlyphSource(Settings):
    """Letters rendered from TrueType fonts, centred by their ink box. Labels are letters; the font is an attribute."""

    kind: Literal["glyphs"]
    fonts: Path | None = None  # a folder or tar of fonts; None: the ones that matplotlib ships
    alphabet: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    scales: tuple[float, ...] = (0.6, 0.75, 0.9)  # height of the ink box as a share of the image


class FolderSource(Settings):
    """A person's own images: one folder per class, or flat."""

    kind: Literal["folder"]
    path: Path
    labels: Literal["auto", "folders", "none"] = "auto"


Source = Annotated[GlyphSource | FolderSource, Field(discriminator="kind")]


class SplitRule(Settings):
    """How images are divided; `valid` and `test` are shares chosen by a hash of the image's key."""

    valid: float = Field(0.1, ge=0, lt=1)


class DataConfig(Settings):
    """One protocol. Its name and hash travel with every number made from it."""

    name: str
    source: Source
    image_size: int = Field(ge=4)
    channels: Literal[1, 3] = 3
    encoding: Literal["raw", "png", "jpeg"] = "png"
    split: SplitRule = SplitRule()
    images_per_shard: int = Field(4096, ge=1)
    max_rejected: float = Field(0.05, ge=0, le=1)  # a larger share of unusable images is an error
