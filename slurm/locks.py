"""Files that one process at a time holds: flock, which is released when the holder dies."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.runtime.errors import UserError
from slurm.writable import check_file


@contextlib.contextmanager
def held(path: Path, *, refusal: str, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock of this file, made where it is missing.

    Args:
        seconds: how long to wait for it.
        refusal: what to say where it cannot be had, as a `UserError`.
    """
    check_file(path, "the lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise UserError(refusal) from error
                time.sleep(0.1)
        yield
