"""Files that several people and processes share: whether they can be written, whose they are, and locks on them.

Rights are tested before anything is submitted, cancelled or made: a job that is queued and then cannot be written
down would run without anybody knowing of it.
"""

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from pipeline.runtime.errors import UserError

TURNS = ".submitting"  # the lock of a folder of runs
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # of some shared file systems


@contextlib.contextmanager
def held(path: Path, *, refusal: str, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of this file (flock: released when the holder dies), made where it is missing.

    Where the file system has no locks, nothing is held: what the lock protects against is rare, and work goes on.

    Args:
        seconds: how long to wait for it.
        refusal: what to say where it cannot be had, as a `UserError`.
    """
    with _opened(path) as file:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    holder = path.read_text().strip()
                    raise UserError(f"{refusal}{holder and f' It is {holder}.'}") from error
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                break
        _name_holder(file)
        yield


@contextlib.contextmanager
def taken_back(folders: Iterable[Path], *, keep: Callable[[Path], bool]) -> Iterator[None]:
    """Where a `UserError` refuses what is done here, remove those of these folders that were not there before.

    Folders above them that were made for them, and are empty then, go too. A folder stays where another process has
    been at work in it since, which its lock says, or where `keep` says that something was submitted from it.
    """
    new = [folder for folder in folders if not _is_there(folder)]
    above = {folder: [p for p in folder.parents if not _is_there(p)] for folder in new}
    try:
        yield
    except UserError:
        for folder in new:
            if not folder.is_dir() or keep(folder) or _of_others(folder):
                continue
            shutil.rmtree(folder)
            for parent in above[folder]:
                (parent / TURNS).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # others have begun something there since
                    parent.rmdir()
        raise


def _of_others(folder: Path) -> bool:
    """Whether a lock in a folder names another process."""
    return any(path.read_text() not in ("", _this_process()) for path in folder.rglob("*.lock*"))


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _name_holder(file: TextIO) -> None:
    """Write into a lock who holds it, for whoever is refused. A colleague's file stays as it is."""
    if file.writable():
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            file.truncate(0)
            file.write(_this_process())
            file.flush()


def _opened(path: Path) -> TextIO:
    """The file of a lock. One that a colleague made may be locked though it cannot be written."""
    if _is_there(path) and not os.access(path, os.W_OK, effective_ids=True):
        return path.open()
    check_file(path, "the lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def check_folder(folder: Path, setting: str) -> None:
    """Make and remove a file in the folder, or in the nearest one above it that is there.

    Args:
        setting: what decides where the folder is, for the message.

    Raises:
        UserError: with the setting, the path, its owner and the reason.
    """
    there = folder
    while not _is_there(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{setting}: cannot write to {folder}: {there} {_belongs(there)} ({error.strerror}). "
            f"Give a folder that {name_of(os.geteuid())} may write to. Nothing was done."
        ) from error


def check_file(path: Path, what: str) -> None:
    """Open a file for appending, without adding to it; where it is not there, check its folder.

    Args:
        what: the kind of file, for the message.

    Raises:
        UserError: with the path, its owner and the reason.
    """
    if not _is_there(path):
        check_folder(path.parent, what)
        return
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise UserError(
            f"{what}: cannot write to {path}, which {_belongs(path)} ({error.strerror}). Ask for the right to write "
            "to it, or submit the experiment under another name or runs_dir. Nothing was done."
        ) from error


def who_else_writes(path: Path) -> str:
    """Who may write to a file or folder beside its owner: "group lab", "everybody", or ""."""
    found = path.stat()
    if found.st_mode & stat.S_IWOTH:
        return "everybody"
    if not found.st_mode & stat.S_IWGRP:
        return ""
    try:
        group = grp.getgrgid(found.st_gid)
    except KeyError:
        return f"group {found.st_gid}"
    alone = group.gr_name == name_of(found.st_uid) and not set(group.gr_mem) - {group.gr_name}
    return "" if alone else f"group {group.gr_name}"  # alone: a group that each user has for himself


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # in a folder that may not be looked into
        return False


def _belongs(path: Path) -> str:
    return f"belongs to {name_of(path.stat().st_uid)}"


def name_of(user: int) -> str:
    """A user's name; "user 4711" where the machine has none for the number, as in a container."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def number_of(user: str) -> str | None:
    """The number of a user, from what `name_of` said, or None where this machine does not know the name."""
    with contextlib.suppress(KeyError):
        return str(pwd.getpwnam(user).pw_uid)
    number = user.removeprefix("user ")
    return number if number.isdigit() else None
