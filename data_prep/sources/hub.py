"""The Hugging Face hub, through `datasets`: streamed once, the images' own bytes kept beside the listing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.fetch import hub_rows
from data_prep.items import Item, Listing, Rejected
from pipeline.config.schema_sources import HubSource
from pipeline.runtime.errors import UserError, did_you_mean


def listing(source: HubSource, directory: Path) -> Listing:
    """Every row of the wanted splits, in the hub's order. Rows are read once: the images go into `images.bin`."""
    rejected: list[Rejected] = []
    streams = {name: hub_rows(source, hub_name) for name, hub_name in source.splits.items()}
    label_column = ""
    classes: list[str] = []
    for split, rows in streams.items():
        _check_column(rows.features, source.image_column, f"split '{split}' of '{source.name}'")
        label_column, classes = _labels(source, rows.features)
    items = _items(source, streams, directory, label_column=label_column, classes=classes, rejected=rejected)
    return Listing(items, classes, rejected=rejected, made_from={"name": source.name, "revision": source.revision})


def _check_column(features: Any, column: str, where: str) -> None:
    if features is not None and column not in features:
        raise UserError(
            f"data.source.image_column: no '{column}' in {where}. It has {', '.join(features)}."
            f"{did_you_mean(column, features)}"
        )


def _labels(source: HubSource, features: Any) -> tuple[str, list[str]]:
    """The column of labels ("" for none) and the classes' names."""
    column = source.label_column or ("label" if features and "label" in features else "")
    if column and features:
        _check_column(features, column, f"'{source.name}'")
        return column, list(getattr(features[column], "names", None) or [])
    return column, []


def _items(
    source: HubSource,
    streams: dict[str, Any],
    directory: Path,
    *,
    label_column: str,
    classes: list[str],
    rejected: list[Rejected],
) -> Iterator[Item]:
    position = 0
    with (directory / "images.bin").open("wb") as file:
        for split, rows in streams.items():
            for number, row in enumerate(rows):
                key = f"{split}/{number:07d}"
                image = row[source.image_column]
                data = image and (image.get("bytes") or _from_path(image.get("path")))
                if not data:
                    rejected.append(Rejected(key, "label_without_image", "the row's image is empty"))
                    continue
                file.write(data)
                at = ("range", "images.bin", position, len(data))
                position += len(data)
                label = _number(row.get(label_column), classes, key=key) if label_column else None
                yield Item(key, at, label=label, split=split)


def _number(label: Any, classes: list[str], *, key: str) -> int | None:
    """A row's label; -1, the hub's word for none, is None. Numbers without names are named by themselves."""
    if label is None or label == -1:
        return None
    if not isinstance(label, int) or label < 0:
        raise UserError(
            f"data.source.label_column: found the label {label!r} in row {key}, expected a number from 0 on or a "
            "ClassLabel."
        )
    classes += [str(number) for number in range(len(classes), label + 1)]
    return label


def _from_path(path: str | None) -> bytes:
    return Path(path).read_bytes() if path and Path(path).exists() else b""
