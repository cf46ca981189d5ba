"""Files in folders, zips and tars, as places that any process can read from: listing them, and reading them.

A place is a plain tuple, so that listings are text and workers share nothing:

("file", path)                                   a file of its own
("range", path, offset, size)                    bytes inside a larger file: a tar, a stored zip member
("deflate", path, offset, size)                  a compressed zip member
("array", path, offset, [H, W, C], "hwc"|"chw")  bare pixels: idx, CIFAR batches
("lmdb", path, key in hex)                       an entry of an lmdb database
("glyph", font, number, letter, scale)           nothing yet: a letter to draw
"""

import bz2
import functools
import gzip
import io
import lzma
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.items import Rejected, Unusable
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path

IMAGES = (  # where a webdataset sample has several images, the first of these endings is used
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jfif", ".jpe", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".tga", ".pbm", ".pnm"),
)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl")
SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_COPY = 1 << 20
_QUOTA = (b"quota", b"too many users have viewed or downloaded", b"can't view or download this file at this time")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_UNKNOWN = {b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
_MAGIC = {
    ".zip": _ZIP,
    **dict.fromkeys((".gz", ".tgz"), (b"\x1f\x8b",)),
    **dict.fromkeys((".bz2", ".tbz2"), (b"BZh",)),
    **dict.fromkeys((".xz", ".txz"), (b"\xfd7zXZ\0",)),
    ".mat": (b"MATLAB",),
    ".npz": (b"PK\x03\x04",),
    ".pt": (b"PK\x03\x04", b"\x80\x02"),
    ".pth": (b"PK\x03\x04", b"\x80\x02"),
}


@dataclass(frozen=True, slots=True)  # there may be millions
class Member:
    """A file in a folder or archive: its name with slashes, and its place."""

    name: str
    at: tuple[Any, ...]


def images(path: Path, *, root: Path, rejected: list[Rejected], but: str | None = None) -> Iterator[Member]:
    """The `members` whose names end like an image's. The others, less the one called `but`, are `rejected`."""
    for member in members(path, root=root, rejected=rejected):
        if member.name.lower().endswith(IMAGES):
            yield member
        elif member.name != but:
            rejected.append(Rejected(member.name, "other_ending", "its name does not end like an image's"))


def members(path: Path, *, root: Path, rejected: list[Rejected]) -> Iterator[Member]:
    """Every file of a folder in the order of names, or of an archive in its own order.

    Names are text: bytes that are not UTF-8 stand in them as \\xe9. `rejected` gets what is passed over: hidden files,
    and what is no file.

    Args:
        root: what places are relative to; what lies elsewhere has its absolute path.
    """
    where = place(path, root)
    if path.is_dir():
        start = "" if where == "." else f"{where}/"
        for name, _, why in walk(path):
            if why:
                rejected.append(_passed_over(name, why))
            else:
                yield Member(_text(name), ("file", start + name))
        return
    check_archive(path)
    _refuse_a_part(path)
    with path.open("rb") as file:
        is_zip = file.read(4) in _ZIP
    for member in (_zip_members if is_zip else _tar_members)(path, where, rejected):
        if any(map(is_hidden, member.name.split("/"))):
            rejected.append(_passed_over(member.name, "hidden"))
        else:
            yield member


def _refuse_a_part(path: Path) -> None:
    """Of images in a folder one was given, or the table beside them."""
    ending = path.suffix.lower()
    if ending in IMAGES:
        raise UserError(f"{path} is an image. Give the folder that holds the images.")
    if ending in TABLES:
        raise UserError(
            f"{path} is a table. Give the folder that holds the images; where its labels are meant, as "
            f"data.source.table={path} beside it."
        )


def place(path: Path, root: Path) -> str:
    """A path relative to `root` where it lies below it, else whole: `root / place` is the path in both cases."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path.resolve())


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or written by an operating system."""
    return name.startswith(".") or name in SYSTEM


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str], str]]:
    """Name, entry and "" for each file below a folder; for what is passed over its kind (see `items.KINDS`).

    Links are followed. A folder that is reached in several ways is walked once, where it really lies if that is in
    here: a link to a folder above ends nowhere.
    """
    top = folder.resolve()
    found = top.stat()
    return _walk(str(folder), "", top, {(found.st_dev, found.st_ino)})


