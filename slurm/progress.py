"""How far jobs are, from what they leave on the disk: rows of metrics, or the last line of a log; and a live table."""

import json
import re
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import RunDir
from slurm.failures import last_words, of_last_start

_TAIL_BYTES = 200_000  # of metrics.jsonl: enough for the rows of the last minutes, however long the run
LINE_EVERY_SECONDS = 10.0
COLOURS = {"complete": "green", "running": "cyan", "failed": "red", "blocked": "red", "cancelled": "yellow"}
COLOURS |= {"held": "yellow", "suspended": "yellow"}
_SUBMITIT = re.compile(r"^submitit (INFO|WARNING|ERROR)")


@dataclass(frozen=True)
class Training:
    """Where a training stands."""

    step: int
    total: int | None
    images_per_second: float | None
    eta_seconds: float | None
    goodput: float | None  # share of wall time spent on steps that were kept, over all starts
    loss: float | None
    starts: int

    def text(self, *, running: bool = True) -> str:
        """One line: where it is and, while it runs, how fast."""
        parts = [f"step {self.step}" + (f"/{self.total}" if self.total else "")]
        if running and self.images_per_second is not None:
            parts.append(f"{self.images_per_second:.0f} images/s")
        if running and self.eta_seconds is not None:
            parts.append(f"{duration(self.eta_seconds)} left")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        return ", ".join(parts)


def training_of(run: RunDir) -> Training | None:
    """From the run's own files; None before the first start."""
    starts = read_lines(run.starts)
    if not starts:
        return None
    plan = starts[-1].get("plan", {})
    rows = tail_rows(run.metrics)
    now = [row for row in rows if row.get("start", len(starts)) == len(starts)]  # not an earlier start's pace
    step = max(int(rows[-1]["step"]) if rows else 0, run.latest_step() or 0)
    total = plan.get("total_steps")
    rate = _newest(now, "speed/images_per_second")
    batch = _batch(rows)
    left = (total - step) * batch / rate if total and rate and batch else None
    return Training(step, total, rate, left, _newest(rows, "speed/goodput"), _newest(rows, "loss"), len(starts))


def tail_rows(path: Path) -> list[dict[str, Any]]:
    """The last rows of a file of JSON lines, without reading a long file whole."""
    if not path.is_file() or path.stat().st_size < _TAIL_BYTES:
        return read_lines(path)
    lines = last_words(path, size=_TAIL_BYTES).splitlines()[1:]
    return [json.loads(line) for line in lines if line.endswith("}")]


def _newest(rows: list[dict[str, Any]], name: str) -> float | None:
    return next((float(row[name]) for row in reversed(rows) if name in row), None)


def _batch(rows: list[dict[str, Any]]) -> float | None:
    """Images of one step, from a row that counts both."""
    return next((row["images"] / row["step"] for row in reversed(rows) if row.get("images") and row["step"]), None)


def last_line(log: Path) -> str:
    """The last line of a log that the job itself wrote since it started last; "" where it has said nothing yet."""
    lines = [line.strip() for line in of_last_start(last_words(log, size=2000)).replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line and not _SUBMITIT.match(line)), "")


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min, 1 d 3 h."""
    whole = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {small_unit}"
    return f"{whole} s"


def newest_log(record: Path, ids: Collection[str] | None = None) -> Path | None:
    """The log of rank 0 that was written last; of the jobs `ids` alone, where they are given."""
    logs = [p for p in record.glob("*_0_log.out") if ids is None or p.name.removesuffix("_0_log.out") in ids]
    return max(logs, key=lambda p: p.stat().st_mtime, default=None)


@dataclass
class Row:
    """One job in the progress table."""

    status: str = "waiting"
    detail: str = ""
    began: float | None = None
    seconds: float = 0.0


class ProgressTable:
    """Live progress of a graph: it redraws itself on a terminal, and is a plain line now and then in a log."""

    def __init__(self, names: Iterable[str], *, title: str) -> None:
        """`names` in the order of the graph."""
        self.rows = {name: Row() for name in names}
        self._title = title
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4) if sys.stderr.isatty() else None
        self._said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> "ProgressTable":
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
            self._live.__exit__(kind, error, trace)

    def show(self, name: str, status: str, detail: str = "") -> None:
        """The state of a job and what there is to say about it."""
        row, now = self.rows[name], time.monotonic()
        changed = status != row.status
        if status == "running" and row.began is None:
            row.began = now
        if row.began is not None and (status == "running" or changed):
            row.seconds = now - row.began
        row.status, row.detail = status, detail
        if self._live is not None:
            self._live.update(self.table())
        else:
            self._line(name, row, changed=changed)

    def _line(self, name: str, row: Row, *, changed: bool) -> None:
        detail, said_at = self._said.get(name, ("", 0.0))
        due = row.detail != detail and time.monotonic() - said_at > LINE_EVERY_SECONDS
        if changed or due:
            took = f" ({duration(row.seconds)})" if row.began is not None and row.status != "running" else ""
            print(f"{name}: {row.status}{took}{': ' if row.detail else ''}{row.detail}", file=sys.stderr, flush=True)
            self._said[name] = (row.detail, time.monotonic())

    def table(self) -> Group:
        """All rows, for a terminal or the end of a log."""
        table = Table()
        for column in ("job", "state", "time", ""):
            table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
        for name, row in self.rows.items():
            took = duration(row.seconds) if row.began is not None else ""
            # Text, so that brackets in a log's line are not taken for markup.
            table.add_row(name, Text(row.status, COLOURS.get(row.status, "")), took, Text(row.detail))
        return Group(Text(self._title), table)  # a title of the table would be as narrow as its columns
