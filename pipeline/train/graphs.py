"""Forward and backward pass as one CUDA graph: recorded once, then started as a whole.

Small networks leave a GPU idle while Python starts their thousand small kernels. A graph starts them all at once. It
holds for one shape of batch on one GPU, and computes what the recorded calls compute.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data.batches import Batch
from pipeline.objectives.objective import Networks, Objective

WARM_UP = 3  # calls before the recording, in which kernels are compiled and workspaces allocated


class GraphedBackward:
    """The loss of one player's micro-batch and its gradients."""

    def __init__(self, objective: Objective, networks: Networks, player: str) -> None:
        """`networks`: as the step calls them. Nothing is recorded until the first call."""
        self._objective, self._networks, self._player = objective, networks, player
        self._parameters = [p for p in objective.networks[player].parameters() if p.requires_grad]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._gradients: list[Tensor | None] = []
        self._sums: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Set the gradients of the mean loss; return the sums of what is logged, float64 scalars on the GPU."""
        if self._graph is None or self._batch is None:
            self._record(batch)
        else:
            for own, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
                own.copy_(new)
        if self._graph is None:
            raise RuntimeError("a graph is recorded before it is replayed")
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return {name: total.clone() for name, total in self._sums.items()}  # the next replay overwrites them

    def _record(self, batch: Batch) -> None:
        self._batch = replace(batch)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._compute()
                self._forget()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._sums = self._compute()
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._graph = graph

    def _compute(self) -> dict[str, Tensor]:
        if self._batch is None:
            raise RuntimeError("there is no batch to record with")
        values = self._objective.loss(self._player, self._networks, self._batch)
        torch.autograd.backward(values["loss"].mean())
        return {name: value.detach().double().sum() for name, value in values.items()}

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _tensors(batch: Batch) -> list[Tensor]:
    found = [batch.images, batch.labels, batch.visits, *batch.draws.values()]
    return found if batch.attributes is None else [*found, batch.attributes]
