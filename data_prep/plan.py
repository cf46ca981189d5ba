"""Which item goes into which split and which shard: pure functions of the listing and the protocol."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.items import Item, Rejected
from pipeline.config.schema_data import DataConfig, SplitRule
from pipeline.config.schema_sources import ALIASES
from pipeline.data.shards import shard_name
from pipeline.runtime.errors import UserError


@dataclass(frozen=True)
class ShardJob:
    """One shard to be made of the items with these numbers. It is the same whoever makes it."""

    split: str
    number: int
    items: tuple[int, ...]

    @property
    def name(self) -> str:
        """train/000012.tar"""
        return f"{self.split}/{shard_name(self.number)}"


@dataclass(frozen=True)
class Plan:
    """Item numbers of each split, in the listing's order, and who is left out by rule.

    `labels`: for each class that is kept, in order, its number in the listing; a label is a place in it.
    """

    splits: dict[str, npt.NDArray[np.uint32]]
    left_out: tuple[Rejected, ...]
    labels: tuple[int, ...]

    def jobs(self, images_per_shard: int) -> Iterator[ShardJob]:
        """Every shard of every split. Shard k holds listed items k * images_per_shard and on: it does not depend on
        which of them turn out to be unusable, so that shards are made independently.
        """
        for split, numbers in self.splits.items():
            for number, start in enumerate(range(0, len(numbers), images_per_shard)):
                yield ShardJob(split, number, tuple(numbers[start : start + images_per_shard].tolist()))


def make_plan(items: Iterable[Item], data: DataConfig, classes: Sequence[str]) -> Plan:
    """Divide the items as the protocol says. A split that would be empty is an error."""
    keys: list[str] = []
    official: list[str] = []
    places, labels = [], []
    for item in items:
        keys.append(item.key if data.split.min_per_class else "")
        official.append(sys.intern(_official(item)) if data.split.rule == "official" else "train")
        places.append(hash_place(item.group or item.key) if data.split.rule == "hash" else 0.0)
        labels.append(_label(item, classes))
    label_array = np.array(labels, dtype=np.int32)
    by_hash = data.split.rule == "hash"
    found = hash_splits(np.array(places), label_array, data.split) if by_hash else np.array(official)
    kept, left_out = _without_small_classes(label_array, keys, classes, least=data.split.min_per_class)
    counts = Counter(labels)
    large = tuple(label for label in range(len(classes)) if counts[label] >= data.split.min_per_class)
    names = {name: (name,) for name in sorted(set(found.tolist()))}
    merged = {name: data.split.merge[name] for name in sorted(data.split.merge)} or names
    splits = {name: np.flatnonzero(np.isin(found, parts) & kept).astype(np.uint32) for name, parts in merged.items()}
    _check_splits(data, {name: len(numbers) for name, numbers in splits.items()})
    return Plan({name: numbers for name, numbers in splits.items() if len(numbers)}, left_out, large)


def _label(item: Item, classes: Sequence[str]) -> int:
    """The item's class, or -1 for none."""
    if item.label is not None and item.label >= len(classes):
        raise UserError(
            f"data.source: '{item.key}' has label {item.label}, expected 0 to {len(classes) - 1}, as there are "
            f"{len(classes)} classes. Correct the label, or give every class a name in data.source.classes."
        )
    return -1 if item.label is None else max(item.label, -1)


def _official(item: Item) -> str:
    if item.split is None:
        raise UserError(
            f"data.split.rule=official, but the source does not say which split '{item.key}' is in. "
            "Use split.rule=hash, or for a folder set source.splits=true and keep images in train/, valid/, test/."
        )
    return ALIASES.get(item.split, item.split)


def hash_place(group: str) -> float:
    """A number in [0, 1) that only the group's name decides: the same on every machine."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64


def hash_splits(
    places: npt.NDArray[np.float64], labels: npt.NDArray[np.int32], rule: SplitRule
) -> npt.NDArray[np.str_]:
    """train, valid or test for each item. Places below `valid` are valid, the next `test` are test.

    With `by_class` the groups of each class are ranked by place, and the first of them taken: every class has its
    share, but an image that is added may move another.
    """
    ranks = places.copy()
    for label in np.unique(labels) if rule.by_class else ():
        members = labels == label
        groups, position = np.unique(places[members], return_inverse=True)
        ranks[members] = (position + 0.5) / len(groups)
    return np.where(ranks < rule.valid, "valid", np.where(ranks < rule.valid + rule.test, "test", "train"))


def _without_small_classes(
    labels: npt.NDArray[np.int32], keys: Sequence[str], classes: Sequence[str], *, least: int
) -> tuple[npt.NDArray[np.bool_], tuple[Rejected, ...]]:
    """Which items are in classes of at least `least` images, and the others with the reason."""
    if not least:
        return np.ones(len(labels), dtype=bool), ()
    counts = Counter(labels.tolist())
    kept = np.array([counts[label] >= least for label in labels.tolist()], dtype=bool)
    left_out = []
    for number in np.flatnonzero(~kept).tolist():
        label = int(labels[number])
        name = classes[label] if label >= 0 else "none"
        reason = f"class '{name}' has {counts[label]} images, split.min_per_class is {least}"
        left_out.append(Rejected(keys[number], "small_class", reason))
    return kept, tuple(left_out)


def _check_splits(data: DataConfig, counts: dict[str, int]) -> None:
    wanted = ["train"]
    if data.split.rule == "hash" and not data.split.merge:
        wanted += [name for name in ("valid", "test") if getattr(data.split, name) > 0]
    for name in wanted:
        if not counts.get(name):
            found = ", ".join(f"{k}: {v}" for k, v in counts.items()) or "none at all"
            raise UserError(
                f"data.split: no image is in '{name}' (found {found}). Expected at least one. "
                f"Set data.split.{name}=0 for a small data set, or check split.rule and split.merge."
            )
