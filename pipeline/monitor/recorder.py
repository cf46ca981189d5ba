"""Where numbers and pictures of a run go: `metrics.jsonl` is the source of truth, TensorBoard a view of it."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from pipeline.runtime.files import append_line, read_lines
from pipeline.runtime.run_dir import RunDir


class Recorder:
    """The one writer of a run's metrics, on rank 0. On other ranks (`active=False`) it does nothing."""

    def __init__(self, run: RunDir, *, step: int, active: bool) -> None:
        """Continue after `step`: what an earlier start wrote beyond it is hidden in TensorBoard."""
        self._run, self._active = run, active
        self._start = len(read_lines(run.starts))
        self._writer = SummaryWriter(str(run.tensorboard), purge_step=step + 1) if active else None

    def add(self, step: int, values: dict[str, float]) -> None:
        """One row of scalars."""
        if self._writer is None:
            return
        append_line(self._run.metrics, {"step": step, "start": self._start, "time": time.time(), **values})
        for name, value in values.items():
            # TensorBoard folds tags by what stands before the slash: one fold for what everybody looks at.
            self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)
        self._writer.flush()

    def picture(self, step: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """An image, [H, W, C]."""
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl`, one for each step and kind of row, the latest start's where several wrote it."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for row in read_lines(path):
        kind = "/".join(sorted(k for k in row if k not in ("start", "time")))
        rows[row["step"], kind] = row
    return [rows[key] for key in sorted(rows)]
