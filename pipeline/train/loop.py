"""The training loop. Read this first.

`step` is the one clock: data position, learning rate, every random draw and every average are functions of it, so
calling `train` again on the same run directory resumes it, and calling it on a finished one does nothing.
"""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.config.plan import due
from pipeline.config.schema import Config
from pipeline.data.batches import LoadedBatch, batches, reading_threads
from pipeline.runtime import distributed
from pipeline.runtime.distributed import World
from pipeline.runtime.errors import NonFiniteError
from pipeline.runtime.run_dir import RunDir
from pipeline.runtime.stopping import Stop
from pipeline.train.profiling import Profiler
from pipeline.train.reporting import Reporter
from pipeline.train.session import Session, restore_newest, session
from pipeline.train.step import Launched, launch_step
from pipeline.train.validation import keep_best, preview, validate

STOP_LEAD_SECONDS = 60.0  # before Slurm's end time of the job, where no signal announced it


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
    """Step until the end (True) or until asked to stop (False); either way the state is then on the disk."""
    plan, data = s.plan, _data(s)
    judge = None
    if plan.metric_every:
        from pipeline.train.sampled import Judge  # it loads scipy, which no other training needs

        judge = Judge(s)
    if s.state.clock.step == 0:
        report.save(wait=True)  # a full disk shows now rather than hours later, and there is a state to roll back to
    running: deque[Launched] = deque()
    while not _ended(s):
        profiler.step(s.state.clock.step + 1)
        running.append(launch_step(s, report.next(data), stop_asked=stop.asked, save_asked=report.save_is_due()))
        step, final = s.state.clock.step, s.state.clock.step == plan.total_steps
        heard = _hear(s, report, running, everything=final or plan.pauses_after(step))
        if heard.failed is not None:
            running.clear()
            _roll_back(s, report, failed_step=heard.failed)
            data = _data(s)
            continue
        if due(step, plan.validate_every) or (final and plan.validate_every):
            report.values(values := validate(s))
            keep_best(s, values)
        if judge and (due(step, plan.metric_every) or final):
            report.values(values := judge.values(s))
            keep_best(s, values, kind="sampled")
        last = _ended(s)
        if due(step, plan.preview_every) or (last and plan.preview_every):
            report.picture(*preview(s))
        if heard.stopping or heard.save_asked or due(step, plan.checkpoint_every) or last:
            report.save(wait=heard.stopping or last)
        if heard.stopping and not last:
            report.stopped(stop.asked_at)
            return False
    if s.world.main:
        s.saver.close_run(s.state.clock.step)
    distributed.barrier()
    return True


@dataclass
class _Heard:
    """What the steps that were read say the loop is to do."""

    stopping: bool = False
    save_asked: bool = False
    failed: int | None = None  # the step with which too many in a row were not finite


def _hear(s: Session, report: Reporter, running: deque[Launched], *, everything: bool) -> _Heard:
    """Read the steps that were launched, all but the newest, so that the device always has one to work on.

    All of them where `everything`, or where a step says to stop or save: then something looks at the state.
    """
    heard = _Heard()
    while running and (everything or heard.stopping or heard.save_asked or len(running) > 1):
        outcome = running.popleft().read()
        s.state.count(outcome.finite, loss_scale=outcome.loss_scale)
        report.step(outcome)
        heard.stopping |= outcome.stopping
        heard.save_asked |= outcome.save_asked
        if s.state.clock.skipped_in_a_row >= s.cfg.train.nonfinite_limit:
            heard.failed = outcome.step
            break
    return heard


def _ended(s: Session) -> bool:
    """Whether the last step is done, or validation has been without progress for the plan's patience."""
    clock, patience = s.state.clock, s.plan.patience
    stale = patience is not None and clock.best is not None and clock.step - clock.best_step >= patience
    return clock.step >= s.plan.total_steps or stale


def _data(s: Session) -> Iterator[list[LoadedBatch]]:
    """This rank's micro-batches of every step from now on."""
    return batches(
        s.train_data,
        seed=s.cfg.seed,
        start_step=s.state.clock.step + s.state.clock.data_offset,
        global_batch=s.cfg.train.global_batch,
        rank=s.world.rank,
        world_size=s.world.size,
        micro_batch=s.plan.micro_batch,
        flip=s.cfg.train.flip,
        augmentation=s.cfg.train.augmentation,
        draws=s.objective.draws,
        workers=reading_threads(s.cfg.train.workers, cpus=torch.get_num_threads(), cuda=s.device.type == "cuda"),
    )


def _roll_back(s: Session, report: Reporter, *, failed_step: int) -> None:
    """Return to the last checkpoint and go on with the data that follows the offending steps.

    A function of the checkpoint and the data alone: a run that is killed before its next save does the same again.
    """
    failed = s.state.clock
    if failed.rollbacks >= s.cfg.train.nonfinite_rollbacks:
        raise NonFiniteError(
            f"{failed.skipped_in_a_row} steps in a row up to step {failed_step} had a loss or gradient that is not "
            f"finite, after {failed.rollbacks} returns to a checkpoint. Lower train.optim.lr, set train.optim.clip, or "
            "use train.precision=fp32; the run continues from its last checkpoint when started again."
        )
    distributed.decided(s.saver.finish)
    if restore_newest(s.run, s.state) is None:
        raise NonFiniteError(f"{s.run.path} has no valid checkpoint to return to.")
    clock = s.state.clock
    clock.data_offset = failed.data_offset + failed_step - clock.step
    clock.rollbacks, clock.skipped, clock.skipped_in_a_row = failed.rollbacks + 1, failed.skipped, 0
    report.rolled_back(failed_step)
