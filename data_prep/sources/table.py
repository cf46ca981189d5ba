"""A table of labels beside images: csv with a header, or one JSON object a line."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.archives import members
from data_prep.load import read_bytes
from pipeline.config.schema_sources import FolderSource
from pipeline.runtime.errors import UserError, did_you_mean

FILE_COLUMNS = ("file_name", "file", "image", "path", "filename")
LABEL_COLUMNS = ("label", "class")
META_COLUMNS = ("caption", "text")


@dataclass(frozen=True)
class Row:
    """What a table says of one image."""

    label: str | None
    split: str | None
    attributes: tuple[int, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def read_table(source: FolderSource, path: Path, root: Path) -> dict[str, Row]:
    """File name -> row. Columns `split`, `caption` and `text` are used where they are there."""
    rows = _rows(str(source.table), _content(str(source.table), path, root))
    if not rows:
        raise UserError(f"data.source.table: '{source.table}' has no rows.")
    columns = list(rows[0])
    file_column = _column(source.file_column, FILE_COLUMNS, columns, "file_column")
    wanted = source.label_column is not None or (source.labels != "none" and not source.attribute_columns)
    label_column = _column(source.label_column, LABEL_COLUMNS, columns, "label_column") if wanted else ""
    for name in source.attribute_columns:
        _column(name, (), columns, "attribute_columns")
    return {
        str(row[file_column]): Row(
            label=str(row[label_column]) if label_column and row.get(label_column) not in (None, "") else None,
            split=row.get("split") or None,
            attributes=tuple(_attribute(row.get(name)) for name in source.attribute_columns),
            meta={name: row[name] for name in META_COLUMNS if row.get(name)},
        )
        for row in rows
    }


def _content(table: str, path: Path, root: Path) -> str:
    """The table's text: a file of the folder or archive, or anywhere."""
    inside = next((member for member in members(path, root=root) if member.name == table), None)
    if inside:
        return read_bytes(inside.at, root).decode("utf-8-sig")
    file = Path(table).expanduser()
    if not file.is_file():
        raise UserError(f"data.source.table: '{table}' is neither in '{path}' nor a file. Give a .csv or .jsonl.")
    return file.read_text("utf-8-sig")


def _rows(name: str, content: str) -> list[dict[str, Any]]:
    if not name.endswith((".jsonl", ".ndjson")):
        return list(csv.DictReader(io.StringIO(content)))
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise UserError(f"data.source.table: '{name}', line {number} is not JSON: {error}.") from error
    return rows


def _column(wanted: str | None, usual: tuple[str, ...], columns: list[str], setting: str) -> str:
    name = wanted or next((name for name in usual if name in columns), None)
    if name in columns:
        return str(name)
    expected = f"'{wanted}'" if wanted else f"any of {', '.join(usual)}"
    raise UserError(
        f"data.source.{setting}: the table has no column {expected}; it has {', '.join(columns)}. "
        f"Set data.source.{setting} to one of them{'' if wanted else ', or data.source.labels=none for no labels'}."
        f"{did_you_mean(wanted, columns) if wanted else ''}"
    )


def _attribute(value: Any) -> int:
    """1, 0, or -1 for a cell that is empty. CelebA's -1 is 0."""
    if value in (None, ""):
        return -1
    return int(float(value) > 0)
