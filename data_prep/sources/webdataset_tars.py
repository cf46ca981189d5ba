"""Tars that are in webdataset form already: an image and what belongs to it share their name up to the first dot."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from webdataset.tariterators import group_by_keys

from data_prep.archives import IMAGES, TARS, Member, members, read_bytes, unpacked
from data_prep.items import Item, Listing, Rejected, in_order
from pipeline.config.schema_sources import WebdatasetSource
from pipeline.runtime.errors import UserError

RULE = "A sample's members share their name up to the first dot, and follow one another in the tar"
_META = re.compile(r"__[^/]*__($|/|\.)")  # webdataset's own name for what is no sample
_USED = ("cls", "json", "txt")


def listing(source: WebdatasetSource, directory: Path) -> Listing:
    """Every sample that has an image. Labels: `.cls`, or `label` or `class` of `.json`; `.txt` is the caption."""
    found = tars(source, source.path)
    read = _Tars(source, directory, [(tar.name, unpacked(tar, directory)) for tar in found])
    classes = list(source.classes) or read.classes()
    return Listing(
        read.items(classes),
        classes,
        rejected=read.rejected,
        made_from={"tars": [tar.name for tar in found]},
        notes=read.notes,
        duplicate=f"another sample of the {len(found)} tars has the same key. {RULE}",
    )


def tars(source: WebdatasetSource, path: Path) -> list[Path]:
    """The tar, or those of a folder: plain ones first, then by name."""
    del source
    path = path.resolve()
    found = [p for p in path.iterdir() if p.name.lower().endswith(TARS)] if path.is_dir() else [path]
    if not found or not found[0].exists():
        raise UserError(f"data.source.path: no tars at '{path}'. Give a .tar, or a folder that holds some.")
    return sorted(found, key=lambda tar: (tar.suffix != ".tar", tar))


@dataclass
class _Tars:
    """The samples of some tars: (name for people, unpacked file)."""

    source: WebdatasetSource
    root: Path
    tars: list[tuple[str, Path]]
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def samples(self, rejected: list[Rejected]) -> Iterator[tuple[str, str, dict[str, Member]]]:
        """Tar, key, and members by ending in lower case, put together by webdataset's own reader."""
        for name, tar in self.tars:
            found = members(tar, root=self.root, rejected=rejected)
            files = ({"fname": m.name, "data": m, "__url__": name} for m in found if not _META.search(m.name))
            try:
                for sample in group_by_keys(files):
                    parts = {ending: member for ending, member in sample.items() if isinstance(member, Member)}
                    yield name, sample["__key__"], parts
            except ValueError as error:  # the one that it raises itself: one ending twice in a sample
                said = str(error.args[0]).partition(" dict_keys")[0]
                raise UserError(f"{name}: {said}. Give each image one of it. {RULE}.") from error

    def classes(self) -> list[str]:
        """The labels that occur: numbers by value, as many as the highest needs; or names, by letter."""
        found: dict[Any, str] = {}  # label -> where it was first
        for tar, key, parts in self.samples([]):
            label = self._label(tar, key, parts)[0]
            if label is not None:
                found.setdefault(label, f"{label!r} in {tar}, key '{key}'")
        numbers = [label for label in found if isinstance(label, int)]
        if len(numbers) == len(found):
            return [str(number) for number in range(max(numbers, default=-1) + 1)]
        if numbers:
            name = next(label for label in found if not isinstance(label, int))
            raise UserError(
                f"data.source.path: found the labels {found[numbers[0]]} and {found[name]}, expected numbers alone or "
                "names alone."
            )
        return in_order(found)

    def _label(self, tar: str, key: str, parts: dict[str, Member]) -> tuple[int | str | None, dict[str, Any]]:
        """Label (a number, a name or None) and what else belongs into the sample's json."""
        label, meta = None, {}
        if "json" in parts:
            try:
                value = json.loads(self._bytes(parts["json"]))
            except ValueError as error:
                raise _wrong(tar, key, f"no JSON in .json ({error})", "an object") from error
            if not isinstance(value, dict):
                raise _wrong(tar, key, f"{str(value)[:60]} in .json", "an object")
            label = _checked(tar, key, value.get("label", value.get("class")))
            meta = {name: value[name] for name in ("caption", "text") if name in value}
        if "cls" in parts:
            label = _checked(tar, key, self._bytes(parts["cls"]).decode("utf-8", "backslashreplace"))
        if "txt" in parts:
            meta["caption"] = self._bytes(parts["txt"]).decode("utf-8", "replace")
        return label, meta

    def _bytes(self, member: Member) -> bytes:
        return read_bytes(member.at, self.root)

    def items(self, classes: list[str]) -> Iterator[Item]:
        """Items of the samples, labels as places in `classes`; what is not used is noted."""
        number = {name: place for place, name in enumerate(classes)}
        unused: Counter[str] = Counter()
        for tar, key, parts in self.samples(self.rejected):
            ending = next((ending[1:] for ending in IMAGES if ending[1:] in parts), None)
            label, meta = self._label(tar, key, parts)
            if ending is None:
                kind = "sample_without_image" if label is None else "label_without_image"
                found = ", ".join(sorted(parts)[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
                self.rejected.append(Rejected(key, kind, f"{tar} has only {found} of it. {RULE}"))
                continue
            unused.update(set(parts) - {ending, *_USED})
            yield Item(key, parts[ending].at, label=self._place(tar, key, label, number), meta=meta)
        if unused:
            there = ", ".join(f"{ending} ({count})" for ending, count in unused.most_common(5))
            self.notes.append(f"not used of the samples: {there}")

    def _place(self, tar: str, key: str, label: int | str | None, number: dict[str, int]) -> int | None:
        """The label's place in the classes: given names may be told by number."""
        if label is None or isinstance(label, int):
            if label is not None and label >= len(number):
                raise _wrong(tar, key, f"label {label}", f"0 to {len(number) - 1}, or one of {list(number)[:8]}")
            return label
        if label not in number:
            raise _wrong(tar, key, f"label '{label}'", f"one of {list(number)[:8]} (data.source.classes)")
        return number[label]


def _wrong(tar: str, key: str, found: str, expected: str) -> UserError:
    return UserError(f"{tar}, key '{key}': found {found}, expected {expected}.")


def _checked(tar: str, key: str, value: Any) -> int | str | None:
    """A label as a number from 0 on or a name; -1 and null are none."""
    text = str(value).strip() if isinstance(value, str | float) else value
    if isinstance(text, str) and re.fullmatch(r"[+-]?[0-9]+(\.0*)?", text):
        text = int(text.partition(".")[0])
    if text is None or text == -1:
        return None
    if isinstance(text, int) and text >= 0:
        return int(text)
    if isinstance(text, str) and text and not isinstance(value, float):
        return text
    found = "an empty label" if text == "" else f"label {str(text)[:60]}"
    raise _wrong(tar, key, found, "a number from 0 on, a name, or -1 for none")