def _walk(path: str, name: str, top: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[str, os.DirEntry[str], str]]:
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        inner = name + entry.name
        if is_hidden(entry.name):
            yield inner, entry, "hidden"
        elif entry.is_file(follow_symlinks=False):
            yield inner, entry, ""
        elif not Path(entry.path).is_dir():
            yield inner, entry, "" if Path(entry.path).is_file() else "not_a_file"
        else:
            stat = entry.stat()
            identity = (stat.st_dev, stat.st_ino)
            if identity in seen or (entry.is_symlink() and _listed_anyway(Path(entry.path).resolve(), top)):
                yield inner, entry, "repeated_folder"
            else:
                seen.add(identity)
                yield from _walk(entry.path, f"{inner}/", top, seen)


def _listed_anyway(target: Path, top: Path) -> bool:
    """Whether a folder that a link leads to is above `top`, or below it where no link is needed to find it."""
    if top.is_relative_to(target):
        return True
    return target.is_relative_to(top) and not any(map(is_hidden, target.relative_to(top).parts))


def _passed_over(name: str, kind: str) -> Rejected:
    reasons = {
        "hidden": "a hidden file or folder, or one that an operating system writes",
        "not_a_file": "a pipe, a socket, a device, or a link that leads nowhere",
        "repeated_folder": "a link to a folder that is listed under its own name, or lies above",
    }
    return Rejected(_text(name), kind, reasons[kind])


def _text(name: str) -> str:
    """A name from the disk or a tar, with \\xe9 for a byte that is not UTF-8."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _zip_members(path: Path, where: str, rejected: list[Rejected]) -> Iterator[Member]:
    del rejected
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/").removeprefix("./").lstrip("/")  # some tools of Windows write \
            if name.endswith("/"):
                continue
            raw.seek(info.header_offset)  # lengths of name and extra field differ from those in the directory
            header = raw.read(30)
            if header[:4] != _ZIP[0] or len(header) < 30:
                raise Incomplete(f"{path} is damaged: '{name}' is not at byte {info.header_offset}. Get it again.")
            name_size, extra_size = struct.unpack("<HH", header[26:])
            start = info.header_offset + 30 + name_size + extra_size
            kind = {zipfile.ZIP_STORED: "range", zipfile.ZIP_DEFLATED: "deflate"}.get(info.compress_type)
            if kind is None or info.flag_bits & 1:
                how = "encrypted" if info.flag_bits & 1 else f"compressed by method {info.compress_type}"
                raise UserError(f"{path}: '{name}' is {how}. Unpack the archive, and give the folder.")
            yield Member(name, (kind, where, start, info.compress_size))


def _tar_members(path: Path, where: str, rejected: list[Rejected]) -> Iterator[Member]:
    """Files in the archive's order, then what its links lead to."""
    links: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every member it met: gigabytes
                name = _tar_name(info.name)
                if info.islnk() or info.issym():
                    folder = posixpath.dirname(info.name) if info.issym() else ""
                    links[name] = _tar_name(posixpath.normpath(posixpath.join(folder, info.linkname)))
                elif info.isreg() and not info.issparse():
                    yield Member(name, ("range", where, info.offset_data, info.size))
                elif not info.isdir():
                    rejected.append(_passed_over(name, "not_a_file"))
            end = archive.offset
        _check_end(path, end)
    except tarfile.TarError as error:
        raise Incomplete(f"{path} is not a readable tar: {error}. Get it again, or give an unpacked folder.") from error
    yield from _tar_links(path, where, links, rejected)


def _tar_name(name: str) -> str:
    return _text(name.removeprefix("./").lstrip("/"))


def _tar_links(path: Path, where: str, links: dict[str, str], rejected: list[Rejected]) -> Iterator[Member]:
    """A member for each link of a tar; what leads nowhere is rejected."""
    wanted: dict[str, list[str]] = {}
    for name, target in links.items():
        for _ in range(40):  # a link to a link, as deep as Linux follows
            target = links.get(target, target)
        wanted.setdefault(target, []).append(name)
    if not wanted:
        return
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]
            if info.isreg():
                for name in wanted.pop(_tar_name(info.name), ()):
                    yield Member(name, ("range", where, info.offset_data, info.size))
    for target, names in wanted.items():
        rejected += [Rejected(name, "not_a_file", f"a link to '{target}', which is not in the tar") for name in names]


def _check_end(path: Path, end: int) -> None:
    """Refuse a tar without its end mark, a block of zeros, and one with more after it.

    tarfile takes the end of the file, or a header that it cannot read, for the end of the archive.
    """
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        after = file.read(_COPY)
    if block != bytes(tarfile.BLOCKSIZE):
        found = "ends there" if len(block) < tarfile.BLOCKSIZE else "holds something else"
        raise Incomplete(
            f"{path} is a truncated or damaged tar: expected a header or the end mark at byte {end}, but the file of "
            f"{path.stat().st_size} bytes {found}. Get it again."
        )
    if after.strip(b"\0"):
        raise Incomplete(
            f"{path} goes on after its end mark at byte {end}: two tars, one after the other? Expected one. Unpack "
            "both (tar --ignore-zeros), and give the folder."
        )


