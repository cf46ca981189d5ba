"""The training loop and its step. Read this first.

`step` is the only number that advances by itself. The data, the learning rate, every random draw and the EMA are
functions of it. So calling `train` again on the same run directory resumes it, and calling it on a finished one does
nothing.

The host never waits for the device. What a step found stands in one vector on the device, summed over the ranks by the
process group that trains. The optimiser reads there whether the step is finite. The host reads it while the next step
runs (`Launched.read`).
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.config.plan import due
from pipeline.config.schema import Config
from pipeline.data.batches import LoadedBatch, batches, reading_threads
from pipeline.objectives.objective import Adapts
from pipeline.runtime import distributed
from pipeline.runtime.distributed import World
from pipeline.runtime.errors import NonFiniteError
from pipeline.runtime.run_dir import RunDir
from pipeline.runtime.sharding import whole
from pipeline.runtime.stopping import Stop
from pipeline.train.evaluation import InLoopMetric, note_best, preview, validate
from pipeline.train.optim import lr_at
from pipeline.train.profiling import Profiler
from pipeline.train.report import Reporter
from pipeline.train.setup import Session, restore_newest, session
from pipeline.train.state import LossScale

STOP_LEAD_SECONDS = 60.0  # before the end time of the Slurm job, where no signal announced it


def train(cfg: Config, run: RunDir) -> int:
    """Train to the last step, or until asked to stop. Returns the exit code: 0 finished, 75 stopped and saved.

    Raises:
        UserError: for input that cannot be trained on, or where another process trains this run.
        NonFiniteError: where the policy for losses or gradients that are not finite is exhausted.
    """
    world = distributed.world_from(dict(os.environ))
    distributed.use_cpus(world)
    distributed.join(world, run.jobs, timeout_seconds=cfg.cluster.rendezvous_s)
    if distributed.decided(run.finished):
        print(f"{run.path} is finished: nothing to do")
        distributed.leave()
        return 0
    with Stop(lead_seconds=STOP_LEAD_SECONDS) as stop:
        finished = _in_session(cfg, run, world=world, stop=stop)
        distributed.leave()  # after the session with its networks is gone
        return 0 if finished else stop.hand_over()


def _in_session(cfg: Config, run: RunDir, *, world: World, stop: Stop) -> bool:
    with session(cfg, run, world) as s, Reporter(s) as report, Profiler(s) as profiler:
        return _run(s, report, stop, profiler)


def _run(s: Session, report: Reporter, stop: Stop, profiler: Profiler) -> bool:
    """Step until the end (True) or until asked to stop (False). Either way the state is then on the disk."""
    plan, data = s.plan, _data(s)
    metric = InLoopMetric(s) if plan.metric_every else None
    if s.state.progress.step == 0:
        report.save(wait=True)  # a full disk shows now rather than hours later, and there is a state to roll back to
    running: deque[Launched] = deque()
    while not _ended(s):
        profiler.step(s.state.progress.step + 1)
        running.append(launch_step(s, report.next(data), stop_asked=stop.asked, save_asked=report.save_is_due()))
        step, final = s.state.progress.step, s.state.progress.step == plan.total_steps
        read = _read(s, report, running, everything=final or plan.pauses_after(step))
        if read.failed is not None:
            running.clear()
            _roll_back(s, report, failed_step=read.failed)
            data = _data(s)
            continue
        best = False
        if due(step, plan.validate_every) or (final and plan.validate_every):
            report.values(values := validate(s))
            best = note_best(s, values)
        if metric and (due(step, plan.metric_every) or final):
            report.values(values := metric.values(s))
            best |= note_best(s, values, kind="in_loop")
        last = _ended(s)
        if due(step, plan.preview_every) or (last and plan.preview_every):
            report.picture(*preview(s))
        if read.stopping or read.save_asked or plan.saves_after(step) or best or last:
            report.save(wait=read.stopping or last)
        if read.stopping and not last:
            report.stopped(stop.asked_at)
            return False
    if s.world.main:
        s.saver.close_run(s.state.progress.step)
    distributed.barrier()
    return True


def _ended(s: Session) -> bool:
    """Whether the last step is done, or the early-stopping metric has not improved for the plan's patience."""
    progress, patience = s.state.progress, s.plan.patience
    stale = patience is not None and progress.best is not None and progress.step - progress.best_step >= patience
    return progress.step >= s.plan.total_steps or stale


