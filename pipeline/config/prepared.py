"""What preparing a data set found and did not use: it explains numbers that nothing else explains."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.runtime.files import read_json

KINDS = {  # every reason for which a file is not used: nothing is dropped without one
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
    "not_a_file": "a pipe, a socket, a device, or a link that leads nowhere",
    "hidden": "hidden, or written by an operating system (.DS_Store, __MACOSX, Thumbs.db)",
    "other_ending": "its name does not end like an image's",
    "repeated_folder": "a link to a folder that is listed already",
    "sample_without_image": "a sample of a tar with neither image nor label",
    "small_class": "its class has fewer images than split.min_per_class",
    "not_listed": "the list of split.keep does not name it",
    "not_in_subset": "split.subset leaves it out",
    "symbol_font": "the font draws symbols where letters are asked for",
    "placeholder_font": "the font draws one picture for every character",
    "missing_glyph": "the font has no picture for a letter of the alphabet",
    "unreadable_font": "FreeType cannot read the font",
}
BY_RULE = {  # left out because a rule says so: these do not count towards `max_rejected`
    *("hidden", "other_ending", "repeated_folder", "sample_without_image"),
    *("small_class", "not_listed", "not_in_subset", "symbol_font", "placeholder_font", "missing_glyph"),
}


def prepared_notes(cfg: Config) -> list[str]:
    """Sentences for the console: classes without images, and what was passed over though no rule leaves it out.

    [] before the data is prepared.
    """
    data = data_directory(cfg)
    listed, made = (_read(data / stage / "receipt.json") for stage in ("source", "shards"))
    train = _read(data / "shards" / "train" / "manifest.json")
    counts = zip(train.get("classes", ()), train.get("class_counts", ()), strict=True)
    found = [classes_without_images(counts, "train")]
    rejected = made.get("rejected") or listed.get("rejected") or {}
    if told := {kind: count for kind, count in rejected.items() if kind not in BY_RULE}:
        kinds = ", ".join(f"{count} x {kind} ({KINDS.get(kind, kind)})" for kind, count in told.items())
        place = "shards" if made.get("rejected") else "source"
        found.append(f"passed over {kinds}; all are listed in {data / place / 'rejected.jsonl'}")
    return [said for said in found if said]


def classes_without_images(counts: Iterable[tuple[str, int]], split: str = "") -> str:
    """A sentence, or "" where every class has an image. Nothing is learned of such a class."""
    counts = list(counts)
    empty = [name for name, count in counts if not count]
    if not empty:
        return ""
    names = (", such as " if len(empty) > 3 else ": ") + ", ".join(empty[:3])
    return f"{len(empty)} of {len(counts)} classes have no image{split and f' in {split}'}{names}"


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}
