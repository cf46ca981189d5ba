"""How far a job is, from what it leaves on the disk: rows of metrics, or the last line of its log."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import RunDir
from slurm.failures import last_words

_TAIL_BYTES = 200_000  # of metrics.jsonl: enough for the rows of the last minutes, however long the run
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

    def words(self, *, running: bool = True) -> str:
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
    step = max(int(rows[-1]["step"]) if rows else 0, run.latest_step() or 0)
    total = plan.get("total_steps")
    rate = _newest(rows, "speed/images_per_second")
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
    """The last line of a log that the job itself wrote."""
    lines = [line.strip() for line in last_words(log, size=2000).replace("\r", "\n").splitlines()]
    return next((line for line in reversed(lines) if line and not _SUBMITIT.match(line)), "")


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min, 1 d 3 h."""
    whole = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {small_unit}"
    return f"{whole} s"


def newest_log(record: Path) -> Path | None:
    """The log of rank 0 that was written last."""
    return max(record.glob("*_0_log.out"), key=lambda p: p.stat().st_mtime, default=None)
