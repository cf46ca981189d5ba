"""What lies in a folder, zip or tar, as places that any process can read from without the archive's help."""

import gzip
import os
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_COPY = 1 << 20
_QUOTA = (b"quota", b"too many users have viewed or downloaded", b"can't view or download this file at this time")
_MAGIC = {
    ".zip": (b"PK\x03\x04", b"PK\x05\x06"),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".mat": (b"MATLAB",),
    ".npz": (b"PK\x03\x04",),
    ".pt": (b"PK\x03\x04", b"\x80\x02"),
    ".pth": (b"PK\x03\x04", b"\x80\x02"),
}


@dataclass(frozen=True, slots=True)  # there may be millions
class Member:
    """A file in a folder or archive: its name with slashes, and where its bytes are (see `data_prep.load`)."""

    name: str
    at: tuple[Any, ...]

    @property
    def is_image(self) -> bool:
        """By its ending; hidden files are not."""
        return self.name.lower().endswith(IMAGES) and not self.name.rsplit("/", 1)[-1].startswith(".")


def members(path: Path, *, root: Path) -> Iterator[Member]:
    """Every file, folders in the order of their names, archives in their own.

    `root`: what places are relative to; what lies elsewhere has its absolute path.
    """
    if path.is_dir():
        inside = place(path, root)
        yield from _folder_members(str(path), "" if inside == "." else f"{inside}/", "")
    elif path.suffix == ".zip":
        check_archive(path)
        yield from _zip_members(path, place(path, root))
    else:
        check_archive(path)
        yield from _tar_members(path, place(path, root))


def place(path: Path, root: Path) -> str:
    """A path relative to `root` where it lies below it, else whole: `root / place` is the path in both cases."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path.resolve())


def _folder_members(path: str, start: str, name: str) -> Iterator[Member]:
    """`start` comes before the places, `name` before the names of what lies in `path`."""
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
            yield from _folder_members(entry.path, f"{start}{entry.name}/", f"{name}{entry.name}/")
        else:
            yield Member(name + entry.name, ("file", start + entry.name))


def _zip_members(path: Path, name: str) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for info in archive.infolist():
            if info.is_dir() or info.filename.startswith("__MACOSX/"):
                continue
            raw.seek(info.header_offset + 26)  # lengths of name and extra field, which differ from the directory's
            name_size, extra_size = struct.unpack("<HH", raw.read(4))
            start = info.header_offset + 30 + name_size + extra_size
            kind = {zipfile.ZIP_STORED: "range", zipfile.ZIP_DEFLATED: "deflate"}.get(info.compress_type)
            if kind is None:
                raise UserError(
                    f"{path}: '{info.filename}' is compressed by method {info.compress_type}. Unpack it first."
                )
            yield Member(info.filename, (kind, name, start, info.compress_size))


def _tar_members(path: Path, name: str) -> Iterator[Member]:
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it met: gigabytes
                if info.isfile():
                    yield Member(info.name.removeprefix("./"), ("range", name, info.offset_data, info.size))
            end = archive.offset
        _check_end(path, end)
    except tarfile.TarError as error:
        raise Incomplete(f"{path} is not a readable tar: {error}. Get it again, or give an unpacked folder.") from error


def _check_end(path: Path, end: int) -> None:
    """tarfile takes the end of a file, or a header that it cannot read, for the end of the archive: a tar ends in 0."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        found = "ends there" if len(block) < tarfile.BLOCKSIZE else "holds something else"
        raise Incomplete(
            f"{path} is a truncated or damaged tar: expected a header or the end mark at byte {end}, but the file of "
            f"{path.stat().st_size} bytes {found}. Get it again."
        )


def unpacked(path: Path, directory: Path) -> Path:
    """A file that can be read from any place: a .gz or .tgz is written into `directory` without its compression."""
    check_archive(path)
    if path.suffix not in (".gz", ".tgz"):
        return path
    plain = directory / (path.stem if path.suffix == ".gz" else path.stem + ".tar")
    if not plain.exists():
        try:
            with atomic_path(plain) as partial, gzip.open(path) as packed, partial.open("wb") as file:
                while piece := packed.read(_COPY):
                    file.write(piece)
        except (EOFError, gzip.BadGzipFile) as error:
            raise Incomplete(
                f"{path} is a truncated archive ({path.stat().st_size} bytes; {error}). Delete it and fetch it again."
            ) from error
    return plain


def check_archive(path: Path, *, ending: str | None = None) -> None:
    """Recognise what is often found in an archive's place: nothing, a web page, a quota notice, half of it.

    `ending`: what kind of archive it should be, where its name does not say.
    """
    ending = ending or path.suffix
    if not path.exists():
        raise Incomplete(f"{path} does not exist.")
    with path.open("rb") as file:
        start = file.read(65536)
    if not start:
        raise Incomplete(f"{path} has no bytes. Delete it and fetch it again.")
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<head")):
        lower = start.lower()
        if any(words in lower for words in _QUOTA):
            raise Incomplete(
                f"{path} is not the file but the server's notice that its download quota is exceeded. "
                "Delete it and try again in a day, or get the file elsewhere and give its folder as data.source.path."
            )
        raise Incomplete(
            f"{path} is a web page, not the file (it starts {start[:60]!r}). Delete it and get the file by hand."
        )
    expected = _MAGIC.get(ending)
    if expected and not start.startswith(expected):
        raise Incomplete(f"{path} is not a {ending[1:]} file: it starts {start[:8]!r}. Delete it and fetch it again.")
    if ending == ".zip" and not zipfile.is_zipfile(path):
        raise Incomplete(
            f"{path} is a truncated zip: its directory, which stands at the end, is missing "
            f"({path.stat().st_size} bytes are there). Delete it and fetch it again."
        )


def choose(folder: Path, names: tuple[str, ...], *, what: str) -> Path:
    """The first of `names` that exists in a folder. None of them is a `UserError` that lists what is there."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    there = sorted(entry.name for entry in folder.iterdir())[:12] if folder.is_dir() else None
    found = f"it holds {', '.join(there) or 'nothing'}" if there is not None else "there is no such folder"
    raise UserError(
        f"data.source.path: no {what} in '{folder}' ({found}). Expected {' or '.join(names)}. "
        "Put it there, or give the folder that has it."
    )
