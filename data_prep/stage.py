"""A stage makes a finished directory from finished directories, and says so with a receipt, written last.

Run again it does nothing when nothing changed, goes on where it was interrupted, and refuses to mix what was made
with other settings. Receipts hold nothing that differs between two runs of the same stage. Independent jobs of a stage
run on several processes; their results come in any order, and nothing depends on it.
"""

import errno
import multiprocessing
import os
import pwd
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import TEMPORARY, disk_error, read_json, temporary_name, write_json
from pipeline.runtime.parts import writing

RECEIPT = "receipt.json"
OTHERWISE = "give the new data another data.name"
STARTED = "started.json"  # the inputs of a stage that is not finished
Job = TypeVar("Job")
Result = TypeVar("Result")


def run_whole(
    name: str, directory: Path, inputs: Mapping[str, Any], *, work: Callable[[Path], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Like `run_stage`, for work that is done in one go: `work` is given an empty directory of a temporary name.

    What fails or is killed leaves nothing that counts. Where two do the same work at once, the first one counts.
    """
    inputs = dict(inputs)
    if finished(directory) is None:
        partial = temporary_name(directory)
        try:
            partial.mkdir(parents=True)
            write_json(partial / RECEIPT, {"stage": name, "inputs": inputs, **work(partial)})
            if finished(directory) is None:
                partial.rename(directory)
        except OSError as error:
            if finished(directory) is None:
                raise disk_error(error, directory) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _matching_receipt(name, directory, inputs)


def run_stage(
    name: str,
    directory: Path,
    inputs: Mapping[str, Any],
    *,
    work: Callable[[Path], Mapping[str, Any] | None],
    otherwise: str = OTHERWISE,
) -> Mapping[str, Any]:
    """Bring `directory` to a finished state, calling `work(directory)` where it is not; the receipt is returned.

    `inputs` is everything that decides the result. `work` must itself cope with what an earlier, killed call left
    there; it returns facts for the receipt, or None where the work is not complete yet (other processes have parts
    of it). Raises `UserError` where the directory was made, or begun, from other inputs; `otherwise` ends its advice.
    """
    inputs = dict(inputs)
    if finished(directory):
        return _matching_receipt(name, directory, inputs, otherwise)
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / STARTED).exists():
        begun = read_json(directory / STARTED)
        _refuse_to_mix(name, directory, made_from=begun, inputs=inputs, otherwise=otherwise)
    else:
        with writing(directory):  # else another process that begins here takes it for what a killed writer left
            write_json(directory / STARTED, inputs)
    facts = work(directory)
    if facts is None:
        return {}
    receipt = {"stage": name, "inputs": inputs, **facts}
    with writing(directory):
        write_json(directory / RECEIPT, receipt)
    (directory / STARTED).unlink(missing_ok=True)
    return receipt


def finished(directory: Path) -> dict[str, Any] | None:
    """The receipt of a finished stage; None where it is not finished."""
    return read_json(directory / RECEIPT) if (directory / RECEIPT).exists() else None


def denied(error: OSError, settings: Mapping[str, Path]) -> Exception:
    """An error about rights, or about a file where a folder should be, as a `UserError` that says which setting leads
    there and whose the path is; any other error as it came.

    Args:
        settings: what may be at fault: name of a setting -> its path.
    """
    known = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
    if error.errno not in known or error.filename is None:
        return error
    path = Path(os.fsdecode(error.filename)).absolute()
    setting = next((name for name, place in settings.items() if path.is_relative_to(place.absolute())), "data_dir")
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    return UserError(
        f"{setting}: cannot use {path.name.partition(TEMPORARY)[0]} in {path.parent} ({error.strerror}): {there} "
        f"belongs to {_name(there.lstat().st_uid)}, and this process runs as {_name(os.geteuid())}. Give another "
        f"{setting}, or let {_name(there.lstat().st_uid)} change the rights."
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user whom this machine does not know
        return f"user {uid}"


def _matching_receipt(name: str, directory: Path, inputs: dict[str, Any], otherwise: str = OTHERWISE) -> dict[str, Any]:
    receipt: dict[str, Any] = read_json(directory / RECEIPT)
    _refuse_to_mix(name, directory, made_from=receipt["inputs"], inputs=inputs, otherwise=otherwise)
    return receipt


def _refuse_to_mix(name: str, directory: Path, *, made_from: Any, inputs: Any, otherwise: str) -> None:
    changes = list(_differences(made_from, inputs, ""))
    if changes:
        shown = "\n".join(f"  - {change}" for change in changes[:8])
        raise UserError(
            f"{directory} was made by '{name}' from something else:\n{shown}\n"
            f"It is left as it is. Delete it to make it anew, or {otherwise}."
        )


def _differences(old: Any, new: Any, place: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
    elif _plain(old) != _plain(new):
        yield f"{place}: was {old}, now {new}"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def cores() -> int:
    """Processor cores that this process may use: on a shared node fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def run_parallel(work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int) -> Iterator[Result]:
    """Call `work` (a picklable function) on every job, and yield results as they are done.

    With one worker everything happens in this process. The workers end when this process is killed. A worker that is
    killed (for memory, usually) is an error that says so; what the others finished stays.
    """
    if workers <= 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
    # Read by the workers when they start: each of them is one core's work.
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[threads] = os.environ.get(threads) or "1"
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            yield from _in_flight(pool, work, iter(jobs), limit=2 * workers)
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process was killed, most often for want of memory. Finished shards stay. "
                f"Start the command again, with fewer than {workers} --workers or more memory."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _in_flight(
    pool: ProcessPoolExecutor, work: Callable[[Any], Result], jobs: Iterator[Any], *, limit: int
) -> Iterator[Result]:
    """Keep a few jobs submitted at a time, so that a long list of jobs is never in memory."""
    pending: set[Future[Result]] = set()
    for job in jobs:
        pending.add(pool.submit(work, job))
        if len(pending) >= limit:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def _end_with_parent() -> None:
    """In a worker: end at once when the parent is gone, even by SIGKILL, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
