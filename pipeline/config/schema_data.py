"""Settings of a data protocol: where the images come from and what is done to them until they are shards.

`schema_sources` has the sources. Everything here decides pixels, or which images there are, unless its comment says
otherwise. The functions tell what the data will have before any image has been read; None: not known yet.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Settings
from pipeline.config.registry import SOURCES
from pipeline.config.schema_sources import FolderSource, Source
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import content_hash

LOCAL = ("path", "urls", "images", "attributes", "partition")  # where a known data set lies, and under which names
Rule = Literal["convert", "reject"]


class CropSettings(Settings):
    """How an image of any size becomes a square.

    centre: the middle `size` x `size` pixels (None: the largest square), then resized; squash: the whole image, its
    aspect distorted; pad: never resized, black around it, cut where larger.
    """

    kind: Literal["centre", "squash", "pad"] = "centre"
    size: int | None = Field(None, ge=1)
    filter: Literal["lanczos", "bicubic", "bilinear", "hamming", "box", "bilinear_point"] = (
        "lanczos"  # see data_prep.crop
    )
    shrink_on_load: bool = False  # decode JPEGs at 1/2, 1/4 or 1/8 size where that stays at least twice the result
    min_side: int | None = Field(None, ge=1)  # a shorter image is rejected; None: the crop, or the result's size


class ConversionRules(Settings):
    """What is done with images that are not plain 8-bit RGB or greyscale. What was converted is counted."""

    greyscale: Rule = "convert"  # where colour is asked for: the three channels are equal
    colour: Rule = "convert"  # where greyscale is asked for: ITU-R 601 luma
    alpha: Rule = "convert"  # laid over `background`
    cmyk: Rule = "convert"
    sixteen_bit: Rule = "convert"  # to the nearest of 256 levels
    exif_rotation: Literal["convert", "reject", "ignore"] = "convert"
    background: int = Field(255, ge=0, le=255)


class SplitRule(Settings):
    """How images are divided.

    hash: `valid` and `test` are shares, chosen by a hash of the image's group (its key, unless the source groups
    images that belong together); official: as the source says; all: everything is train. `merge` then joins splits:
    {train: [train, valid]}.
    """

    rule: Literal["hash", "official", "all"] = "hash"
    valid: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.0, ge=0, lt=1)
    by_class: bool = False  # hash: every class gives its share, chosen by rank of the hash within the class
    merge: dict[str, tuple[str, ...]] = {}
    keep: Path | None = None  # a text file: keys of the images that are used, one a line; all others are left out
    # So many of them, or this share (0.05), are used: chosen by a hash of the image's group, before they are divided.
    subset: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # A smaller one is in a larger
    )
    min_per_class: int = Field(0, ge=0)  # classes with fewer images (of all splits, of those kept) are left out

    @property
    def least(self) -> int:
        """Images that a class needs. A class of which a list or a subset keeps nothing is none."""
        return max(self.min_per_class, int(self.keep is not None or self.subset is not None))

    def kept_keys(self) -> frozenset[str] | None:
        """The keys of `keep`; None: all images are used.

        Raises:
            UserError: where the file is not there, or is empty.
        """
        if self.keep is None:
            return None
        if not self.keep.is_file():
            raise UserError(
                f"data.split.keep: found no file '{self.keep}' (looked at {self.keep.resolve()}), expected a text file "
                "with the keys of the images to use, one a line."
            )
        keys = frozenset(line.strip() for line in self.keep.read_text().splitlines() if line.strip())
        if not keys:
            raise UserError(f"data.split.keep: {self.keep} names no image. Write a key on each line, or leave it out.")
        return keys


class DataConfig(Settings):
    """One protocol. Its name and hash travel with every number made from it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    source: Source
    image_size: int = Field(ge=4)
    channels: Literal[1, 3] = 3
    crop: CropSettings = CropSettings()
    convert: ConversionRules = ConversionRules()
    encoding: Literal["raw", "png", "jpeg"] = "png"
    quality: int = Field(95, ge=1, le=100)  # jpeg alone
    split: SplitRule = SplitRule()
    counts: dict[str, int] | None = None  # images that each split must have; another number is an error
    images_per_shard: int = Field(4096, ge=1)
    max_rejected: float = Field(0.05, ge=0, le=1)  # a larger share of unusable images is an error

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.split.valid + self.split.test >= 1:
            raise ValueError(f"split.valid + split.test is {self.split.valid + self.split.test}, expected less than 1")
        if getattr(self.source, "splits", None) is True and self.split.rule == "hash":
            raise ValueError("found source.splits=true with split.rule=hash, expected split.rule=official")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the pixels: everything, less where a known data set lies on this machine and the tolerance."""
        values = self.model_dump(mode="json", exclude={"max_rejected": True, "split": {"keep"}})
        if (keys := self.split.kept_keys()) is not None:
            values["split"]["keep"] = content_hash(sorted(keys))
        if self.split.subset is None:
            del values["split"]["subset"]  # the names of whole data sets are what they were
        if isinstance(self.source, FolderSource):
            values["source"]["splits"] = bool(self.source.splits)  # what None refuses has no pixels
        if SOURCES[self.source.kind].official:
            values["source"] = {k: v for k, v in values["source"].items() if k not in LOCAL}
        return values


def class_count(data: DataConfig) -> int | None:
    """How many classes the data will have."""
    return None if data.split.least else data.source.class_count()


def attribute_names(data: DataConfig) -> tuple[str, ...] | None:
    """Which attributes the data will have."""
    return data.source.attribute_names()


def split_names(data: DataConfig) -> tuple[str, ...] | None:
    """Which splits the data will have."""
    rule, official = data.split, data.source.official_splits()
    shares = {"train": 1.0, "valid": rule.valid, "test": rule.test}
    by_hash = tuple(name for name, share in shares.items() if share)
    made = {"all": ("train",), "hash": by_hash, "official": official}[rule.rule]
    if not rule.merge:
        return made
    return tuple(name for name, parts in rule.merge.items() if made is None or any(part in made for part in parts))
