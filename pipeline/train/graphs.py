"""Forward and backward pass as one CUDA graph: see `pipeline.runtime.cuda_graphs`."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.config.schema_objectives import objective_kind
from pipeline.data.batches import Batch
from pipeline.objectives.objective import Objective
from pipeline.runtime import distributed
from pipeline.runtime.cuda_graphs import recorded
from pipeline.runtime.errors import UserError


def uses_graph(cfg: Config, device: torch.device) -> bool:
    """Whether forward and backward are one graph: `train.cuda_graph`, or where it holds on a single GPU.

    Raises:
        UserError: where it was asked for and there is no GPU.
    """
    asked = cfg.train.cuda_graph
    if asked and device.type != "cuda":
        raise UserError(
            f"train.cuda_graph: found true on {device.type}, expected a GPU. Leave it out, or set it to false."
        )
    if asked is not None:
        return asked
    holds = objective_kind(cfg).diffusion and cfg.train.precision != "fp16"
    costs = cfg.train.compile or cfg.train.activation_checkpointing
    return device.type == "cuda" and distributed.ranks()[1] == 1 and holds and not costs


class GraphedBackward:
    """The loss of one name's micro-batches, and its gradients, averaged over ranks."""

    def __init__(self, objective: Objective, networks: dict[str, nn.Module], name: str, *, accumulate: int) -> None:
        """`networks`: as the step calls them, without DDP. `accumulate`: micro-batches of a step."""
        self._objective, self._networks, self._name, self._accumulate = objective, networks, name, accumulate
        self._parameters = [p for p in objective.networks[name].parameters() if p.requires_grad]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._used: list[nn.Parameter] = []  # those that get gradients
        self._gradients: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}

    def __call__(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Set the gradients of the mean loss; return the sums of what is logged, float64 scalars on the GPU."""
        sums: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        for batch in batches:
            for name, value in self._replay(batch).items():
                # The next replay overwrites what this one returned.
                sums[name] = sums[name] + value if name in sums else value.clone()
            if self._accumulate == 1:
                gradients = self._gradients
            elif not gradients:
                gradients = [gradient.clone() for gradient in self._gradients]
            else:
                torch._foreach_add_(gradients, self._gradients)
        distributed.average(gradients)
        for parameter, gradient in zip(self._used, gradients, strict=True):
            parameter.grad = gradient
        return sums

    def _replay(self, batch: Batch) -> dict[str, Tensor]:
        if self._batch is None:
            self._batch = replace(batch)
            self._graph, self._sums = recorded(self._compute, after_warm_up=self._forget)
            self._used = [p for p in self._parameters if p.grad is not None]
            self._gradients = [p.grad for p in self._used if p.grad is not None]
        else:
            for own, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
                own.copy_(new)
        if self._graph is None:
            raise RuntimeError("a graph whose recording failed cannot be replayed")
        self._graph.replay()
        return self._sums

    def _compute(self) -> dict[str, Tensor]:
        if self._batch is None:
            raise RuntimeError("there is no batch to record with")
        values = self._objective.loss(self._name, self._networks, self._batch)
        torch.autograd.backward(values["loss"].mean() / self._accumulate)
        return {name: value.detach().double().sum() for name, value in values.items()}

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _tensors(batch: Batch) -> list[Tensor]:
    found = [batch.images, batch.labels, batch.sample_indices, *batch.draws.values()]
    return found if batch.attributes is None else [*found, batch.attributes]
