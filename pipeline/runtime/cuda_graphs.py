"""CUDA graphs: work on a GPU that is recorded once and then started as a whole.

Python starts a network's thousand kernels one by one, which takes longer than a small network's kernels run. A replay
computes what the recorded calls compute, to the bit, from the same places in memory. It holds for tensors of one shape.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Key = tuple[tuple[torch.Size, torch.dtype] | None, ...]

WARM_UP = 3  # calls before a recording, in which kernels are compiled and workspaces allocated


def recorded(
    work: Callable[[], Result], *, after_warm_up: Callable[[], None] = lambda: None, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of `work`, and the tensors that each replay of it fills anew. Nothing has been replayed yet.

    `work` is called four times; `after_warm_up` follows each of the first three. `pool`: of another graph, whose memory
    this one shares. What a replay of either leaves is then valid until the next replay of any.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
            after_warm_up()
    torch.cuda.current_stream().wait_stream(stream)
    graph, cached = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # narrow copies of weights from outside the graph would be gone by a replay
    try:
        # Threads that read ahead may allocate pinned memory meanwhile: only this thread's calls are recorded.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = work()
    finally:
        torch.set_autocast_cache_enabled(cached)
    return graph, result


class GraphedNetwork:
    """A network for inference: the second call with tensors of one shape is recorded, and replayed from then on.

    Autocast must be the same in all calls. The weights may change in place.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self._network = network
        self._known: dict[Key, _Recorded | None] = {}

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """What the network returns, in memory of its own."""
        key = tuple(None if value is None else (value.shape, value.dtype) for value in inputs)
        if key not in self._known:  # a shape that comes once, such as that of the last batch, is not worth a recording
            self._known[key] = None
            return self._network(*inputs)
        found = self._known[key]
        if found is None:
            found = self._known[key] = _Recorded(self._network, inputs)
        return found.replay(inputs)


class _Recorded:
    def __init__(self, network: Callable[..., Tensor], inputs: tuple[Tensor | None, ...]) -> None:
        self._inputs = [None if value is None else value.clone() for value in inputs]
        self._graph, self._output = recorded(lambda: network(*self._inputs))

    def replay(self, inputs: tuple[Tensor | None, ...]) -> Tensor:
        for own, new in zip(self._inputs, inputs, strict=True):
            if own is not None and new is not None:
                own.copy_(new)
        self._graph.replay()
        return self._output.clone()
