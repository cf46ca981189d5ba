"""Forward and backward pass as one CUDA graph: see `pipeline.runtime.cuda_graphs`."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.config.schema_objectives import objective_kind
from pipeline.data.batches import Batch
from pipeline.objectives.objective import Networks, Objective, Varies
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
    holds = objective_kind(cfg).graphs and cfg.train.precision != "fp16"
    costs = cfg.train.compile or cfg.train.activation_checkpointing
    return device.type == "cuda" and distributed.ranks()[1] == 1 and holds and not costs


class GraphedBackward:
    """The loss of a network's micro-batches, and its gradients, averaged over ranks.

    There is a graph for each network and each variant of its loss: see `Varies`. They share their memory.
    """

    def __init__(self, objective: Objective, networks_for: Callable[[str], Networks], *, accumulate: int) -> None:
        """`networks_for`: as the loss of one of them calls them, without DDP. `accumulate`: micro-batches of a step."""
        self._objective, self._networks_for, self._accumulate = objective, networks_for, accumulate
        self._recordings: dict[tuple[str, Hashable], _Recording] = {}
        self._pool: Any = None

    def __call__(self, name: str, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Set the gradients of the mean loss of network `name`; return the sums of what is logged.

        These are float64 scalars on the GPU.
        """
        sums: dict[str, Tensor] = {}
        gradients: dict[nn.Parameter, Tensor] = {}
        for batch in batches:
            recording = self._recording(name, batch)
            for key, value in recording.replay(batch).items():
                # The next replay overwrites what this one returned.
                sums[key] = sums[key] + value if key in sums else value.clone()
            gradients = recording.gradients if self._accumulate == 1 else _sum(gradients, recording.gradients)
        distributed.average(list(gradients.values()))
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return sums

    def _recording(self, name: str, batch: Batch) -> "_Recording":
        variant = self._objective.variant(name, batch) if isinstance(self._objective, Varies) else None
        found = self._recordings.get((name, variant))
        if found is None:
            networks = self._networks_for(name)

            def loss(batch: Batch) -> dict[str, Tensor]:
                values = self._objective.loss(name, networks, batch)
                torch.autograd.backward(values["loss"].mean() / self._accumulate)
                return {key: value.detach().double().sum() for key, value in values.items()}

            found = _Recording(loss, list(self._objective.networks[name].parameters()), batch, pool=self._pool)
            self._recordings[name, variant] = found
            self._pool = found.pool
        return found


class _Recording:
    """One graph: the backward pass of a loss for batches of one shape."""

    def __init__(
        self, loss: Callable[[Batch], dict[str, Tensor]], parameters: list[nn.Parameter], batch: Batch, *, pool: Any
    ) -> None:
        self._loss, self._parameters, self._batch = loss, parameters, _copied(batch)
        self._graph, self._sums = recorded(self._compute, after_warm_up=self._forget, pool=pool)
        self.pool = self._graph.pool()
        self.gradients = {p: p.grad for p in parameters if p.grad is not None}  # where replays leave them

    def replay(self, batch: Batch) -> dict[str, Tensor]:
        """Compute `gradients` anew, and return what `loss` does: in the same places each time."""
        for own, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
            own.copy_(new)
        self._graph.replay()
        return self._sums

    def _compute(self) -> dict[str, Tensor]:
        return self._loss(self._batch)

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _sum(gradients: dict[nn.Parameter, Tensor], more: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    """Both together; `gradients` are changed, `more` are not."""
    if both := [p for p in more if p in gradients]:
        torch._foreach_add_([gradients[p] for p in both], [more[p] for p in both])
    return gradients | {p: gradient.clone() for p, gradient in more.items() if p not in gradients}


def _copied(batch: Batch) -> Batch:
    """In memory of its own, which replays write to: that of a batch may be somebody else's."""
    return replace(
        batch,
        images=batch.images.clone(),
        labels=batch.labels.clone(),
        sample_indices=batch.sample_indices.clone(),
        attributes=None if batch.attributes is None else batch.attributes.clone(),
        draws={name: values.clone() for name, values in batch.draws.items()},
    )


def _tensors(batch: Batch) -> list[Tensor]:
    found = [batch.images, batch.labels, batch.sample_indices, *batch.draws.values()]
    return found if batch.attributes is None else [*found, batch.attributes]
