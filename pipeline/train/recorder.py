"""Where numbers and pictures of a run go: `metrics.jsonl` is the source of truth, TensorBoard a view of it.

Both hold every step once. Rows of steps that are trained again, after a kill or a rollback, are removed first; in
between, rows are only appended.
"""

import contextlib
import json
import time

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from pipeline.runtime.files import append_line, atomic_path, lines_backwards, read_lines
from pipeline.runtime.run_dir import RunDir
from pipeline.train.trackers import Trackers


class Recorder:
    """The one writer of a run's metrics, on rank 0. On other ranks (`active=False`) it does nothing."""

    def __init__(self, run: RunDir, *, step: int, active: bool, trackers: Trackers | None = None) -> None:
        """Continue after `step`: what an earlier start recorded beyond it is forgotten."""
        self._run, self._active, self._trackers = run, active, trackers
        self._start = len(read_lines(run.starts))
        self._writer: SummaryWriter | None = None
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Forget everything beyond `step`, which is trained again. Readers see the old file or the new one."""
        if not self._active:
            return
        end = None  # of the rows that stay, where others follow them; rows stand in the order of their steps
        for start, line in lines_backwards(self._run.metrics):
            if _step_of(line) <= step:
                break
            end = start
        if end is not None:
            with self._run.metrics.open("rb") as file, atomic_path(self._run.metrics) as partial:
                partial.write_bytes(file.read(end))
        if self._writer is None:
            self._writer = SummaryWriter(str(self._run.tensorboard), purge_step=step + 1)
        else:  # what purge_step writes; a second file of this second might be read before the first
            log = SessionLog(status=SessionLog.START)
            event = Event(step=step + 1, session_log=log)
            self._writer.file_writer.add_event(event, step=step + 1)  # type: ignore[attr-defined]  # it has been opened

    def add(self, step: int, values: dict[str, float]) -> None:
        """One row of scalars."""
        if self._writer is None:
            return
        append_line(self._run.metrics, {"step": step, "start": self._start, "time": time.time(), **values})
        for name, value in values.items():
            self._writer.add_scalar(_tag(name), value, step)
        self._writer.flush()
        if self._trackers is not None:
            self._trackers.add(step, {_tag(name): value for name, value in values.items()})

    def picture(self, step: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """An image, [H, W, C]."""
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")
            self._writer.flush()
            if self._trackers is not None:
                self._trackers.picture(step, name, pixels)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
        if self._trackers is not None:
            self._trackers.close()


def _tag(name: str) -> str:
    """TensorBoard folds tags by what stands before the slash, and shows folds by the alphabet.

    Loss and rate come first, then speed; what evaluation measures comes after them.
    """
    first = {"loss": "loss/train", "lr": "loss/rate", "valid/loss": "loss/valid"}
    if name in first:
        return first[name]
    return name.replace("speed/", "progress/") if "/" in name else f"progress/{name}"


def _step_of(line: bytes) -> float:
    """The step of a row; infinity for a line that a kill cut short."""
    with contextlib.suppress(ValueError):
        return float(json.loads(line)["step"])
    return float("inf")


def seconds_of_starts(run: RunDir) -> float:
    """Wall seconds of all starts of a run so far, each from its beginning to its last sign of life in metrics.jsonl.

    Every start notes those of the starts before it, for it then removes rows of steps that it trains again.
    """
    starts = read_lines(run.starts)
    if not starts:
        return 0.0
    begun = float(starts[-1]["time"])
    last = begun
    for _, line in lines_backwards(run.metrics):
        with contextlib.suppress(ValueError):  # a line that a kill cut short
            row = json.loads(line)
            last = float(row["time"]) if row["start"] == len(starts) else begun
            break
    return float(starts[-1].get("earlier_seconds", 0.0)) + max(last, begun) - begun


def goodput(kept_seconds: float, wall_seconds: float) -> float:
    """Share of the wall time of all starts that was spent on steps that were kept, in [0, 1]."""
    return min(kept_seconds / wall_seconds, 1.0) if wall_seconds > 0 else 1.0
