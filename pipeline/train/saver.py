"""Saving: on rank 0, at once or in the background with at most one in flight; rotation after commit."""

import threading
import time

import torch

from pipeline import checkpoint
from pipeline.checkpoint import Snapshot, Tensors
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
        self._copies: dict[str, Tensors] = {}
        self.stall_seconds = 0.0  # how long the last save kept training waiting

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """Save; `wait` returns only when it is on the disk. A failure of the save before is raised here."""
        start = time.monotonic()
        self.finish()
        if self._background and not wait:
            self._thread = threading.Thread(target=self._try, args=(self._copied(snapshot),), daemon=False)
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

    def _copied(self, snapshot: Snapshot) -> Snapshot:
        """A copy on the CPU that later training steps do not change, in memory that the next save uses again.

        From a GPU into pinned memory: the copies are queued, and training waits for the device once, for all of them.
        """
        tensors: dict[str, Tensors] = {}
        gpus: set[torch.device] = set()
        for file, found in snapshot.tensors.items():
            room = self._copies.setdefault(file, {})
            for name, value in found.items():
                if name not in room:
                    room[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                room[name].copy_(value.detach(), non_blocking=True)
                gpus |= {value.device} if value.is_cuda else set()
            tensors[file] = {name: room[name] for name in found}
        for gpu in gpus:
            torch.cuda.current_stream(gpu).synchronize()
        return Snapshot(tensors, dict(snapshot.numbers))

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
