"""CelebA: aligned faces with 40 attributes and an official partition (Liu et al. 2015)."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.archives import choose, members, unpacked
from data_prep.items import Item, Listing, Rejected
from pipeline.config.schema_sources import CelebaSource
from pipeline.runtime.errors import Incomplete

SPLITS = {"0": "train", "1": "valid", "2": "test"}
Table = dict[str, tuple[int, ...]]


def listing(source: CelebaSource, directory: Path, folder: Path) -> Listing:
    """Images of `folder` by name, with attributes as 0 and 1. What is in one list only is rejected."""
    images = choose(folder, _names(source.images, "img_align_celeba.zip", "img_align_celeba"), what="images")
    names, table = read_attributes(
        choose(folder, _names(source.attributes, "list_attr_celeba.txt", "list_attr_celeba.csv"), what="attributes")
    )
    partition = folder / (source.partition or "list_eval_partition.txt")
    splits = _read_partition(partition) if source.partition or partition.exists() else {}
    rejected: list[Rejected] = []
    images = unpacked(images, directory) if images.is_file() else images
    root = directory if images.is_relative_to(directory) else folder
    return Listing(
        _items(images, root, table, splits, rejected),
        attributes=names,
        root=None if root == directory else root,
        rejected=rejected,
        made_from={"images": images.name, "attributes": len(table), "partition": len(splits)},
    )


def _names(chosen: str | None, *official: str) -> tuple[str, ...]:
    return (chosen,) if chosen else official


def _items(images: Path, root: Path, table: Table, splits: dict[str, str], rejected: list[Rejected]) -> Iterator[Item]:
    missing = set(table)
    for member in members(images, root=root):
        name = member.name.rsplit("/", 1)[-1]
        if not member.is_image:
            continue
        if name not in table:
            rejected.append(Rejected(name, "image_without_label", "not in the list of attributes"))
            continue
        missing.discard(name)
        yield Item(name, member.at, split=splits.get(name), attributes=table[name])
    rejected += [Rejected(name, "label_without_image", f"not in {images.name}") for name in sorted(missing)]


def read_attributes(path: Path) -> tuple[list[str], Table]:
    """The 40 names, and per image 0 or 1 for each. Official txt (count, names, rows of -1 and 1) or the same as csv."""
    rows = [line.replace(",", " ").split() for line in path.read_text().splitlines() if line.strip()]
    if not rows or len(rows) < 2:
        raise Incomplete(f"{path} is empty. It is CelebA's list of attributes: get it again.")
    names = rows[0][1:] if path.suffix == ".csv" else rows[1]
    table: Table = {}
    for number, row in enumerate(rows[1 if path.suffix == ".csv" else 2 :], start=3):
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"-1", "1", "0"}:
            raise Incomplete(f"{path}, line {number}: {len(row) - 1} values, expected {len(names)} of -1 and 1.")
        table[row[0]] = tuple(int(value == "1") for value in row[1:])
    return names, table


def _read_partition(path: Path) -> dict[str, str]:
    if not path.exists():
        raise Incomplete(
            f"{path} does not exist. It is CelebA's official partition: train, valid or test of each image."
        )
    rows = [line.replace(",", " ").split() for line in path.read_text().splitlines() if line.strip()]
    return {row[0]: SPLITS[row[1]] for row in rows if len(row) == 2 and row[1] in SPLITS}
