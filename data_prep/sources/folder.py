"""A person's own images: a folder, zip or tar, one folder per class or flat, or with a table of labels."""

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.archives import IMAGES, Member, images, is_packed, members, read_bytes, unpacked
from data_prep.items import Item, Listing, Rejected, in_order
from pipeline.config.registry import Looked
from pipeline.config.schema_sources import SPLITS, FolderSource, split_name
from pipeline.runtime.errors import UserError, did_you_mean

LOOKED_AT = 20_000  # images whose names are read before anything is queued
FILE_COLUMNS = ("file_name", "file", "image", "path", "filename", "image_id")
LABEL_COLUMNS = ("label", "class")
META_COLUMNS = ("caption", "text")
_TRUE, _FALSE = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "-1", "-1.0", "false", "no", "n", "f")


def listing(source: FolderSource, directory: Path) -> Listing:
    """Every image below `source.path`, folders in the order of their names; hidden files are passed over.

    Classes are the names of the folders that hold images, or the labels of the table: numbers by value, then words.
    """
    path = source.path.resolve()
    if not path.exists():
        raise UserError(
            f"data.source.path: '{source.path}' does not exist (looked at {path}). "
            "Give the folder, zip or tar that holds your images: data.source.path=/path/to/images."
        )
    path = unpacked(path, directory) if path.is_file() else path
    root = path if path.is_dir() else path.parent
    rejected: list[Rejected] = []
    found = _found(source, path, rejected, most=None)
    if source.table:
        return _with_table(source, path, root, found, rejected)
    return _in_folders(source, path, root, found, rejected)


def look(source: FolderSource, path: Path) -> Looked | None:
    """See that there are images, in the folders or with the table that the settings name, and count them.

    The names of the first `LOOKED_AT` images are read, so that a large set takes no longer; where there are more, they
    are not counted. Packed archives are not read.
    """
    if is_packed(path):
        return None
    path = path.resolve()
    root = path if path.is_dir() else path.parent
    rejected: list[Rejected] = []
    found = _found(source, path, rejected, most=LOOKED_AT + 1)
    if len(found) > LOOKED_AT:
        if source.table:
            read_table(source, path, root, [])  # its rows may be those of the other images
        else:
            _in_folders(source, path, root, found, rejected)
        return None
    made = _with_table if source.table else _in_folders
    return _counted(made(source, path, root, found, rejected))


def _counted(listing: Listing) -> Looked:
    """Images and classes in words, with the smallest class and how many files are passed over."""
    counts = Counter(item.label for item in listing.items)
    said, total = f"{counts.total()} images", counts.total()
    without = counts.pop(None, 0)
    if listing.classes:
        least, most = (choose(range(len(listing.classes)), key=counts.__getitem__) for choose in (min, max))
        said += f" in {len(listing.classes)} classes, from {counts[least]} ({listing.classes[least]}) to {counts[most]}"
        said += f", {without} without a label" if without else ""
    said += f"; {len(listing.rejected)} others are passed over" if listing.rejected else ""
    return Looked(total, said)


def _found(source: FolderSource, path: Path, rejected: list[Rejected], *, most: int | None) -> list[Member]:
    """All images, or the first ones."""
    root = path if path.is_dir() else path.parent
    found = list(islice(images(path, root=root, rejected=rejected, but=source.table), most))
    if not found:
        passed = ", ".join(row.key for row in rejected[:3])
        raise UserError(
            f"data.source.path: '{path}' holds no images. Expected files ending in {', '.join(IMAGES)}, in one folder "
            f"per class or flat; found {f'{len(rejected)} others: {passed}' if passed else 'no file'}."
        )
    return found


def _in_folders(source: FolderSource, path: Path, root: Path, found: list[Member], rejected: list[Rejected]) -> Listing:
    """Items by the folders that they lie in."""
    splits, inner = _splits(source, path, [member.name for member in found])
    folders = [name.rsplit("/", 1)[0] for name in inner] if _labelled(source, inner) else []
    classes = in_order(folders)
    number = {name: position for position, name in enumerate(classes)}
    items = (
        Item(member.name, member.at, label=number[folders[place]] if folders else None, split=split)
        for place, (member, split) in enumerate(zip(found, splits, strict=True))
    )
    return Listing(items, classes, root=root, rejected=rejected, made_from={"images": len(found)})


