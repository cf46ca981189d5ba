"""Progress of long tasks: a bar on a terminal, a plain line now and then in a job's log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


@contextlib.contextmanager
def progress(label: str, total: int, *, show: bool = True, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield `tick(n)`, to be called when `n` more of `total` are done; `done` were done before. Writes to stderr."""
    if not show:
        yield _silent
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, completed=done)
            yield lambda n: bar.advance(task, n)
    else:
        yield _lines(label, total, done)


def _silent(_: int) -> None:
    pass


def _lines(label: str, total: int, done: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    count = done

    def tick(n: int) -> None:
        nonlocal count, last
        count += n
        now = time.monotonic()
        if now - last >= LINE_EVERY_SECONDS or count >= total > done:
            rate = (count - done) / max(now - start, 1e-9)
            left = (total - count) / max(rate, 1e-9)
            print(f"{label}: {count}/{total} ({rate:.1f}/s, {left:.0f} s left)", file=sys.stderr, flush=True)
            last = now

    return tick
