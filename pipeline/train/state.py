"""What training changes, and how it is saved: weights, EMA, optimisers, loss scale, and a few numbers of progress.

A checkpoint is all of that. Rank 0 writes it, at once or in the background with at most one in flight, and removes old
ones afterwards.
"""

import functools
import threading
import time
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from pipeline import checkpoint, ema
from pipeline.checkpoint import Snapshot, Tensors, load_strictly, optimizer_tensors, restore_optimizer
from pipeline.config.schema import EMAConfig
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import sweep_partial, write_json
from pipeline.runtime.run_dir import FINISHED, RunDir
from pipeline.runtime.sharding import part, rows, whole


@dataclass
class Progress:
    """The numbers of a checkpoint. Everything else is a function of `step`."""

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


START, GROWTH, BACKOFF, INTERVAL = 65536.0, 2.0, 0.5, 2000


class LossScale:
    """`value`: what losses are multiplied by, a scalar on the device; `streak`: finite steps since it last changed."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), START, device=device)
        self.streak = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, bad: Tensor) -> None:
        """After a step: half of it where the step was not finite, twice after 2,000 finite steps in a row."""
        streak = torch.where(bad, 0, self.streak + 1)
        grown = torch.where(streak == INTERVAL, self.value * GROWTH, self.value)
        self.value = torch.where(bad, self.value * BACKOFF, torch.where(grown.isfinite(), grown, self.value))
        self.streak = torch.where(streak == INTERVAL, 0, streak)

    def numbers(self) -> tuple[float, int]:
        """Value and streak, for a checkpoint. Waits for the device."""
        return float(self.value), int(self.streak)

    def restore(self, value: float | None, streak: int) -> None:
        """Go on from a checkpoint's numbers; None: from the start."""
        self.value = torch.full_like(self.value, START if value is None else value)
        self.streak = torch.full_like(self.streak, streak)


