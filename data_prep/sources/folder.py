"""A person's own images: a folder, zip or tar, one folder per class or flat, or with a table of labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.archives import IMAGES, Member, members, unpacked
from data_prep.items import Item, Listing, Rejected
from data_prep.sources.table import Row, read_table
from pipeline.config.schema_sources import FolderSource
from pipeline.runtime.errors import UserError


def listing(source: FolderSource, directory: Path) -> Listing:
    """Every image below `source.path`; hidden files are passed over. Folders are read in the order of their names.

    Classes are the sorted names of the folders that hold images, or the sorted labels of the table.
    """
    path = source.path.resolve()
    if not path.exists():
        raise UserError(
            f"data.source.path: '{source.path}' does not exist (looked at {path}). "
            "Give the folder, zip or tar that holds your images: data.source.path=/path/to/images."
        )
    path = unpacked(path, directory) if path.is_file() else path
    root = path if path.is_dir() else path.parent
    found = [member for member in members(path, root=root) if member.is_image]
    if not found:
        raise UserError(
            f"data.source.path: '{path}' holds no images. Expected files ending in {', '.join(IMAGES)}, "
            "in one folder per class or flat."
        )
    if source.table:
        return _with_table(source, path, root, found)
    splits, inner = _splits(source, [member.name for member in found])
    labelled = _labelled(source, inner)
    classes = sorted({_folder(name) for name in inner}) if labelled else []
    number = {name: position for position, name in enumerate(classes)}
    items = (
        Item(member.name, member.at, label=number[_folder(name)] if labelled else None, split=split)
        for member, name, split in zip(found, inner, splits, strict=True)
    )
    return Listing(items, classes, root=root, made_from={"images": len(found)})


def _splits(source: FolderSource, names: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The split of each name (None without `splits`), and the name inside it."""
    if not source.splits:
        return [None] * len(names), list(names)
    flat = next((name for name in names if "/" not in name), None)
    if flat:
        raise UserError(
            f"data.source.splits=true, but '{flat}' lies in no folder. Expected train/..., valid/..., test/..."
        )
    return [name.split("/", 1)[0] for name in names], [name.split("/", 1)[1] for name in names]


def _labelled(source: FolderSource, names: Sequence[str]) -> bool:
    flat = next((name for name in names if "/" not in name), None)
    if source.labels == "folders" and flat:
        raise UserError(f"data.source.labels=folders, but '{flat}' lies in no folder. Move it, or use labels=none.")
    return source.labels == "folders" or (source.labels == "auto" and flat is None)


def _folder(name: str) -> str:
    return name.rsplit("/", 1)[0]


def _with_table(source: FolderSource, path: Path, root: Path, found: list[Member]) -> Listing:
    """Items by the table's rows. Images that it does not name, and names without image, are rejected."""
    table = read_table(source, path, root)
    labels = {row.label for row in table.values() if row.label is not None}
    classes = sorted(labels, key=lambda label: (label.isdigit(), int(label) if label.isdigit() else 0, label))
    number = {name: position for position, name in enumerate(classes)}
    rejected: list[Rejected] = []
    items = _table_items(found, table, number, rejected)
    return Listing(items, classes, source.attribute_columns, root, rejected, {"images": len(found), "rows": len(table)})


def _table_items(
    found: list[Member], table: dict[str, Row], number: dict[str, int], rejected: list[Rejected]
) -> Iterator[Item]:
    missing = dict.fromkeys(table)
    for member in found:
        name = member.name if member.name in table else member.name.rsplit("/", 1)[-1]
        row = table.get(name)
        if row is None:
            rejected.append(Rejected(member.name, "image_without_label", "the table has no row for it"))
            continue
        missing.pop(name, None)
        facts: dict[str, Any] = {"label": None if row.label is None else number[row.label], "split": row.split}
        yield Item(member.name, member.at, attributes=row.attributes, meta=row.meta, **facts)
    rejected += [Rejected(name, "label_without_image", "the table names it, but it is not there") for name in missing]
