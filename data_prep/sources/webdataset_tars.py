"""Tars that are in webdataset form already: an image and what belongs to it share their name up to the first dot."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from webdataset.tariterators import group_by_keys

from data_prep.archives import IMAGES, Member, members, unpacked
from data_prep.items import Item, Listing, Rejected
from data_prep.load import read_bytes
from pipeline.config.schema_sources import WebdatasetSource
from pipeline.runtime.errors import UserError


def listing(source: WebdatasetSource, directory: Path) -> Listing:
    """Every sample that has an image. Labels: `.cls`, or `label` or `class` of `.json`; `.txt` is the caption."""
    path = source.path.resolve()
    tars = sorted(path.glob("*.tar")) + sorted(path.glob("*.tar.gz")) if path.is_dir() else [path]
    if not tars or not tars[0].exists():
        raise UserError(f"data.source.path: no tars at '{path}'. Give a .tar, or a folder that holds some.")
    plain = [unpacked(tar, directory) for tar in tars]
    rejected: list[Rejected] = []
    classes = list(source.classes) or _classes(plain, directory)
    items = (item for tar in plain for item in _items(tar, directory, classes, rejected=rejected))
    return Listing(items, classes, rejected=rejected, made_from={"tars": [tar.name for tar in tars]})


def _samples(tar: Path, root: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key -> members by ending, lower case, in the order of the tar, put together by webdataset's own reader.

    What it passes over has no key: names without an ending, and names that begin with a dot.
    """
    files = ({"fname": member.name, "data": member, "__url__": str(tar)} for member in members(tar, root=root))
    try:
        for sample in group_by_keys(files):
            parts = {ending: member for ending, member in sample.items() if isinstance(member, Member)}
            yield sample["__key__"], parts
    except ValueError as error:  # the one that it raises itself: one ending twice in a sample
        raise UserError(
            f"{tar}: {str(error.args[0]).partition(' dict_keys')[0]}. Give each image one of it."
        ) from error


def _classes(tars: list[Path], root: Path) -> list[str]:
    """The labels that occur, sorted: numbers by value, and as many as the highest needs; names by letter."""
    found = {label for tar in tars for _, parts in _samples(tar, root) if (label := _label(parts, root)[0]) is not None}
    if all(isinstance(label, int) for label in found):
        return [str(number) for number in range(max(found, default=-1) + 1)]
    return sorted(map(str, found))


def _label(parts: dict[str, Member], root: Path) -> tuple[Any, dict[str, Any]]:
    """Label (a number, a name or None) and what else belongs into the sample's json."""
    label, meta = None, {}
    if "json" in parts:
        value = json.loads(read_bytes(parts["json"].at, root))
        label = value.get("label", value.get("class"))
        meta = {key: value[key] for key in ("caption", "text") if key in value}
    if "cls" in parts:
        label = int(read_bytes(parts["cls"].at, root))
    if "txt" in parts:
        meta["caption"] = read_bytes(parts["txt"].at, root).decode("utf-8", "replace")
    return label, meta


def _items(tar: Path, root: Path, classes: list[str], *, rejected: list[Rejected]) -> Iterator[Item]:
    for key, parts in _samples(tar, root):
        image = next((parts[ending[1:]] for ending in IMAGES if ending[1:] in parts), None)
        label, meta = _label(parts, root)
        if image is None:
            rejected.append(
                Rejected(key, "label_without_image", f"{tar.name} has only {', '.join(sorted(parts))} of it")
            )
            continue
        position = label if isinstance(label, int) or label is None else classes.index(str(label))
        yield Item(key, image.at, label=position, meta=meta)
