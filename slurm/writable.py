"""Whether files and folders can be written: tested before anything is submitted, cancelled or made.

A job that is queued and then cannot be written down would run without anybody knowing of it.
"""

import os
import pwd
import tempfile
from pathlib import Path

from pipeline.runtime.errors import UserError


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
            f"Give a folder that {_name(os.geteuid())} may write to. Nothing was done."
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


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # in a folder that may not be looked into
        return False


def _belongs(path: Path) -> str:
    return f"belongs to {_name(path.stat().st_uid)}"


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
