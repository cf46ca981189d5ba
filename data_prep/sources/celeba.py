"""CelebA: aligned faces with 40 attributes and an official partition (Liu et al. 2015)."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.archives import choose, images, unpacked
from data_prep.items import Item, Listing, Rejected
from pipeline.config.schema_sources import CelebaSource
from pipeline.runtime.errors import Incomplete

SPLITS = {"0": "train", "1": "valid", "2": "test"}
Table = dict[str, tuple[int, ...]]


def listing(source: CelebaSource, directory: Path, folder: Path) -> Listing:
    """Images of `folder` by name, with attributes as 0 and 1. What is in one list only is rejected.

    The official files, or Kaggle's: csv tables, and the images in a folder of their own name.
    """
    packed, attributes, partition = files(source, folder)
    names, table = read_attributes(attributes)
    splits = _read_partition(partition) if partition else {}
    rejected: list[Rejected] = []
    packed = unpacked(packed, directory) if packed.is_file() else packed
    root = directory if packed.is_relative_to(directory) else folder
    return Listing(
        _items(packed, root, table, splits, rejected),
        attributes=names,
        root=None if root == directory else root,
        rejected=rejected,
        made_from={"images": packed.name, "attributes": len(table), "partition": len(splits)},
    )


def files(source: CelebaSource, folder: Path) -> tuple[Path, Path, Path | None]:
    """Images, attributes and the partition, where there is one."""
    packed = choose(folder, _names(source.images, "img_align_celeba.zip", "img_align_celeba"), what="images")
    names = _names(source.attributes, "list_attr_celeba.txt", "list_attr_celeba.csv")
    partitions = _names(source.partition, "list_eval_partition.txt", "list_eval_partition.csv")
    partition = next((folder / name for name in partitions if source.partition or (folder / name).exists()), None)
    return packed, choose(folder, names, what="attributes"), partition


def _names(chosen: str | None, *official: str) -> tuple[str, ...]:
    return (chosen,) if chosen else official


def _items(packed: Path, root: Path, table: Table, splits: dict[str, str], rejected: list[Rejected]) -> Iterator[Item]:
    missing = set(table)
    for member in images(packed, root=root, rejected=rejected):
        name = member.name.rsplit("/", 1)[-1]
        if name not in table:
            rejected.append(Rejected(name, "image_without_label", "not in the list of attributes"))
            continue
        missing.discard(name)
        yield Item(name, member.at, split=splits.get(name), attributes=table[name])
    rejected += [Rejected(name, "label_without_image", f"not in {packed.name}") for name in sorted(missing)]


def read_attributes(path: Path) -> tuple[list[str], Table]:
    """The 40 names, and per image 0 or 1 for each. Official txt (count, names, rows of -1 and 1) or the same as csv."""
    rows = _rows(path)
    heads = 1 if path.suffix == ".csv" else 2
    if len(rows) <= heads:
        raise Incomplete(f"{path} is empty. It is CelebA's list of attributes: get it again.")
    names = rows[0][1][1:] if heads == 1 else rows[1][1]
    table: Table = {}
    for line, row in rows[heads:]:
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"-1", "1", "0"}:
            raise Incomplete(f"{path}, line {line}: found {len(row) - 1} values, expected {len(names)} of -1 and 1.")
        table[row[0]] = tuple(int(value == "1") for value in row[1:])
    return names, table


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and values of each line that is not empty."""
    lines = enumerate(path.read_text("utf-8-sig").split("\n"), start=1)
    return [(number, line.replace(",", " ").split()) for number, line in lines if line.strip()]


def _read_partition(path: Path) -> dict[str, str]:
    if not path.exists():
        raise Incomplete(
            f"{path} does not exist. It is CelebA's official partition: train, valid or test of each image."
        )
    splits: dict[str, str] = {}
    for line, row in _rows(path)[1 if path.suffix == ".csv" else 0 :]:
        if len(row) != 2 or row[1] not in SPLITS:
            raise Incomplete(f"{path}, line {line}: found {' '.join(row)[:60]}, expected an image and 0, 1 or 2.")
        splits[row[0]] = SPLITS[row[1]]
    return splits
