"""Files and directories that exist only when they are complete.

Everything here writes under a temporary name in the same directory, flushes to the disk, and renames: a reader sees
the old state or the new one, never half of it, whatever is killed. Torch-free.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import Incomplete, UserError

TEMPORARY = ".partial-"  # part of every unfinished name: readers ignore them, `sweep_partial` removes them


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses and no reader takes for finished."""
    return path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex[:12]}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or make a directory at; on a clean exit it becomes `path`.

    Nothing is left at either name where the body raises, nor of the folders that were made for it. A finished
    directory is never overwritten (`Incomplete` says so); a finished file is replaced. A full disk becomes a
    `UserError` that names the path.
    """
    missing = missing_folders(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(path)
    try:
        yield partial
        if partial.is_dir():
            for file in sorted(partial.rglob("*")):
                _open_to_others(file)
                fsync_path(file)
            if path.exists():
                raise Incomplete(f"{path} exists already and a finished directory is never overwritten.")
        _open_to_others(partial)
        fsync_path(partial)
        partial.rename(path)
        fsync_path(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        remove_empty(missing)


def _open_to_others(path: Path) -> None:
    """Give a file the rights that the umask leaves. Some libraries write theirs for the owner alone (safetensors)."""
    if path.is_file():
        status = Path("/proc/self/status")
        found = re.search(r"^Umask:\s*(\d+)", status.read_text(), re.MULTILINE) if status.exists() else None
        mode = path.stat().st_mode
        wanted = mode | (0o666 & ~int(found[1], 8) if found else 0)
        if wanted != mode:
            path.chmod(wanted)


def missing_folders(path: Path) -> list[Path]:
    """A folder and those above it that do not exist yet, the deepest first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are there and empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def disk_error(error: OSError, path: Path) -> Exception:
    """A full disk or exceeded quota as a `UserError` that says what to do; any other error as it came."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    free = shutil.disk_usage(path.parent if path.parent.exists() else Path.cwd()).free
    return UserError(
        f"No space left while writing {path} ({free / 2**30:.2f} GiB free on that file system; quota may be lower). "
        "What was finished before is untouched. Free space, or point the directory elsewhere, and start again."
    )


def write_text(path: Path, text: str) -> None:
    """Write a whole text file at once."""
    with atomic_path(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; what is not there or not JSON raises `Incomplete` with the path."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise Incomplete(f"{path} does not exist.") from error
    except ValueError as error:
        raise Incomplete(f"{path} is not readable JSON ({error}). Delete it and make it anew.") from error


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line in a single write, so that lines of several writers do not mix.

    A line that a killed writer cut short is ended first, so that it takes no other with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, ("\n" * cut + json.dumps(value, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[Any]:
    """All whole JSON lines of a file; a line cut by a kill is passed over. A file that is not there has none."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def lines_backwards(path: Path, *, block: int = 1 << 16) -> Iterator[tuple[int, bytes]]:
    """Where each line of a file begins, and the line without its end, from the last line to the first.

    Only what is asked for is read, in pieces of `block` bytes. A file that is not there has no lines.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        rest = b""  # read, from `start` on, and not given out yet
        while start > 0:
            size = min(block, start)
            start = file.seek(start - size)
            first, *lines = (file.read(size) + rest).splitlines(keepends=True)
            end = start + len(first) + sum(map(len, lines))
            for line in reversed(lines):
                end -= len(line)
                yield end, line.rstrip(b"\n")
            rest = first  # its beginning may lie in the piece before
        if rest:
            yield 0, rest.rstrip(b"\n")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(value: Any) -> str:
    """Hex sha256 of a JSON-like value: equal settings give equal hashes on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sweep_partial(directory: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what killed writers left under temporary names, of those that nobody wrote to for so long.

    Call it where there is one writer, or with an age that no live writer's file reaches.
    """
    for path in directory.glob(f"*{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):
            if older_than_s and time.time() - path.stat().st_mtime < older_than_s:
                continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
