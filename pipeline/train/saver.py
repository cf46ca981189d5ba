"""Saving: on rank 0, at once or in the background with at most one in flight; rotation after commit."""

import threading
import time

from pipeline import checkpoint
from pipeline.checkpoint import Snapshot
from pipeline.runtime.files import sweep_partial, write_json
from pipeline.runtime.run_dir import FINISHED, RunDir


class Saver:
    """Writes checkpoints of one run. The others of its ranks call nothing: each has the same weights."""

    def __init__(self, run: RunDir, *, keep_last: int, keep_every: int | None, background: bool) -> None:
        """`background`: training goes on while a copy of the state is written."""
        self._run, self._keep_last, self._keep_every = run, keep_last, keep_every
        self._background = background
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.stall_seconds = 0.0  # how long the last save kept training waiting

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """Save; `wait` returns only when it is on the disk. A failure of the save before is raised here."""
        start = time.monotonic()
        self.finish()
        if self._background and not wait:
            self._thread = threading.Thread(target=self._try, args=(checkpoint.to_cpu(snapshot),), daemon=False)
            self._thread.start()
        else:
            self._write(snapshot)
        self.stall_seconds = time.monotonic() - start

    def finish(self) -> None:
        """Wait for a save in the background, and raise what it met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close_run(self, step: int) -> None:
        """Mark the run as finished at `step`."""
        write_json(self._run.checkpoints / FINISHED, {"step": step})

    def _try(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except BaseException as error:
            self._failure = error

    def _write(self, snapshot: Snapshot) -> None:
        checkpoint.write(self._run.checkpoint(snapshot.step), snapshot)
        checkpoint.rotate(self._run, keep_last=self._keep_last, keep_every=self._keep_every)


def clean(run: RunDir) -> None:
    """Remove what killed saves and rotations left. Call it before training starts, on rank 0."""
    sweep_partial(run.checkpoints)
