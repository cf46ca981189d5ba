"""Which item goes into which split and which shard: pure functions of the listing and the protocol."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.items import Item, Rejected
from pipeline.config.schema_data import DataConfig, SplitRule
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
    """Item numbers of each split, in the listing's order, and who is left out by rule."""

    splits: dict[str, npt.NDArray[np.uint32]]
    left_out: tuple[Rejected, ...]

    def jobs(self, images_per_shard: int) -> Iterator[ShardJob]:
        """Every shard of every split. Shard k holds listed items k * images_per_shard and on: it does not depend on
        which of them turn out to be unusable, so that shards are made independently.
        """
        for split, numbers in self.splits.items():
            for number, start in enumerate(range(0, len(numbers), images_per_shard)):
                yield ShardJob(split, number, tuple(numbers[start : start + images_per_shard].tolist()))


def make_plan(items: Iterable[Item], data: DataConfig, classes: Sequence[str]) -> Plan:
    """Divide the items as the protocol says. A split that would be empty is an error."""
    merged = {old: new for new, parts in data.split.merge.items() for old in parts}
    names: list[str] = []
    codes, labels, keys = [], [], []  # of small integers: a list of a million takes little
    for item in items:
        found = split_of(item, data.split)
        name = merged.get(found, "" if data.split.merge else found)
        if name not in names:
            names.append(name)
        codes.append(names.index(name))
        labels.append(-1 if item.label is None else item.label)
        keys.append(item.key if data.split.min_per_class else "")
    split_codes, label_array = np.array(codes, dtype=np.int16), np.array(labels, dtype=np.int32)
    kept, left_out = _without_small_classes(label_array, keys, classes, least=data.split.min_per_class)
    splits = {
        name: np.flatnonzero((split_codes == names.index(name)) & kept).astype(np.uint32)
        for name in sorted(n for n in names if n)
    }
    _check_splits(data, {name: len(numbers) for name, numbers in splits.items()})
    return Plan(splits, left_out)


def split_of(item: Item, rule: SplitRule) -> str:
    """train, valid or test by hash, the source's own split, or train for all. Pure: the same on every machine."""
    if rule.rule == "all":
        return "train"
    if rule.rule == "official":
        if item.split is None:
            raise UserError(
                f"data.split.rule=official, but the source does not say which split '{item.key}' is in. "
                "Use split.rule=hash, or for a folder set source.splits=true and keep images in train/, valid/, test/."
            )
        return item.split
    place = int.from_bytes(hashlib.sha256((item.group or item.key).encode()).digest()[:8], "big") / 2**64
    if place < rule.valid:
        return "valid"
    return "test" if place < rule.valid + rule.test else "train"


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
