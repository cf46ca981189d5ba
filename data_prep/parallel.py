"""Independent jobs on several processes. Results may come in any order: nothing may depend on it."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipeline.runtime.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


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
        os.environ[threads] = (
            os.environ.get(threads) or "1"
        )  # read by the workers when they start: each of them is one core's work
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
