"""One trainer for a run directory at a time: a lock that names its holder and that a dead holder does not keep.

The kernel decides where it can: `flock` on `training.lock` is released when its holder dies. Some shared file systems
refuse `flock`, others grant it on each node for itself. So the file also names the holder, and the holder touches it
every few seconds: before a lock is taken over from another host, somebody watches whether the touches go on.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import UserError

BEAT_SECONDS = 5.0  # between two touches
WATCH_SECONDS = 30.0  # a holder that did not touch its file for so long is dead
RELEASE_SECONDS = 120.0  # a file server may keep the lock of a lost node for so long
_REFUSED = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def only_trainer(path: Path, *, beat: float = BEAT_SECONDS, watch: float = WATCH_SECONDS) -> Iterator[None]:
    """Hold the lock file `path` in this process.

    Args:
        path: the lock file, in the run directory. It stays there, empty while nobody trains.
        beat: seconds between two touches of the file.
        watch: how long a holder on another host is watched before it counts as dead.
    Raises:
        UserError: where another process trains; it says which one and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(path, handle, watch)
        done = threading.Event()
        beating = threading.Thread(target=_touch, args=(path, done, beat), name="run-lock", daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def trainer_of(path: Path, *, watch: float = WATCH_SECONDS) -> str | None:
    """Who holds the lock file `path`, in words; None where nobody who is alive does. The lock is not taken.

    A holder on another host whose lock the kernel does not show here is watched for `watch` seconds.
    """
    holder = _holder(path)
    if not path.exists():
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several may ask at once
        by_kernel = True
    except BlockingIOError:
        return _name(holder) if holder else "another process"
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        by_kernel = False
    finally:
        os.close(handle)  # which releases it
    if holder is None or _earlier_start(holder) or (by_kernel and holder["host"] == socket.gethostname()):
        return None
    return _name(holder) if _is_touched(path, watch) else None


def _take(path: Path, handle: int, watch: float) -> None:
    """Make the lock ours and write our name into it, or raise."""
    by_kernel = _flock(path, handle)
    holder = _holder(path)
    if not (holder is None or _earlier_start(holder) or (by_kernel and holder["host"] == socket.gethostname())):
        print(f"{path} names {_name(holder)}: watching for {watch:.0f} s whether it is alive", file=sys.stderr)
        if _is_touched(path, watch):
            raise UserError(_refusal(path, holder))
    me = _me()
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(me).encode(), 0)
    os.fsync(handle)
    if not by_kernel:  # two may have found it free: the one who wrote last has it
        time.sleep(min(watch, 1.0))
        if (now := _holder(path)) is None or now["token"] != me["token"]:
            raise UserError(_refusal(path, now))


def _flock(path: Path, handle: int) -> bool:
    """Lock the file: True. False where the file system has no locks. Raises where another process holds it."""
    end = None
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            holder = _holder(path)
            if end is None:  # a job that was queued again has no living predecessor, but a file server learns that late
                end = time.monotonic() + (RELEASE_SECONDS if holder and _earlier_start(holder) else 0.0)
            if time.monotonic() >= end:
                raise UserError(_refusal(path, holder)) from error
            time.sleep(0.2)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            return False


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "since": time.time(),
        "token": uuid.uuid4().hex,
    }


def _holder(path: Path) -> dict[str, Any] | None:
    """Who is named in the file; None for nobody. Opened anew: so a network file system asks its server."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # empty, or cut by a kill while it was written
        return None
    return found if isinstance(found, dict) and {"host", "token"} <= found.keys() else None


def _earlier_start(holder: dict[str, Any]) -> bool:
    """Whether the holder was an earlier start of this very job: Slurm ends it before it starts the job again."""
    job = os.environ.get("SLURM_JOB_ID")
    return job is not None and holder["job"] == job and holder["restart"] != os.environ.get("SLURM_RESTART_COUNT", "0")


def _is_touched(path: Path, watch: float) -> bool:
    """Watch the file: whether its holder touches it, or another takes it. One who gives it up leaves it empty."""
    before, end = _changed_at(path), time.monotonic() + watch
    while time.monotonic() < end:
        time.sleep(min(1.0, watch / 10))
        if _changed_at(path) != before:
            return _holder(path) is not None
    return False


def _changed_at(path: Path) -> int:
    with path.open("rb") as file:  # opened anew, see `_holder`
        return os.fstat(file.fileno()).st_mtime_ns


def _touch(path: Path, done: threading.Event, beat: float) -> None:
    while not done.wait(beat):
        with contextlib.suppress(OSError):  # a file server that is away for a moment; the next touch tells
            os.utime(path)


def _refusal(path: Path, holder: dict[str, Any] | None) -> str:
    how = f"mudi cancel {path.parent}"
    if holder and not holder["job"]:
        how = f"kill {holder['pid']} on {holder['host']}"
    return (
        f"{path.parent} is being trained by {_name(holder) if holder else 'another process'}. A run has one trainer at "
        f"a time: wait until it has ended, or end it, which saves its state ({how}), and start again. To train beside "
        "it, choose another name."
    )


def _name(holder: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    job = f", job {holder['job']}" if holder["job"] else ""
    return f"process {holder['pid']} on {holder['host']} (since {since}{job})"