def _data(s: Session) -> Iterator[list[LoadedBatch]]:
    """This rank's micro-batches of every step from now on."""
    return batches(
        s.train_data,
        seed=s.cfg.seed,
        start_step=s.state.progress.step + s.state.progress.data_offset,
        global_batch=s.cfg.train.global_batch,
        rank=s.world.rank,
        world_size=s.world.size,
        micro_batch=s.plan.micro_batch,
        flip=s.cfg.train.flip,
        augmentation=s.cfg.train.augmentation,
        draws=s.objective.draws,
        workers=reading_threads(s.cfg.train.workers, cpus=torch.get_num_threads(), cuda=s.device.type == "cuda"),
    )


# --- the step


def launch_step(s: Session, micro_batches: list[LoadedBatch], *, stop_asked: bool, save_asked: bool) -> "Launched":
    """Take one optimiser step. Where a loss or gradient is not finite on any rank, no rank changes its weights.

    Every network that the objective trains is updated in turn: one in diffusion, two in adversarial training.
    """
    progress, cfg = s.state.progress, s.cfg.train
    lr = lr_at(progress.step, cfg=cfg.optim, total_steps=s.plan.total_steps, warmup_steps=s.plan.warmup_steps)
    flags = _on_device((stop_asked, save_asked), s.device)
    found = {}
    for name in s.objective.trained:
        sums = _backward(s, name, micro_batches)
        found[name] = _update(s, name, sums=sums, flags=flags, lr=lr)
    progress.step += 1
    s.state.update_ema(batch=cfg.global_batch, half_life=s.plan.half_life_images)
    return Launched(progress.step, lr, cfg.global_batch, found)


def _on_device(flags: tuple[bool, ...], device: torch.device) -> Tensor:
    values = torch.tensor(flags, dtype=torch.float64, pin_memory=device.type == "cuda")
    return values.to(device, non_blocking=True)


def _backward(s: Session, name: str, micro_batches: list[LoadedBatch]) -> dict[str, Tensor]:
    """Accumulate a network's gradients of the mean loss over the global batch.

    Returns this rank's sums of what is logged, by name: float64 scalars on the device.
    """
    if s.graph is not None:
        return s.graph(name, (batch.to(s.device, s.dtype) for batch in micro_batches))
    networks, scale = s.networks_for(name), s.state.loss_scale
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        quiet = contextlib.nullcontext() if last else s.accelerator.no_sync(s.networks[name])
        with quiet:
            values = s.objective.loss(name, networks, batch.to(s.device, s.dtype))
            loss = values["loss"].mean() / len(micro_batches)
            s.accelerator.backward(loss if scale is None else loss * scale.value)
        for key, value in values.items():
            total = value.detach().double().sum()
            sums[key] = sums[key] + total if key in sums else total
    return sums


def _update(s: Session, name: str, *, sums: dict[str, Tensor], flags: Tensor, lr: float) -> "_Found":
    """Sum over the ranks, and take the optimiser's step where the numbers of every rank are finite.

    Clipping costs no pass over the gradients: the optimiser divides them by `grad_scale` as it reads them. Where
    `found_inf` is 1 it changes nothing. Both are torch's protocol between loss scalers and fused optimisers.
    """
    optimizer, scale, limit = s.state.optimizers[name], s.state.loss_scale, s.cfg.train.optim.clip
    norm = _gradient_norm(s.networks[name])
    if scale is not None:
        norm = norm / scale.value
    mine = torch.stack([(~norm.isfinite()).double(), *flags.unbind(), *sums.values()])
    everyone = distributed.total(mine)
    loss = everyone[len(_FLAGS) + list(sums).index("loss")]
    bad = (everyone[0] > 0) | ~loss.isfinite()
    # A discriminator that has yet to join has no gradients: then no weights decay, and no moments begin.
    optimizer.found_inf = (bad | (norm == 0)).float()  # type: ignore[attr-defined]
    shrink = None if limit is None else (norm / limit).clamp(min=1)
    optimizer.grad_scale = _product(shrink, scale)  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if isinstance(s.objective, Adapts):
        totals = dict(zip(sums, everyone[len(_FLAGS) :].unbind(), strict=True))
        s.objective.adapt(name, totals, step=s.state.progress.step + s.state.progress.data_offset)
    if scale is not None:
        scale.update(bad)
    now = torch.ones_like(loss) if scale is None else scale.value.double()
    vector = torch.cat([bad.double()[None], everyone[1:], norm.double()[None], now[None]])
    return _Found((*_FLAGS, *sums, *_ADDED), vector)