def unpacked(path: Path, directory: Path) -> Path:
    """A file that can be read from any place: one that is packed by gzip, bzip2 or xz is unpacked into `directory`."""
    opener = _opener(path)
    if opener is None:
        return path
    plain = directory / (path.stem if path.suffix.lower() in (".gz", ".bz2", ".xz") else f"{path.stem}.tar")
    try:
        with atomic_path(plain) as partial, opener(path) as packed, partial.open("wb") as file:
            while piece := packed.read(_COPY):
                file.write(piece)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system
        raise Incomplete(
            f"{path} is a truncated or damaged archive ({path.stat().st_size} bytes; {error}). "
            "Delete it and fetch it again."
        ) from error
    return plain


def is_packed(path: Path) -> bool:
    """Whether `unpacked` would unpack it. Raises what `unpacked` does for a file that it does not know."""
    return path.is_file() and _opener(path) is not None


def _opener(path: Path) -> Any:
    check_archive(path)
    with path.open("rb") as file:
        start = file.read(8)
    kind = next((kind for magic, kind in _UNKNOWN.items() if start.startswith(magic)), None)
    if kind:
        raise UserError(f"{path} is packed by {kind}, expected zip, tar, gzip, bzip2 or xz. Give it unpacked.")
    return next((opener for magic, opener in _PACKED.items() if start.startswith(magic)), None)


def check_archive(path: Path, *, ending: str | None = None) -> None:
    """Recognise what is often found in an archive's place: nothing, a web page, a quota notice, half of it.

    Args:
        ending: what kind of archive it should be, where its name does not say.
    """
    ending = (ending or path.suffix).lower()
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
    if start.startswith(_ZIP) and not zipfile.is_zipfile(path):
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


def read_bytes(at: tuple[Any, ...], root: Path) -> bytes:
    """The encoded bytes of an image that lies in a file."""
    kind, name = at[0], at[1]
    if kind == "file":
        try:
            with Path(root, name).open("rb", buffering=0) as file:
                return file.readall()
        except OSError as error:
            raise Unusable("unreadable", f"cannot be read: {error.strerror}") from error
    if kind == "range":
        return _read_range(root / name, at[2], at[3])
    if kind == "deflate":
        try:
            return zlib.decompress(_read_range(root / name, at[2], at[3]), wbits=-15)
        except zlib.error as error:
            raise Unusable("unreadable", f"the zip member is damaged: {error}") from error
    if kind == "lmdb":
        return _read_lmdb(root / name, bytes.fromhex(at[2]))
    raise ValueError(f"no way to read an item at {at}")


def open_image(data: bytes) -> Image.Image:
    """The bytes of a file as a Pillow image, not decoded yet. What is no image raises `Unusable`."""
    if not data:
        raise Unusable("empty", "the file has no bytes")
    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise Unusable("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Unusable("unreadable", f"not an image ({len(data)} bytes, starting {data[:12]!r})") from error


def array_image(at: tuple[Any, ...], root: Path) -> Image.Image:
    """An item of bare pixels as a Pillow image."""
    height, width, channels = at[3]
    pixels = np.frombuffer(_read_range(root / at[1], at[2], height * width * channels), dtype=np.uint8)
    if at[4] == "chw":
        pixels = pixels.reshape(channels, height, width).transpose(1, 2, 0)
    pixels = pixels.reshape(height, width, channels)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels))


def _read_range(path: Path, offset: int, size: int) -> bytes:
    data = os.pread(_opened(path), size, offset)
    if len(data) != size:
        raise Unusable("truncated", f"{path.name} ends at byte {offset + len(data)}, the image at {offset + size}")
    return data


@functools.lru_cache(maxsize=64)
def _opened(path: Path) -> int:
    """A file kept open while the process lives: a data set is one file, or a few."""
    return os.open(path, os.O_RDONLY)


@functools.lru_cache(maxsize=4)
def _opened_lmdb(path: Path) -> Any:
    import lmdb  # only who has LSUN's own exports needs it

    return lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir())


def _read_lmdb(path: Path, key: bytes) -> bytes:
    with _opened_lmdb(path).begin() as transaction:
        data = transaction.get(key)
    if data is None:
        raise Unusable("unreadable", f"{path.name} has no entry {key!r}")
    return bytes(data)
