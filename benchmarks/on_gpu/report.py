"""What the measurements share: a place to write, tables, a limit on time, and a failure that ends one check alone."""

import contextlib
import json
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

WIDTH = 120  # of a line of a table


class TimeUp(BaseException):
    """The part's time is over. No `except Exception` may take it for a failure of one measurement."""


@dataclass
class Report:
    """Prints, keeps the log, and writes all results as json whenever one is added."""

    out: Path
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.log_path = self.out / "log.txt"
        self.log_path.write_text("")

    def say(self, text: str = "") -> None:
        """A line for people, on the screen and in the log."""
        print(text, flush=True)
        self.log(text)

    def log(self, text: str) -> None:
        """For the log alone."""
        with self.log_path.open("a") as file:
            file.write(f"{text}\n")

    def put(self, part: str, value: Any) -> None:
        """Set a part's result and write everything."""
        self.data[part] = value
        self.save()

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Append a row to a part's result and write everything."""
        self.data.setdefault(part, []).append(row)
        self.save()

    def save(self) -> None:
        """Write results.json whole: a run that is cut keeps what it had."""
        partial = self.out / "results.json.partial"
        partial.write_text(json.dumps(self.data, indent=1, default=str))
        partial.rename(self.out / "results.json")

    def failure(self, name: str, error: BaseException) -> str:
        """Note a failure: the traceback in the log, its last line returned and kept in the results."""
        self.log(f"--- {name} failed\n{''.join(traceback.format_exception(error))}")
        last = f"{type(error).__name__}: {error}".strip().splitlines()
        sentence = last[0][:300] if last else type(error).__name__
        self.data.setdefault("failures", []).append({"name": name, "error": sentence})
        self.save()
        return sentence

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of at most WIDTH columns: the first is text, the others are numbers or short words."""
        cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
        widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
        for row in cells:
            line = "  ".join(
                value.ljust(width) if k == 0 else value.rjust(width)
                for k, (value, width) in enumerate(zip(row, widths, strict=True))
            )
            self.say(line[:WIDTH].rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


@dataclass
class Clock:
    """The time of one part. `left()` is asked between measurements."""

    end: float

    def left(self) -> float:
        """Seconds until the part should be done."""
        return self.end - time.monotonic()

    def part(self, share: float) -> "Clock":
        """A share of what is left."""
        return Clock(time.monotonic() + max(self.left(), 0) * share)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` in the body after that much time, once the call that runs then returns to Python."""

    def ring(*_: object) -> None:
        raise TimeUp(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    others = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *others)


@contextlib.contextmanager
def guarded(report: Report, name: str) -> Iterator[None]:
    """A failure in the body is said and kept, and what follows goes on."""
    try:
        yield
    except Exception as error:
        report.say(f"{name}: FAILED: {report.failure(name, error)}"[:WIDTH])
        release()


def release() -> None:
    """Give the memory of what was deleted, or left by a failure, back to the device."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def seconds(work: Callable[[], Any], device: str) -> float:
    """Time of `work` on the device: between two events on a GPU, on the wall on a CPU."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def interleaved(
    sides: dict[str, Callable[[], Any]], *, device: str, rounds: int, least: float, clock: Clock
) -> dict[str, float]:
    """Median seconds of one call of each side, in turns. A round of a side repeats it for about `least` seconds.

    Every side is called once before. Ends early, but after two rounds, where the time is over.
    """
    repeats = {}
    for name, work in sides.items():
        once = seconds(work, device)
        repeats[name] = max(int(least / max(once, 1e-6)), 1)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        if number >= 2 and clock.left() < 0:
            break
        for name, work in sides.items():
            many = repeats[name]
            times[name].append(seconds(lambda work=work, many=many: [work() for _ in range(many)], device) / many)
    return {name: statistics.median(values) for name, values in times.items()}