def _gradient_norm(network: nn.Module) -> Tensor:
    """The norm of all gradients, which the ranks have averaged already: the same on each. A collective if sharded."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients))


def _product(shrink: Tensor | None, scale: LossScale | None) -> Tensor | None:
    """What to divide gradients by, float32. None: nothing."""
    if scale is None:
        return None if shrink is None else shrink.float()
    return scale.value if shrink is None else shrink.float() * scale.value


# --- what a step found


_FLAGS = ("bad", "stop", "save")  # first in the vector: number of ranks that met trouble, or were asked
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


class _Found:
    """The vector of one network's update, copied to the host without waiting."""

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


@dataclass(frozen=True)
class Launched:
    """A step that the device was told to take. Its vectors are on their way to the host."""

    step: int
    lr: float
    global_batch: int
    found: dict[str, _Found]  # by the name of the updated network

    def read(self) -> Outcome:
        """Wait until the step is done, and say what it did."""
        outcome = Outcome(self.step)
        for name, found in self.found.items():
            numbers = found.read()
            means = {key: numbers[key] / self.global_batch for key in found.names if key not in _FLAGS + _ADDED}
            prefix = f"{name}/" if len(self.found) > 1 else ""
            outcome.values |= {f"{prefix}{key}": value for key, value in means.items()}
            outcome.values[f"{prefix}grad_norm"] = numbers["grad_norm"]
            outcome.finite &= numbers["bad"] == 0
            outcome.stopping |= numbers["stop"] > 0
            outcome.save_asked |= numbers["save"] > 0
            outcome.loss_scale = numbers["loss_scale"]
        outcome.values["lr"] = self.lr
        return outcome


@dataclass
class _Read:
    """What the steps that were read tell the loop to do."""

    stopping: bool = False
    save_asked: bool = False
    failed: int | None = None  # the step with which too many in a row were not finite


def _read(s: Session, report: Reporter, running: deque[Launched], *, everything: bool) -> _Read:
    """Read the launched steps, all but the newest, so that the device always has one to work on.

    All of them where `everything`, or where a step says to stop or save: then something looks at the state.
    """
    read = _Read()
    while running and (everything or read.stopping or read.save_asked or len(running) > 1):
        outcome = running.popleft().read()
        s.state.count(outcome.finite, loss_scale=outcome.loss_scale)
        report.step(outcome)
        read.stopping |= outcome.stopping
        read.save_asked |= outcome.save_asked
        if s.state.progress.skipped_in_a_row >= s.cfg.train.nonfinite_limit:
            read.failed = outcome.step
            break
    return read


def _roll_back(s: Session, report: Reporter, *, failed_step: int) -> None:
    """Return to the last checkpoint and go on with the data that follows the offending steps.

    A function of the checkpoint and the data alone: a run that is killed before its next save does the same again.
    """
    failed = s.state.progress
    if failed.rollbacks >= s.cfg.train.nonfinite_rollbacks:
        raise NonFiniteError(
            f"{failed.skipped_in_a_row} steps in a row up to step {failed_step} had a loss or gradient that is not "
            f"finite, after {failed.rollbacks} returns to a checkpoint. Lower train.optim.lr, set train.optim.clip, or "
            "use train.precision=fp32; the run continues from its last checkpoint when started again."
        )
    distributed.decided(s.saver.finish)
    if restore_newest(s.run, s.state) is None:
        raise NonFiniteError(f"{s.run.path} has no valid checkpoint to return to.")
    progress = s.state.progress
    progress.data_offset = failed.data_offset + failed_step - progress.step
    progress.rollbacks, progress.skipped, progress.skipped_in_a_row = failed.rollbacks + 1, failed.skipped, 0
    report.rolled_back(failed_step)
