"""Stopping on request: a signal sets a flag, all ranks agree at a step boundary, all save, then the launcher goes on.

Slurm announces the end of a job by a signal (`--signal=USR2@90`), preemption by SIGTERM or the same signal. Whoever
launched us may have installed a handler that requeues the job: it is kept, and called by `hand_over` once the state
is safe on the disk. A second signal while saving changes nothing.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
STOPPED = 75  # exit code: saved, to be started again (EX_TEMPFAIL)


class Stop:
    """A flag that signals or the job's end time set. Use as a context manager in the main thread."""

    def __init__(self, *, lead_seconds: float = 0.0) -> None:
        """`lead_seconds`: ask to stop this long before Slurm's end time of the job, where Slurm tells one."""
        end = os.environ.get("SLURM_JOB_END_TIME")
        self._deadline = float(end) - lead_seconds if end and lead_seconds else None
        self._previous: dict[int, Any] = {}
        self.signal: int | None = None
        self.asked_at: float | None = None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _set(self, number: int, _: FrameType | None) -> None:
        # A flag and nothing else: whatever the interpreter was in the middle of goes on as if nothing had happened.
        if self.asked_at is None:
            self.signal, self.asked_at = number, time.time()

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop. Other ranks may not have been yet: agree before acting."""
        if self.asked_at is None and self._deadline is not None and time.time() >= self._deadline:
            self.asked_at = time.time()
        return self.asked_at is not None

    def hand_over(self) -> int:
        """Call the launcher's own handler for the signal, which may requeue and exit; else return the exit code.

        In a step of Slurm where nobody handles SIGTERM, nothing heeds it from here on: srun sends it to the other ranks
        as soon as one has left with that code, and whoever was still on the way out would leave with another one.
        """
        handler, alone = self._previous.get(self.signal or 0), self._previous.get(signal.SIGTERM) == signal.SIG_DFL
        self.__exit__()
        if alone and "SLURM_PROCID" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if callable(handler) and handler is not signal.default_int_handler:
            print("state saved; handing over to the launcher", file=sys.stderr, flush=True)
            handler(self.signal, None)
        return STOPPED
