"""Everything that training changes: weights, averages, moments, a loss scale, and a few numbers: a checkpoint."""

import functools
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from pipeline import averaging
from pipeline.checkpoint import Snapshot, load_strictly, optimizer_tensors, restore_optimizer
from pipeline.config.schema import AverageConfig
from pipeline.runtime.errors import Incomplete
from pipeline.train.loss_scale import LossScale


@dataclass
class Clock:
    """The numbers. `step` is the clock that everything else is a function of."""

    step: int = 0  # completed optimiser steps, skipped ones included
    data_offset: int = 0  # steps of data passed over after rolling back from values that were not finite
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    best: float | None = None  # of the early-stopping metric
    best_step: int = 0
    kept_seconds: float = 0.0  # wall time of the steps that led here, over all starts
    loss_scale: float | None = None  # fp16
    loss_scale_streak: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of logged values since the last log line
    count: int = 0  # steps in `sums`


class State:
    """Networks, their averages and optimisers, and the clock."""

    def __init__(
        self,
        networks: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        *,
        averaged: tuple[str, ...],
        cfg: AverageConfig,
        loss_scale: LossScale | None = None,
    ) -> None:
        """Averages begin as copies of the weights, in fp32 or better. `loss_scale`: of fp16."""
        self.networks, self.optimizers, self.cfg, self.loss_scale = networks, optimizers, cfg, loss_scale
        self.clock = Clock()
        kinds = ["average"] if cfg.half_life else []
        kinds += [f"power-{width:g}" for width in cfg.power_widths]
        self.averages: dict[str, dict[str, Tensor]] = {
            f"{kind}.{name}": {k: _wide(v) for k, v in networks[name].state_dict().items()}
            for kind in kinds
            for name in averaged
        }
        self._averaged = averaged

    def count(self, finite: bool, *, loss_scale: float) -> None:
        """Keep the books of a step. While a loss scale is still coming down, steps that are not finite are expected."""
        searching = self.loss_scale is not None and loss_scale >= 1
        self.clock.skipped += not finite
        self.clock.skipped_in_a_row = 0 if finite or searching else self.clock.skipped_in_a_row + 1

    def update_averages(self, *, batch: int, half_life: float | None) -> None:
        """Take the weights after `clock.step` steps of `batch` images into every average."""
        images = self.clock.step * batch
        for key, average in self.averages.items():
            kind, _, name = key.rpartition(".")
            if kind == "average":
                decay = averaging.exponential_decay(
                    images, batch=batch, half_life=half_life or 0.0, ramp_up=self.cfg.ramp_up
                )
            else:
                decay = averaging.power_decay(images, batch=batch, gamma=averaging.gamma_of(float(kind[6:])))
            averaging.update(average, self._weights[name], decay=decay)

    @functools.cached_property
    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """Views of the weights. Made at the first step: until then, preparing a network may move them."""
        return {name: self.networks[name].state_dict() for name in self._averaged}

    def snapshot(self) -> Snapshot:
        """All of it by file name, without copying. Waits for the device where there is a loss scale."""
        if self.loss_scale is not None:
            self.clock.loss_scale, self.clock.loss_scale_streak = self.loss_scale.numbers()
        tensors = {f"network.{name}": network.state_dict() for name, network in self.networks.items()}
        tensors |= self.averages
        for player, optimizer in self.optimizers.items():
            names: dict[Tensor, str] = {p: n for n, p in self.networks[player].named_parameters()}
            tensors[f"optimizer.{player}"] = optimizer_tensors(optimizer, names)
        return Snapshot(tensors, asdict(self.clock))

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a snapshot, whole. Raises where anything is missing, surplus or of another shape."""
        wanted = self.snapshot().tensors.keys()
        if wanted != snapshot.tensors.keys():
            raise Incomplete(
                f"the checkpoint holds {sorted(snapshot.tensors)}, expected {sorted(wanted)}: it was made with other "
                "settings of the model or of train.average"
            )
        for name, network in self.networks.items():
            load_strictly(network, snapshot.tensors[f"network.{name}"], what="the checkpoint")
        for key, average in self.averages.items():
            for k, tensor in average.items():
                tensor.copy_(snapshot.tensors[key][k])
        for player, optimizer in self.optimizers.items():
            named = dict(self.networks[player].named_parameters())
            restore_optimizer(optimizer, named, snapshot.tensors[f"optimizer.{player}"])
        self.clock = Clock(**snapshot.numbers)
        if self.loss_scale is not None:
            self.loss_scale.restore(self.clock.loss_scale, self.clock.loss_scale_streak)


def _wide(tensor: Tensor) -> Tensor:
    narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.detach().to(torch.float32 if narrow else tensor.dtype, copy=True)
