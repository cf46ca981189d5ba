"""One optimiser step: every player's gradients, one small agreement between the ranks, the update, the averages."""

import contextlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.data.batches import Batch
from pipeline.runtime import distributed
from pipeline.train.optim import lr_at
from pipeline.train.session import Session


@dataclass
class Outcome:
    """What a step did. The same on every rank, to the bit."""

    values: dict[str, float] = field(default_factory=dict)  # means over the global batch, gradient norms, lr
    finite: bool = True
    stopping: bool = False  # some rank was asked to stop
    save_asked: bool = False


def train_step(s: Session, micro_batches: list[Batch], *, stop_asked: bool, save_asked: bool) -> Outcome:
    """Take the step. One whose loss or gradient is not finite on any rank changes no weights on any."""
    outcome = Outcome()
    clock, cfg = s.state.clock, s.cfg.train
    lr = lr_at(clock.step, cfg=cfg.optim, total_steps=s.plan.total_steps, warmup_steps=s.plan.warmup_steps)
    for player in s.objective.players:
        _play_alone(s, player)
        sums = _backward(s, player, micro_batches)
        norm = _clip(s, player)
        agreed = _agree(sums, norm, flags=(stop_asked, save_asked))
        values = {name: agreed[name] / cfg.global_batch for name in sums} | {"grad_norm": norm}
        finite = agreed["bad"] == 0 and math.isfinite(values["loss"])
        _update(s, player, lr=lr, norm=norm, finite=finite)
        prefix = f"{player}/" if len(s.objective.players) > 1 else ""
        outcome.values |= {f"{prefix}{name}": value for name, value in values.items()}
        outcome.finite &= finite
        outcome.stopping |= agreed["stop"] > 0
        outcome.save_asked |= agreed["save"] > 0
    outcome.values["lr"] = lr
    clock.step += 1
    _count(s, finite=outcome.finite)
    s.state.update_averages(batch=cfg.global_batch, half_life=s.plan.half_life_images)
    return outcome


def _play_alone(s: Session, player: str) -> None:
    """Gradients for this player's weights only, where there are others."""
    if len(s.objective.players) > 1:
        for name in s.objective.players:
            s.objective.networks[name].requires_grad_(name == player)


def _backward(s: Session, player: str, micro_batches: list[Batch]) -> dict[str, Tensor]:
    """Accumulate gradients of the mean loss over the global batch; return this rank's sums of what is logged."""
    # The opponents are called bare: a DDP wrapper would wait for gradients that never come.
    networks = {**s.objective.networks, player: s.networks[player]}
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        quiet = contextlib.nullcontext() if last else s.accelerator.no_sync(s.networks[player])
        with quiet:
            values = s.objective.loss(player, networks, batch.to(s.accelerator.device, s.dtype))
            s.accelerator.backward(values["loss"].mean() / len(micro_batches))
        for name, value in values.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double().sum().cpu()
    return sums


def _clip(s: Session, player: str) -> float:
    """Clip to the largest allowed norm; the norm before that, after the ranks' gradients were averaged."""
    limit = s.cfg.train.optim.clip
    norm = s.accelerator.clip_grad_norm_(s.networks[player].parameters(), math.inf if limit is None else limit)
    return float(norm)  # syncs the GPU


def _agree(sums: dict[str, Tensor], norm: float, *, flags: tuple[bool, bool]) -> dict[str, float]:
    """The one collective of a step besides the gradients': losses, and whether anybody met trouble or must stop."""
    names = ["bad", "stop", "save", *sums]
    mine = [torch.tensor(float(flag), dtype=torch.float64) for flag in (not math.isfinite(norm), *flags)]
    everyone = distributed.total(torch.stack([*mine, *sums.values()]))
    return dict(zip(names, everyone.tolist(), strict=True))


def _update(s: Session, player: str, *, lr: float, norm: float, finite: bool) -> None:
    optimizer, scaler = s.optimizers[player], s.accelerator.scaler
    if norm == 0:  # a player who has yet to join: without gradients no weight decays and no average of them begins
        optimizer.zero_grad(set_to_none=True)
    if finite or scaler is not None:  # a loss scaler skips by itself, and learns from it
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _count(s: Session, *, finite: bool) -> None:
    """Keep the books of steps that were not finite. While a loss scale is still coming down they are expected."""
    clock, scaler = s.state.clock, s.accelerator.scaler
    if scaler is not None:
        numbers = scaler.state_dict()
        clock.loss_scale, clock.loss_scale_streak = numbers["scale"], numbers["_growth_tracker"]
    searching = scaler is not None and (clock.loss_scale or 0) >= 1
    clock.skipped += not finite
    clock.skipped_in_a_row = 0 if finite or searching else clock.skipped_in_a_row + 1
