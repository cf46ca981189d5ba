"""A timeline of a few training steps (`train.profile`), for Perfetto or chrome://tracing, and what took the time.

Recording slows the recorded steps down and changes no result: nothing here touches a tensor.
"""

import re
import sys
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pipeline.runtime.files import atomic_path
from pipeline.train.setup import Session

WARM_UP = 10  # steps of this start before the first recorded one: memory is allocated by then, and code compiled
OPERATIONS, NAME_WIDTH = 10, 60  # of the printed table
OUTSIDE = "(outside of any operation)"  # Python, waits for data, kernels that no operation of torch launched
_SPAN = re.compile(r"step \d+")


class Profiler:
    """Records `train.profile` steps after WARM_UP, once in a start; then writes RUN/profile and prints a table.

    A span "step K" is what the host does from the launch of step K to the launch of the next, a save or a validation
    included. The device works one step behind the host: its part of step K lies later on the timeline.
    """

    def __init__(self, s: Session) -> None:
        """On rank 0, where `train.profile` is not 0; elsewhere it does nothing."""
        self._path, self._cuda = s.run.profile, s.device.type == "cuda"
        self._steps = s.cfg.train.profile if s.world.main else 0
        self._done, self._seen = self._steps == 0, 0  # steps of this start that have begun
        self._trace: profile | None = None
        self._span: record_function | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Where training ends before all was recorded: write what was, or say that nothing was."""
        if self._done:
            return
        recorded = self._seen - WARM_UP
        trace = self._stop()
        if kind is not None:
            return
        if trace is not None and recorded > 0:
            self._write(trace, recorded)
        else:
            print(
                f"train.profile: nothing was recorded. It begins after {WARM_UP} steps of a start, and training ended "
                f"after {self._seen}.",
                file=sys.stderr,
            )

    def step(self, number: int) -> None:
        """Step `number` begins, and the one before it ends. Call it once for each step."""
        if self._done:
            return
        if self._seen == WARM_UP + self._steps:
            if (trace := self._stop()) is not None:
                self._write(trace, self._steps)
            return
        self._end_span()
        if self._seen == WARM_UP - 1:
            self._trace = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])])
            self._trace.prepare_trace()  # a step early: what it costs is not to fall into the first recorded step
        if self._seen == WARM_UP and self._trace is not None:
            self._trace.start_trace()
        if self._seen >= WARM_UP:
            self._span = record_function(f"step {number}")
            self._span.__enter__()  # type: ignore[no-untyped-call]  # torch has no types here
        self._seen += 1

    def _end_span(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None

    def _stop(self) -> profile | None:
        """End the recording, if there is one, when the device has done what was launched."""
        self._done, trace, self._trace = True, self._trace, None
        self._end_span()
        if trace is None:
            return None
        if self._seen == WARM_UP:
            trace.start_trace()  # one that was only prepared cannot be stopped
        if self._cuda:
            torch.cuda.synchronize()
        trace.stop_trace()
        return trace

    def _write(self, trace: profile, steps: int) -> None:
        with atomic_path(self._path) as partial:
            whole = partial.with_name(f"{partial.name}.gz")  # by its name torch knows that it is to compress
            trace.export_chrome_trace(str(whole))
            whole.rename(partial)
        print(f"{self._path} has {steps} steps: open it in https://ui.perfetto.dev", file=sys.stderr)
        print(table(trace, steps=steps, cuda=self._cuda), file=sys.stderr, flush=True)


def table(trace: profile, *, steps: int, cuda: bool) -> str:
    """The OPERATIONS operations with most time of their own, on the GPU where `cuda`, else on the CPU, as text.

    The replay of a CUDA graph starts kernels of which no operation is known: where these are most of the GPU's time,
    kernels are listed.
    """
    rows = list(trace.key_averages())
    operations = [row for row in rows if row.device_type.name == "CPU"]
    kernels = [row for row in rows if row.device_type.name != "CPU" and not _SPAN.fullmatch(row.key)]
    known, whole = (sum(row.self_device_time_total for row in some) for some in (operations, kernels))
    by_kernel = cuda and 2 * known < whole
    spent: dict[str, float] = defaultdict(float)  # milliseconds of a step
    calls: dict[str, float] = defaultdict(float)
    for row in kernels if by_kernel else operations:
        name = OUTSIDE if _SPAN.fullmatch(row.key) else row.key
        spent[name] += (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1e3 / steps
        calls[name] += row.count / steps
    total = sum(spent.values()) or 1.0
    most = sorted(spent, key=lambda name: -spent[name])[:OPERATIONS]
    lines = [f"{'kernel' if by_kernel else 'operation':<{NAME_WIDTH}} {'calls/step':>10} {'ms/step':>10} {'share':>6}"]
    lines += [
        f"{name[:NAME_WIDTH]:<{NAME_WIDTH}} {calls[name]:>10.1f} {spent[name]:>10.3f} {spent[name] / total:>6.1%}"
        for name in most
    ]
    return "\n".join([f"most time on the {'GPU' if cuda else 'CPU'}:", *lines])