class State:
    """Networks, their EMAs, their optimisers, and the progress of training."""

    def __init__(
        self,
        networks: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        *,
        ema_networks: tuple[str, ...],
        cfg: EMAConfig,
        loss_scale: LossScale | None = None,
    ) -> None:
        """EMAs begin as copies of the weights, in fp32 or better. `loss_scale`: of fp16."""
        self.networks, self.optimizers, self.cfg, self.loss_scale = networks, optimizers, cfg, loss_scale
        self.progress = Progress()
        kinds = ["ema"] if cfg.half_life else []
        kinds += [f"power-{width:g}" for width in cfg.power_widths]
        self.emas: dict[str, dict[str, Tensor]] = {
            f"{kind}.{name}": {k: _wide(v) for k, v in networks[name].state_dict().items()}
            for kind in kinds
            for name in ema_networks
        }
        self._ema_networks = ema_networks

    def count(self, finite: bool, *, loss_scale: float) -> None:
        """Keep the books of a step. While a loss scale is still coming down, steps that are not finite are expected."""
        searching = self.loss_scale is not None and loss_scale >= 1
        self.progress.skipped += not finite
        self.progress.skipped_in_a_row = 0 if finite or searching else self.progress.skipped_in_a_row + 1

    def update_ema(self, *, batch: int, half_life: float | None) -> None:
        """Take the weights after `progress.step` steps of `batch` images into every EMA."""
        images = self.progress.step * batch
        for key, average in self.emas.items():
            kind, _, name = key.rpartition(".")
            if kind == "ema":
                decay = ema.exponential_decay(images, batch=batch, half_life=half_life or 0.0, ramp_up=self.cfg.ramp_up)
            else:
                decay = ema.power_decay(images, batch=batch, gamma=ema.gamma_of(float(kind[6:])))
            ema.update({k: rows(v) for k, v in average.items()}, self._weights[name], decay=decay)

    @functools.cached_property
    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """Views of this rank's weights. Made at the first step: until then, preparing a network may move them."""
        return {name: {k: rows(v) for k, v in self.networks[name].state_dict().items()} for name in self._ema_networks}

    def snapshot(self) -> Snapshot:
        """All of it by file name, without copying; sharded tensors as they are. Waits for the device where there is a
        loss scale."""
        if self.loss_scale is not None:
            self.progress.loss_scale, self.progress.loss_scale_streak = self.loss_scale.numbers()
        tensors = {f"network.{name}": network.state_dict() for name, network in self.networks.items()}
        tensors |= self.emas
        for name, optimizer in self.optimizers.items():
            names: dict[Tensor, str] = {p: n for n, p in self.networks[name].named_parameters()}
            tensors[f"optimizer.{name}"] = optimizer_tensors(optimizer, names)
        return Snapshot(tensors, asdict(self.progress))

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a snapshot, whole. Raises where anything is missing, surplus or of another shape."""
        wanted = self.snapshot().tensors.keys()
        if wanted != snapshot.tensors.keys():
            raise Incomplete(
                f"the checkpoint holds {sorted(snapshot.tensors)}, expected {sorted(wanted)}: it was made with other "
                "settings of the model or of train.ema"
            )
        for name, network in self.networks.items():
            load_strictly(network, snapshot.tensors[f"network.{name}"], what="the checkpoint")
        for key, average in self.emas.items():
            for k, tensor in average.items():
                tensor.copy_(part(snapshot.tensors[key][k], tensor))
        for name, optimizer in self.optimizers.items():
            named = dict(self.networks[name].named_parameters())
            restore_optimizer(optimizer, named, snapshot.tensors[f"optimizer.{name}"])
        self.progress = Progress(**snapshot.numbers)
        if self.loss_scale is not None:
            self.loss_scale.restore(self.progress.loss_scale, self.progress.loss_scale_streak)


def _wide(tensor: Tensor) -> Tensor:
    narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.detach().to(torch.float32 if narrow else tensor.dtype, copy=True)


class Saver:
    """Writes checkpoints of one run, on rank 0. The others give it their parts of a sharded state, or do nothing."""

    def __init__(
        self,
        run: RunDir,
        *,
        keep_last: int,
        keep_every: int | None,
        background: bool,
        writes: bool = True,
        sharded: bool = False,
    ) -> None:
        """`background`: training goes on while a copy of the state is written. `writes`: this is rank 0. `sharded`: a
        rank has its part of the state alone."""
        self._run, self._keep_last, self._keep_every = run, keep_last, keep_every
        self._background, self._writes, self._sharded = background, writes, sharded
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._copies: dict[str, Tensors] = {}
        self.stall_seconds = 0.0  # how long the last save kept training waiting

    def save(self, snapshot: Snapshot, *, wait: bool) -> None:
        """Save; `wait` returns only when it is on the disk. A failure of the save before is raised here.

        All ranks call it: a collective where the state is sharded.
        """
        start = time.monotonic()
        self.finish()
        background = self._background and not wait
        if self._sharded or (self._writes and background):
            snapshot = self._copied(snapshot)
        if self._writes and background:
            self._thread = threading.Thread(target=self._try, args=(snapshot,), daemon=False)
            self._thread.start()
        elif self._writes:
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

        Of a sharded state every rank holds one whole tensor at a time, and rank 0 keeps the copies. From a GPU into
        pinned memory: the copies are queued, and training waits for the device once, for all of them.
        """
        tensors: dict[str, Tensors] = {}
        gpus: set[torch.device] = set()
        for file, found in snapshot.tensors.items():
            room = self._copies.setdefault(file, {})
            for name, value in ((name, whole(value.detach())) for name, value in found.items()):
                if not self._writes:
                    continue
                if name not in room:
                    room[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                room[name].copy_(value, non_blocking=True)
                gpus |= {value.device} if value.is_cuda else set()
            tensors[file] = {name: room[name] for name in found if self._writes}
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
        best = snapshot.numbers.get("best_step") if snapshot.numbers.get("best") is not None else None
        checkpoint.rotate(self._run, keep_last=self._keep_last, keep_every=self._keep_every, best=best)


def clean(run: RunDir) -> None:
    """Remove what killed saves and rotations left. Call it before training starts, on rank 0."""
    sweep_partial(run.checkpoints)
