"""What training reports: scalars, progress, speed, saves and stops. The loop says when, this file says how."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.config.plan import due
from pipeline.data.batches import LoadedBatch
from pipeline.runtime import distributed
from pipeline.runtime.progress import progress
from pipeline.train.recorder import goodput, seconds_of_starts
from pipeline.train.setup import Session
from pipeline.train.speed import Speed

if TYPE_CHECKING:
    from pipeline.train.loop import Outcome


class Reporter:
    """Collects what steps return and writes it down at the plan's intervals."""

    def __init__(self, s: Session) -> None:
        """Clocks start here: what came before (imports, joining, reading a checkpoint) is not training."""
        self._s = s
        self._stack = ExitStack()
        self._speed = Speed(s)
        self._kept = time.monotonic() - s.state.progress.kept_seconds
        self._begun = self._saved = time.monotonic()
        self._earlier_seconds = seconds_of_starts(s.run)

    def __enter__(self) -> "Reporter":
        s = self._s
        bar = progress("train", s.plan.total_steps, show=s.world.main, done=s.state.progress.step)
        self._tick = self._stack.enter_context(bar)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def next(self, data: Iterator[list[LoadedBatch]]) -> list[LoadedBatch]:
        """The data of the next step; the log says how long the loop waited for it."""
        return self._speed.next(data)

    def step(self, outcome: "Outcome") -> None:
        """Count one step in; write a row when one is due. Rows are means over the steps since the last one."""
        done = self._s.state.progress
        if outcome.finite:
            for name, value in outcome.values.items():
                done.sums[name] = done.sums.get(name, 0.0) + value
            done.count += 1
        else:
            self._say(
                f"step {outcome.step}: loss or gradient is not finite; skipped ({done.skipped_in_a_row} in a row)"
            )
        self._tick(1)
        if due(outcome.step, self._s.plan.log_every):
            self._row(outcome.step)

    def _row(self, step: int) -> None:
        s, done = self._s, self._s.state.progress
        batch = s.cfg.train.global_batch
        row = {name: total / max(done.count, 1) for name, total in done.sums.items()}
        row |= {"images": step * batch, "epoch": step * batch / s.train_data.count}
        row |= {"skipped": done.skipped, "rollbacks": done.rollbacks}
        wall = self._earlier_seconds + time.monotonic() - self._begun
        row |= {**self._speed.row(step), "speed/goodput": goodput(self._kept_seconds(), wall)}
        s.recorder.add(step, row)
        done.sums, done.count = {}, 0

    def values(self, values: dict[str, float]) -> None:
        """A row of its own, such as validation."""
        self._s.recorder.add(self._s.state.progress.step, values)

    def picture(self, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """An image, [H, W, C]."""
        self._s.recorder.picture(self._s.state.progress.step, name, pixels)

    def save_is_due(self) -> bool:
        """Whether rank 0's done asks for a save (`train.checkpoint_minutes`)."""
        minutes = self._s.cfg.train.checkpoint_minutes
        return bool(minutes and self._s.world.main and time.monotonic() - self._saved > 60 * minutes)

    def save(self, *, wait: bool) -> None:
        """Save, unless this step is there, and write down how long training stood still for it. A collective."""
        s, done = self._s, self._s.state.progress
        done.kept_seconds = self._kept_seconds()
        if distributed.decided(lambda: done.step not in s.run.steps()):
            s.saver.save(s.state.snapshot(), wait=wait)
            s.recorder.add(done.step, {"save/stall_seconds": s.saver.stall_seconds})
        self._saved = time.monotonic()

    def stopped(self, asked_at: float | None) -> None:
        """Asked to stop: everything is on the disk now."""
        distributed.barrier()
        waited = time.time() - asked_at if asked_at else math.nan
        self._values_if_finite("save/seconds_from_signal", waited)
        step = self._s.state.progress.step
        kimg = step * self._s.cfg.train.global_batch / 1000
        self._say(
            f"asked to stop: saved at step {step} ({kimg:g} kimg), {waited:.1f} s after the signal. The same command "
            "goes on from there."
        )

    def rolled_back(self, failed_step: int) -> None:
        """Returned to an earlier checkpoint."""
        done = self._s.state.progress
        self._s.recorder.rewind(done.step)
        self._kept = time.monotonic() - done.kept_seconds
        self._tick(done.step - failed_step)
        self._speed.rolled_back(done.step)
        self._say(
            f"{self._s.cfg.train.nonfinite_limit} steps in a row up to {failed_step} were not finite: back to step "
            f"{done.step}, going on with the data after them"
        )

    def _values_if_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self.values({name: value})

    def _kept_seconds(self) -> float:
        return time.monotonic() - self._kept

    def _say(self, text: str) -> None:
        if self._s.world.main:
            print(text, file=sys.stderr, flush=True)
