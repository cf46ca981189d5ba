"""What a source consists of, before any pixel is read: its images, and what is not used and why.

A listing is kept on the disk, so that memory stays flat.

`items.jsonl` has one line an item, in the source's order; `items.npy` the byte where each line starts; `source.json`
what all items have in common; `rejected.jsonl` what was already found unusable.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.runtime.files import read_json, write_json

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


class Unusable(Exception):
    """One image cannot be used, for a reason of `KINDS`. Caught where images are read, and listed."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Item:
    """One image of a source.

    `key`: unique within the source, a person's way to find the image. `at`: where its bytes are, see `archives`.
    `label`: class position. `group`: images of one group always come into the same split; "" is the key itself.
    """

    key: str
    at: tuple[Any, ...]
    label: int | None = None
    split: str | None = None
    group: str = ""
    attributes: tuple[int, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """One image that is not used: `kind` is one of `KINDS`, `reason` says it in words."""

    key: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a source found. `items` may be an iterator, used once; `rejected` and `notes` may grow while it runs.

    `root`: the folder that relative file names start from; None where they lie beside the listing. `notes`: sentences
    for the console, about what was decided by rule. `duplicate`: the reason to reject a key that comes twice.
    """

    items: Iterable[Item]
    classes: Sequence[str] = ()
    attributes: Sequence[str] = ()
    root: Path | None = None
    rejected: list[Rejected] = field(default_factory=list)
    made_from: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    duplicate: str = "another image has the same key"


@dataclass(frozen=True)
class Written:
    """A listing that was written: number of items, their hash, and how many have each label and each split."""

    items: int
    sha256: str
    labels: Counter[int | None]
    splits: Counter[str]


def in_order(classes: Iterable[str]) -> list[str]:
    """Names of classes, each once: numbers by value, then words by letter. Folders within folders part by part."""

    def key(name: str) -> list[tuple[int, float, str]]:
        parts = name.split("/")
        return [(0, float(part), part) if _NUMBER.fullmatch(part) else (1, 0.0, part) for part in parts]

    return sorted(set(classes), key=key)


class Items:
    """The items of a finished listing. Lines are read when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        common = read_json(directory / "source.json")
        self.classes: list[str] = common["classes"]
        self.attributes: list[str] = common["attributes"]
        self.root = Path(common["root"]) if common["root"] else directory
        self._starts: npt.NDArray[np.uint64] = np.load(directory / "items.npy")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[Item]:
        with (self.directory / "items.jsonl").open("rb") as file:
            yield from map(_parsed, file)

    def take(self, numbers: Iterable[int]) -> Iterator[Item]:
        """The items of these numbers, in the order asked."""
        with (self.directory / "items.jsonl").open("rb") as file:
            for number in numbers:
                start, end = int(self._starts[number]), int(self._starts[number + 1])
                file.seek(start)
                yield _parsed(file.read(end - start))


def _parsed(line: bytes) -> Item:
    value = json.loads(line.decode())
    value["at"], value["attributes"] = tuple(value["at"]), tuple(value.get("attributes", ()))
    return Item(**value)


_EMPTY: tuple[Any, ...] = (None, "", (), {})
_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _lines(item: Item) -> tuple[bytes, bytes]:
    """An item in JSON with sorted keys, which "at" is the first of, and the same without it."""
    rest = _json({name: part for name, part in vars(item).items() if name != "at" and part not in _EMPTY})
    return f'{{"at":{_json(item.at)},{rest[1:]}\n'.encode(), f"{rest}\n".encode()


def write_items(directory: Path, listing: Listing) -> Written:
    """Write a listing into a directory that is being made.

    The hash is of what the items are, less where their bytes lie: it is the same wherever a data set is unpacked. A
    key that comes twice is kept once, the first time; the others are rejected, with the reason.
    """
    starts, position, keys, digest = [0], 0, set[bytes](), hashlib.sha256()
    labels, splits = Counter[int | None](), Counter[str]()
    with (directory / "items.jsonl").open("wb") as file:
        for item in listing.items:
            # Digests of one length, not the keys: three million keys are a gigabyte. 16 bytes collide by chance with
            # probability 1e-26 among them, and alike in every process; Python's hash() does neither.
            known = hashlib.blake2b(item.key.encode(), digest_size=16).digest()
            if known in keys:
                listing.rejected.append(Rejected(item.key, "duplicate_key", listing.duplicate))
                continue
            keys.add(known)
            line, identity = _lines(item)
            position += file.write(line)
            digest.update(identity)
            starts.append(position)
            labels[item.label] += 1
            splits[item.split or ""] += 1
    np.save(directory / "items.npy", np.array(starts, dtype=np.uint64))
    write_json(
        directory / "source.json",
        {
            "classes": list(listing.classes),
            "attributes": list(listing.attributes),
            "root": str(listing.root) if listing.root and listing.root.resolve() != directory.resolve() else "",
        },
    )
    write_rejected(directory / "rejected.jsonl", listing.rejected)
    return Written(len(starts) - 1, digest.hexdigest(), labels, splits)


def write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """One JSON line an image, in the order given."""
    with path.open("w") as file:
        file.writelines(json.dumps(asdict(row), sort_keys=True) + "\n" for row in rejected)


def read_rejected(path: Path) -> list[Rejected]:
    """The rows that `write_rejected` wrote."""
    with path.open() as file:
        return [Rejected(**json.loads(line)) for line in file]
