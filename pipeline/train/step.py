"""One optimiser step: every player's gradients, one agreement between the ranks, the update, the averages.

The host never waits for the device here. What a step found stands in one vector on the device, reduced over the ranks
by the group that trains. The update reads there whether the step is finite, and the host reads it while the next step
runs (`Launched.read`).
"""

import contextlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.data.batches import LoadedBatch
from pipeline.runtime import distributed
from pipeline.train.loss_scale import LossScale
from pipeline.train.optim import lr_at
from pipeline.train.session import Session

_FLAGS = ("bad", "stop", "save")  # first in a player's vector: number of ranks that met trouble, or were asked
_ADDED = ("grad_norm", "loss_scale")  # last in it: the same on every rank, and not summed


@dataclass
class Outcome:
    """What a step did. The same on every rank, to the bit."""

    step: int  # completed steps, this one included
    values: dict[str, float] = field(default_factory=dict)  # means over the global batch, gradient norms, lr
    finite: bool = True
    stopping: bool = False  # some rank was asked to stop
    save_asked: bool = False
    loss_scale: float = 1.0  # what it was after the step (fp16); 1 where losses are not scaled


@dataclass(frozen=True)
class Launched:
    """A step that the device was told to take: its vectors are on their way to the host."""

    step: int
    lr: float
    global_batch: int
    found: dict[str, "_Found"]  # by player

    def read(self) -> Outcome:
        """Wait until the step is done, and say what it did."""
        outcome = Outcome(self.step)
        for player, found in self.found.items():
            numbers = found.read()
            means = {name: numbers[name] / self.global_batch for name in found.names if name not in _FLAGS + _ADDED}
            prefix = f"{player}/" if len(self.found) > 1 else ""
            outcome.values |= {f"{prefix}{name}": value for name, value in means.items()}
            outcome.values[f"{prefix}grad_norm"] = numbers["grad_norm"]
            outcome.finite &= numbers["bad"] == 0
            outcome.stopping |= numbers["stop"] > 0
            outcome.save_asked |= numbers["save"] > 0
            outcome.loss_scale = numbers["loss_scale"]
        outcome.values["lr"] = self.lr
        return outcome


class _Found:
    """One player's vector, copied to the host without waiting."""

    def __init__(self, names: tuple[str, ...], vector: Tensor) -> None:
        self.names, self._values = names, vector
        self._copied: torch.cuda.Event | None = None
        if vector.is_cuda:
            self._values = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
            self._values.copy_(vector, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
            self._copied.record()

    def read(self) -> dict[str, float]:
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self.names, self._values.tolist(), strict=True))


def launch_step(s: Session, micro_batches: list[LoadedBatch], *, stop_asked: bool, save_asked: bool) -> Launched:
    """Take the step. One whose loss or gradient is not finite on any rank changes no weights on any."""
    clock, cfg = s.state.clock, s.cfg.train
    lr = lr_at(clock.step, cfg=cfg.optim, total_steps=s.plan.total_steps, warmup_steps=s.plan.warmup_steps)
    flags = _on_device((stop_asked, save_asked), s.device)
    found = {}
    for player in s.objective.players:
        _play_alone(s, player)
        sums = _backward(s, player, micro_batches)
        found[player] = _update(s, player, sums=sums, flags=flags, lr=lr)
    clock.step += 1
    s.state.update_averages(batch=cfg.global_batch, half_life=s.plan.half_life_images)
    return Launched(clock.step, lr, cfg.global_batch, found)


def _on_device(flags: tuple[bool, ...], device: torch.device) -> Tensor:
    values = torch.tensor(flags, dtype=torch.float64, pin_memory=device.type == "cuda")
    return values.to(device, non_blocking=True)


def _play_alone(s: Session, player: str) -> None:
    """Gradients for this player's weights only, where there are others."""
    if len(s.objective.players) > 1:
        for name in s.objective.players:
            s.objective.networks[name].requires_grad_(name == player)


def _backward(s: Session, player: str, micro_batches: list[LoadedBatch]) -> dict[str, Tensor]:
    """Accumulate gradients of the mean loss over the global batch; return this rank's sums of what is logged."""
    if s.graph is not None:
        return s.graph(batch.to(s.device, s.dtype) for batch in micro_batches)
    # The opponents are called bare: a DDP wrapper would wait for gradients that never come.
    networks = {**s.objective.networks, player: s.networks[player]}
    scale = s.state.loss_scale
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        quiet = contextlib.nullcontext() if last else s.accelerator.no_sync(s.networks[player])
        with quiet:
            values = s.objective.loss(player, networks, batch.to(s.device, s.dtype))
            loss = values["loss"].mean() / len(micro_batches)
            s.accelerator.backward(loss if scale is None else loss * scale.value)
        for name, value in values.items():
            total = value.detach().double().sum()
            sums[name] = sums[name] + total if name in sums else total
    return sums


def _update(s: Session, player: str, *, sums: dict[str, Tensor], flags: Tensor, lr: float) -> _Found:
    """Agree with the other ranks, and step where everybody's numbers are finite.

    Clipping costs no pass over the gradients: the optimiser divides them by `grad_scale` as it reads them. Where
    `found_inf` is 1 it changes nothing. Both are torch's protocol between loss scalers and fused optimisers.
    """
    optimizer, scale, limit = s.state.optimizers[player], s.state.loss_scale, s.cfg.train.optim.clip
    norm = _gradient_norm(s.networks[player])
    if scale is not None:
        norm = norm / scale.value
    mine = torch.stack([(~norm.isfinite()).double(), *flags.unbind(), *sums.values()])
    everyone = distributed.total(mine)
    loss = everyone[len(_FLAGS) + list(sums).index("loss")]
    bad = (everyone[0] > 0) | ~loss.isfinite()
    # A player who has yet to join has no gradients: then no weight decays, and no average of gradients begins.
    optimizer.found_inf = (bad | (norm == 0)).float()  # type: ignore[attr-defined]
    shrink = None if limit is None else (norm / limit).clamp(min=1)
    optimizer.grad_scale = _product(shrink, scale)  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if scale is not None:
        scale.update(bad)
    now = torch.ones_like(loss) if scale is None else scale.value.double()
    vector = torch.cat([bad.double()[None], everyone[1:], norm.double()[None], now[None]])
    return _Found((*_FLAGS, *sums, *_ADDED), vector)


def _gradient_norm(network: nn.Module) -> Tensor:
    """The norm of all gradients, which the ranks have averaged already: the same on each."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _product(shrink: Tensor | None, scale: LossScale | None) -> Tensor | None:
    """What to divide gradients by, float32; None: nothing."""
    if scale is None:
        return None if shrink is None else shrink.float()
    return scale.value if shrink is None else shrink.float() * scale.value