def _splits(source: FolderSource, path: Path, names: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The split of each name (None where folders are no splits), and the name inside it.

    Folders named like splits are not taken for classes without a word: the person says which they are.
    """
    start = _around(names)
    tops = Counter(name[len(start) :].split("/", 1)[0] for name in names if "/" in name[len(start) :])
    if source.splits is None and len({split_name(top) for top in tops} & set(SPLITS)) > 1:
        there = ", ".join(f"{top} ({count} images)" for top, count in sorted(tops.items()))
        raise UserError(
            f"data.source.splits: found the folders {there} in '{path}/{start}', which are named like splits; "
            "expected to be told. Set data.source.splits=true data.split.rule=official to keep them "
            "apart, or data.source.splits=false where they are not splits."
        )
    if not source.splits:
        return [None] * len(names), list(names)
    inner = [name[len(start) :] for name in names]
    flat = next((name for name in inner if "/" not in name), None)
    if flat:
        raise UserError(
            f"data.source.splits=true, but '{start}{flat}' lies in no folder. Expected train/..., valid/..., test/..."
        )
    return [name.split("/", 1)[0] for name in inner], [name.split("/", 1)[1] for name in inner]


def _around(names: Sequence[str]) -> str:
    """The folders around everything ("photos/"), as archives have them; a folder named like a split is none."""
    start = ""
    for part, other in zip(min(names).split("/")[:-1], max(names).split("/")[:-1], strict=False):
        if part != other or split_name(part) in SPLITS:
            break
        start += f"{part}/"
    return start


def _labelled(source: FolderSource, names: Sequence[str]) -> bool:
    """Whether folders are classes. Some images in folders and some beside them are refused."""
    flat = [name for name in names if "/" not in name]
    if source.labels == "folders" and flat:
        raise UserError(f"data.source.labels=folders, but '{flat[0]}' lies in no folder. Move it, or use labels=none.")
    if source.labels == "auto" and flat and len(flat) < len(names):
        folders = in_order(name.rsplit("/", 1)[0] for name in names if "/" in name)
        raise UserError(
            f"data.source.labels: found {len(flat)} images in no folder ('{flat[0]}') and {len(names) - len(flat)} in "
            f"{len(folders)} folders ({', '.join(folders[:5])}), expected all in folders, one a class, or none. Move "
            "them, or set data.source.labels=none to use all images without classes."
        )
    return source.labels != "none" and not flat


@dataclass(frozen=True)
class Row:
    """What a table says of one image, and in which line."""

    line: int
    label: str | None
    split: str | None
    attributes: tuple[int, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


class Table:
    """A table of labels: text of any usual encoding and delimiter with a header, or JSON. Errors name file and line."""

    def __init__(self, name: str, data: bytes, notes: list[str]) -> None:
        self.name, self.notes = name, notes
        if not data.strip():
            raise UserError(f"data.source.table: '{name}' has no rows: the file is empty.")
        content = self._decoded(data)
        is_json = name.lower().endswith((".jsonl", ".ndjson", ".json"))
        self.rows: list[tuple[int, dict[str, Any]]] = list(self._json(content) if is_json else self._delimited(content))
        if not self.rows:
            raise UserError(f"data.source.table: '{name}' has no rows.")
        self.columns = list(dict.fromkeys(column for _, row in self.rows for column in row))

    def error(self, line: int, found: str, expected: str) -> UserError:
        """What is wrong in a line."""
        return UserError(f"data.source.table: '{self.name}', line {line}: found {found}, expected {expected}.")

    def _decoded(self, data: bytes) -> str:
        wide = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else f"utf-16-{'be' if data[0] == 0 else 'le'}"
        for encoding in (wide,) if b"\0" in data[:100] else ("utf-8-sig", "cp1252"):
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError as error:
                line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
                continue
            if encoding == "cp1252":
                self.notes.append(f"'{self.name}', line {line}: found no UTF-8; the table is read as Windows-1252")
            return text
        raise self.error(line, f"the byte 0x{byte:02x}", "text in UTF-8, UTF-16 or Windows-1252")

    def _delimited(self, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
        lines = content.splitlines(keepends=True) if "\n" not in content else io.StringIO(content, newline="")
        header = next((line for line in content.splitlines() if line.strip() and not line.startswith("#")), "")
        found = max(",;\t|", key=header.count)
        reader = csv.reader(lines, delimiter=found if found in header else " ", skipinitialspace=True, strict=True)
        names: list[str] = []
        try:
            for row in reader:
                values = [value.strip() for value in row]
                if not any(values) or (not names and values[0].startswith("#")):
                    continue
                if not names:
                    names = values
                    if any(name.lower().endswith(IMAGES) for name in names):
                        raise self.error(reader.line_num, f"the row {values}", "a header such as file_name,label")
                elif len(values) != len(names):
                    counts = f"{len(names)} as in the header ({', '.join(names)})"
                    raise self.error(reader.line_num, f"{len(values)} values ({', '.join(values)[:80]})", counts)
                else:
                    yield reader.line_num, dict(zip(names, values, strict=True))
        except csv.Error as error:
            raise self.error(reader.line_num, f"quoting that does not end ({error})", 'fields as a,"b, c"') from error

    def _json(self, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """JSON Lines, whose lines end at \\n alone; or one array of objects."""
        try:
            whole = json.loads(content) if content.lstrip().startswith("[") else None
        except ValueError:
            whole = None  # lines that are arrays each: said below
        if isinstance(whole, list) and all(isinstance(row, dict) for row in whole):
            yield from enumerate(whole, start=1)
            return
        for number, line in enumerate(content.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise self.error(number, f"no JSON ({error})", 'an object such as {"file_name": "a.png"}') from error
            if not isinstance(row, dict):
                raise self.error(number, line.strip()[:60], 'an object such as {"file_name": "a.png"}')
            yield number, row

    def column(self, wanted: str | None, usual: Sequence[str], setting: str) -> str:
        """The table's name of a column: the wanted one, or the first of the usual ones, whatever its case."""
        lower = {name.lower(): name for name in reversed(self.columns)}
        name = wanted if wanted in self.columns else None
        for other in usual if wanted is None else (wanted,):
            name = name or lower.get(other.lower())
        if name is not None:
            return name
        expected = f"no column '{wanted}'" if wanted else f"none of the columns {', '.join(usual)}"
        raise UserError(
            f"data.source.{setting}: the table '{self.name}' has {expected}; it has "
            f"{', '.join(self.columns)}. Set data.source.{setting} to one of them"
            f"{'' if wanted else ', or data.source.labels=none for no labels'}."
            f"{did_you_mean(wanted, self.columns) if wanted else ''}"
        )

    def label(self, line: int, value: Any) -> str | None:
        """A label as text; None for an empty one."""
        if isinstance(value, list | dict):
            raise self.error(line, f"the label {value}", "one label (for several: data.source.attribute_columns)")
        return None if value is None or not str(value).strip() else str(value).strip()

    def attribute(self, line: int, column: str, value: Any) -> int:
        """1, 0, or -1 for a cell that is empty. CelebA's -1 is 0."""
        text = "" if value is None else str(value).strip().lower()
        if text in _TRUE or text in _FALSE or not text:
            return -1 if not text else int(text in _TRUE)
        raise self.error(line, f"'{value}' in column {column}", "1, 0, -1, true, false, yes, no or nothing")


def read_table(source: FolderSource, path: Path, root: Path, notes: list[str]) -> dict[str, Row]:
    """File name -> what the table says. Columns `split`, `caption` and `text` are used where they are there.

    Several rows of one image must not contradict each other; its first caption is used. `attribute_columns` may name
    values of the label column instead: 1 where one of the image's rows has that label (or its list of labels), else 0.
    """
    table = Table(str(source.table), _content(str(source.table), path, root), notes)
    file = table.column(source.file_column, FILE_COLUMNS, "file_column")
    names = source.attribute_columns
    wide = not names or any(name in table.columns for name in names)
    wanted = source.label_column is not None or not wide or (source.labels != "none" and not names)
    label = table.column(source.label_column, LABEL_COLUMNS, "label_column") if wanted else ""
    for name in names if wide else ():
        table.column(name, (), "attribute_columns")
    split = next((column for column in table.columns if column.lower() == "split"), "split")
    rows: dict[str, Row] = {}
    several = 0
    for line, values in table.rows:
        if values.get(file) in (None, ""):
            raise table.error(line, f"no '{file}'", "the name of an image")
        name = posixpath.normpath(str(values[file]).strip().replace("\\", "/"))
        tags: list[Any] = values[label] if isinstance(values.get(label), list) else [values.get(label)]
        row = Row(
            line,
            table.label(line, values.get(label)) if label and wide else None,
            str(values.get(split) or "").strip() or None,
            tuple(table.attribute(line, n, values.get(n)) if wide else int(n in map(str, tags)) for n in names),
            {column: values[column] for column in META_COLUMNS if values.get(column)},
        )
        if name in rows:
            several += 1
            row = _joined(table, name, rows[name], row, wide=wide)
        rows[name] = row
    if several:
        notes.append(f"'{table.name}' has {several} further rows of images named before: first captions are used")
    return rows


def _joined(table: Table, name: str, one: Row, two: Row, *, wide: bool) -> Row:
    """Two rows of one image as one; what they contradict each other in is refused."""
    for what in ("label", "split", *(("attributes",) if wide else ())):
        old, new = getattr(one, what), getattr(two, what)
        if old != new:
            raise table.error(two.line, f"{what} {new!r} for '{name}'", f"{old!r} as in line {one.line}, one row only")
    attributes = one.attributes if wide else tuple(map(max, one.attributes, two.attributes))
    return Row(one.line, one.label, one.split, attributes, one.meta)


def _content(table: str, path: Path, root: Path) -> bytes:
    """The table's bytes: a file of the folder or archive, or anywhere."""
    if path.is_file():
        inside = next((member for member in members(path, root=root, rejected=[]) if member.name == table), None)
        if inside:
            return read_bytes(inside.at, root)
    for file in (path / table, Path(table).expanduser()):
        if file.is_file():
            return file.read_bytes()
    raise UserError(f"data.source.table: '{table}' is neither in '{path}' nor a file. Give a .csv, .tsv or .jsonl.")


def _with_table(source: FolderSource, path: Path, root: Path, found: list[Member], rejected: list[Rejected]) -> Listing:
    """Items by the table's rows. Images that it does not name, and names without image, are rejected."""
    notes: list[str] = []
    table = read_table(source, path, root, notes)
    classes = in_order(row.label for row in table.values() if row.label is not None)
    used: dict[str, str] = {}
    matched: list[tuple[Member, Row]] = []
    unnamed: list[Rejected] = []
    for member in found:
        name = member.name if member.name in table else member.name.rsplit("/", 1)[-1]
        if name not in table:
            unnamed.append(Rejected(member.name, "image_without_label", "the table has no row for it"))
            continue
        where = f"'{source.table}', line {table[name].line}"
        if name in used:
            raise UserError(
                f"data.source.table: {where}: found '{name}', which is both '{used[name]}' and '{member.name}', "
                "expected the path of one of them."
            )
        used[name] = member.name
        folder = member.name.split("/")[-2] if "/" in member.name else None
        if source.label_column is None and folder in classes and table[name].label not in (folder, None):
            raise UserError(
                f"data.source.table: {where}: found label '{table[name].label}' for '{member.name}', expected "
                f"'{folder}' as its folder says. Correct one of them; data.source.label_column makes the table count."
            )
        matched.append((member, table[name]))
    if not matched:
        name, row = next(iter(table.items()))
        raise UserError(
            f"data.source.table: '{source.table}', line {row.line}: found '{name}', expected a name such as "
            f"'{found[0].name}'. None of its {len(table)} names is one of the {len(found)} images in '{path}'."
        )
    number = {name: position for position, name in enumerate(classes)}
    items = (
        Item(
            member.name,
            member.at,
            label=None if row.label is None else number[row.label],
            split=row.split,
            attributes=row.attributes,
            meta=row.meta,
        )
        for member, row in matched
    )
    unused = (name for name in table if name not in used)
    rejected += unnamed
    rejected += [Rejected(name, "label_without_image", "the table names it, but it is not there") for name in unused]
    made_from = {"images": len(found), "rows": len(table)}
    return Listing(items, classes, source.attribute_columns, root, rejected, made_from, notes)
