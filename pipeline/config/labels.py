"""Whether images have what a network is conditioned on: known once they are listed, or from a look at their folder."""

import json
import os
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.config.schema_sources import FolderSource
from pipeline.runtime.files import read_json

_NAMES = {"class": "classes", "attributes": "attributes"}  # condition -> what a list of images calls it
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_LOOKED_AT = 100_000  # names in a folder: more are left to the stage that lists them


class _Found(NamedTuple):
    """What is known. `which` are the images, in words; `tables` files among them that may hold their labels."""

    labelled: bool
    which: str
    tables: list[str]


def label_problems(cfg: Config) -> Iterator[str]:
    """A sentence where the network is conditioned on classes or attributes, and the images are known to have none."""
    asked, source = cfg.model.condition, cfg.data.source
    found = None if asked == "none" else _listed(cfg) or _looked_at(cfg)
    if found is None or found.labelled:
        return
    where = getattr(source, "path", None) or f"'{cfg.data.name}'"
    lack = "have no labels" if asked == "class" else "have no attributes"
    said = f"model.condition: found {asked}, but {found.which} of {where} {lack}. "
    said += f"Set model.condition=none{_with_it(cfg)}"
    if not isinstance(source, FolderSource):
        yield f"{said}."
        return
    if asked == "class":
        said += ", or put each class of images in a folder of its own"
    said += ", or name a table: data.source.table=FILE."
    if found.tables and source.table is None:
        said += f" {found.tables[0]} looks like one: data.source.table={shlex.quote(found.tables[0])}"
    yield said


def _with_it(cfg: Config) -> str:
    """What else a network without condition needs: nothing to guide away from."""
    guidance = cfg.sample.sampler.guidance
    if guidance.kind != "classifier_free" or not guidance.active:
        return ""
    return f" with sample.sampler.guidance.scale={guidance.off}"


def _listed(cfg: Config) -> _Found | None:
    """From the list of images; None before there is one."""
    place = data_directory(cfg) / "source"
    if not (place / "receipt.json").is_file():
        return None
    known, count = read_json(place / "source.json"), read_json(place / "receipt.json")["items"]
    labelled = bool(known[_NAMES[cfg.model.condition]])
    return _Found(labelled, f"the {count} images", [] if labelled else _passed_over(place / "rejected.jsonl"))


def _passed_over(path: Path) -> list[str]:
    with path.open() as rows:
        return [name for row in rows if _is_table(name := json.loads(row)["key"])]


def _looked_at(cfg: Config) -> _Found | None:
    """From a folder that is not listed yet: one that holds no folder has no classes. None where that says nothing."""
    source = cfg.data.source
    if not isinstance(source, FolderSource) or source.table or not source.path.is_dir():
        return None
    with os.scandir(source.path) as entries:
        names = {entry.name: entry.is_dir() for entry in islice(entries, _LOOKED_AT + 1)}
    if cfg.model.condition != "class" or any(names.values()) or not 0 < len(names) <= _LOOKED_AT:
        return None
    return _Found(False, "the images", sorted(filter(_is_table, names)))


def _is_table(name: str) -> bool:
    return name.lower().endswith(_TABLES) and not name.startswith(".")
