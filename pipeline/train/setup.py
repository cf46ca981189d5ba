"""Everything that stands before the first step: processes, data, networks, optimisers, the state resumed."""

import contextlib
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradScalerKwargs
from torch import nn

from pipeline import checkpoint
from pipeline.config.autoencoder import require_latents
from pipeline.config.paths import training_shards
from pipeline.config.plan import Plan, plan_for
from pipeline.config.schema import Config
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.diffusion.uncertainty import LossBalance
from pipeline.models.blocks import blocks_of, recompute_activations
from pipeline.objectives.build import build_objective
from pipeline.objectives.latent_codec import remember
from pipeline.objectives.objective import Objective
from pipeline.runtime import distributed
from pipeline.runtime.commit import commit_of
from pipeline.runtime.distributed import World
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import append_line, read_lines
from pipeline.runtime.numerics import set_numerics
from pipeline.runtime.random import for_the_compiler
from pipeline.runtime.run_dir import RunDir, open_run, step_of
from pipeline.runtime.run_lock import only_trainer
from pipeline.runtime.sharding import hollowed, shard
from pipeline.train.graphs import GraphedBackward, uses_graph
from pipeline.train.optim import build_optimizer, lr_at
from pipeline.train.recorder import Recorder, seconds_of_starts
from pipeline.train.state import LossScale, Saver, State, clean
from pipeline.train.trackers import Trackers


@dataclass
class Session:
    """What the loop works with."""

    cfg: Config
    run: RunDir
    world: World
    plan: Plan
    accelerator: Accelerator
    device: torch.device
    train_data: Reader
    valid_data: Reader | None
    objective: Objective
    networks: dict[str, nn.Module]  # the trained networks as Accelerate prepared them
    state: State
    recorder: Recorder
    saver: Saver
    graph: GraphedBackward | None = None  # train.cuda_graph
    hollow: dict[str, nn.Module] = field(default_factory=dict)  # what evaluation calls in place of sharded networks

    def networks_for(self, trained: str) -> dict[str, nn.Module]:
        """The networks as the loss of one of them calls them: only its own weights get gradients.

        The others are called without their DDP wrapper, which would wait for gradients that never come.
        """
        return _networks_for(trained, self.objective, self.networks)

    @property
    def dtype(self) -> torch.dtype:
        """Of images and losses. Networks may run narrower, under autocast."""
        return _dtype(self.cfg)


def _networks_for(trained: str, objective: Objective, prepared: dict[str, nn.Module]) -> dict[str, nn.Module]:
    if len(objective.trained) > 1:
        for name in objective.trained:
            objective.networks[name].requires_grad_(name == trained)
    return {**objective.networks, trained: prepared[trained]}


@contextlib.contextmanager
def session(cfg: Config, run: RunDir, world: World) -> Iterator[Session]:
    """Lock the run directory, build, resume from the newest valid checkpoint; clean up at the end. All ranks call it.

    Raises:
        UserError: where another process trains this run, for data that is not prepared or does not fit, damaged files.
    """
    with contextlib.ExitStack() as lock:
        distributed.decided(lambda: lock.enter_context(only_trainer(run.lock)))
        yield from _session(cfg, run, world)


def _session(cfg: Config, run: RunDir, world: World) -> Iterator[Session]:
    device, numerics = _device(cfg, world), set_numerics(tf32=cfg.train.precision == "tf32")
    require_latents(cfg)
    shards = training_shards(cfg)
    train_data = Reader(open_shards(shards / "train"), keep_bytes=cfg.train.keep_gib * 2**30)
    valid_data = Reader(open_shards(shards / "valid")) if (shards / "valid").is_dir() else None
    plan = plan_for(cfg, train_images=train_data.count, world_size=world.size)
    accelerator = _accelerator(cfg, run, device)
    torch.manual_seed(cfg.seed)  # initial weights; nothing else draws from torch's generator
    objective = build_objective(cfg, train_data.manifest)
    remember(run, train_data.manifest, write=world.main)
    if cfg.train.start_from is not None and distributed.decided(lambda: checkpoint.newest_valid(run)[0] is None):
        begin_with(cfg.train.start_from, objective, say=world.main)
    hollow = _sharded(cfg, objective, accelerator)
    state = _state(cfg, objective, accelerator)
    _resume(run, state, world)
    graphed = uses_graph(cfg, device)
    joined = not graphed and not hollow
    networks = {
        name: _prepared(objective.networks[name], cfg, accelerator, joined=joined) for name in objective.trained
    }
    graph = None
    if graphed:
        graph = GraphedBackward(
            objective, lambda name: _networks_for(name, objective, networks), accumulate=plan.accumulate
        )
    _report(cfg, run, world, plan=plan, state=state, device=device, numerics=numerics)
    trackers = Trackers(cfg, run, accelerator) if cfg.train.trackers and world.main else None
    recorder = Recorder(run, step=state.progress.step, active=world.main, trackers=trackers)
    saver = Saver(
        run,
        keep_last=cfg.train.keep_last,
        keep_every=plan.keep_every,
        background=cfg.train.async_save,
        writes=world.main,
        sharded=bool(hollow),
    )
    try:
        yield Session(
            cfg=cfg,
            run=run,
            world=world,
            plan=plan,
            accelerator=accelerator,
            device=device,
            train_data=train_data,
            valid_data=valid_data,
            objective=objective,
            networks=networks,
            state=state,
            recorder=recorder,
            saver=saver,
            graph=graph,
            hollow=hollow,
        )
    finally:
        saver.finish()
        recorder.close()


def begin_with(place: Path, objective: Objective, *, say: bool) -> None:
    """Load the weights of another run, or of one of its checkpoints: EMA where it has one. Optimisers begin anew.

    Weights of the condition begin anew where the other run had other classes or attributes.

    Raises:
        UserError: for a network of another architecture, saying what does not fit.
    """
    step = step_of(place.name)
    run, its = open_run(place if step is None else place.parent.parent)
    for name, network in objective.networks.items():
        which = "ema" if name in objective.ema_networks and its.train.ema.half_life else "network"
        tensors, _ = checkpoint.load_weights(run, which=which, network=name, step=step)
        own = network.state_dict()
        anew = {
            key: value
            for key, value in own.items()
            if key.startswith("condition.") and (key not in tensors or tensors[key].shape != value.shape)
        }
        kept = {key: value for key, value in tensors.items() if key in own or not key.startswith("condition.")}
        checkpoint.load_strictly(network, {**kept, **anew}, what=f"train.start_from={place}")
        if anew and say:
            print(f"train.start_from: {', '.join(anew)} of {name} begin anew: other classes", file=sys.stderr)


def _device(cfg: Config, world: World) -> torch.device:
    name, asked = "train", cfg.cluster.train
    if cfg.model.is_a == "autoencoder" and cfg.cluster.autoencoder is not None:
        name, asked = "autoencoder", cfg.cluster.autoencoder
    return distributed.device_for(world, gpus=asked.gpus, setting=f"cluster.{name}.gpus")


def _accelerator(cfg: Config, run: RunDir, device: torch.device) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # a process may train more than once, as the tests do
    precision = cfg.train.precision if cfg.train.precision in ("bf16", "fp16") else "no"
    if precision == "fp16" and device.type == "cpu":
        raise UserError("train.precision: found fp16 on a CPU, which has no fp16 training. Use bf16 or fp32.")
    # It is given its trackers here, and opens none: see `Trackers`.
    return Accelerator(
        log_with=list(cfg.train.trackers) or None,
        project_dir=str(run.path),
        cpu=device.type == "cpu",
        mixed_precision=precision,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[GradScalerKwargs(enabled=False)],  # it would ask the device in every step: see LossScale
    )


def _sharded(cfg: Config, objective: Objective, accelerator: Accelerator) -> dict[str, nn.Module]:
    """Divide the networks over the ranks where `train.sharding` says so, before anything is made of their weights.

    Returns what evaluation calls in their place, by name. Nothing happens, and there is none, for a single rank.
    """
    evaluated: dict[str, nn.Module] = {}
    if cfg.train.sharding == "none" or distributed.ranks()[1] == 1:
        return evaluated
    for name in objective.trained:
        network = objective.networks[name].to(_dtype(cfg))
        without = hollowed(network, device=accelerator.device)
        evaluated[name] = accelerator.prepare_model(without, device_placement=False, evaluation_mode=True)
        shard(network, _pieces(network), device=accelerator.device)
    return evaluated


def _pieces(network: nn.Module) -> list[nn.Module]:
    """Its blocks, and the learned balance of losses: the loss calls that by itself, after the network."""
    return [*blocks_of(network), *(module for module in network.modules() if isinstance(module, LossBalance))]


def _dtype(cfg: Config) -> torch.dtype:
    return torch.float64 if cfg.train.precision == "fp64" else torch.float32


def _state(cfg: Config, objective: Objective, accelerator: Accelerator) -> State:
    for name, network in objective.networks.items():
        network.to(accelerator.device, _dtype(cfg))
        network.train(name in objective.trained).requires_grad_(name in objective.trained)
    optimizers = {name: build_optimizer(objective.networks[name], cfg.train.optim) for name in objective.trained}
    return State(
        objective.networks,
        optimizers,
        ema_networks=objective.ema_networks,
        cfg=cfg.train.ema,
        loss_scale=LossScale(accelerator.device) if cfg.train.precision == "fp16" else None,
    )


def _prepared(network: nn.Module, cfg: Config, accelerator: Accelerator, *, joined: bool) -> nn.Module:
    """In place where it can be: the bare network, which validation calls, gets autocast and compilation too.

    `joined`: backward passes average gradients over ranks (DDP). Within a CUDA graph they do not, and a sharded network
    does it by itself.
    """
    if cfg.train.activation_checkpointing:
        recompute_activations(network)
    if cfg.train.compile:
        # A backward pass then leaves what it needs, as an adaptive weight takes gradients before the step does.
        functorch.donated_buffer = False
        for_the_compiler()
        network.compile()
    # Accelerate's own wrapper would name the GPU by the local rank. Where each task sees one GPU, that is number 0.
    bare: nn.Module = accelerator.prepare_model(network, evaluation_mode=True)
    return distributed.parallel(bare, accelerator.device) if joined else bare


def _resume(run: RunDir, state: State, world: World) -> None:
    """Go on from the newest valid checkpoint, if there is any. A collective."""
    distributed.decided(lambda: clean(run))
    step = restore_newest(run, state)
    if step is not None and world.main:
        print(f"continuing from {run.checkpoint(step)}", file=sys.stderr)


def restore_newest(run: RunDir, state: State) -> int | None:
    """Take over the newest valid checkpoint; its step, or None where there is none. A collective.

    Rank 0 chooses and tells the others: directory listings differ between nodes, and while a save is finished. It sets
    damaged ones aside, so that their step can be written again. Nobody goes on before all have read, so that rank 0
    removes no checkpoint that another rank still reads.
    """

    mine = None  # what rank 0 read to choose

    def choose() -> int | None:
        nonlocal mine
        path, mine, sentences = checkpoint.read_newest(run, set_aside=True)
        print(*sentences, sep="\n", end="\n" if sentences else "", file=sys.stderr)
        return None if path is None else step_of(path.name)

    step = distributed.decided(choose)
    if step is not None:
        distributed.together(lambda: state.restore(mine or checkpoint.read_chosen(run.checkpoint(step))))
    return step


def longer(cfg: Config, run: RunDir, *, plan: Plan, step: int) -> str:
    """What another `train.duration` than that of the start before means for this one, in words; "" where it is the
    same, or nothing is trained yet."""
    starts = read_lines(run.starts)
    before = starts[-1]["plan"]["total_steps"] if starts else plan.total_steps
    if before == plan.total_steps or not step:
        return ""
    said = f"train.duration: {before} steps before, {plan.total_steps} now, from step {step} on"
    optim = cfg.train.optim
    if optim.schedule in ("constant", "inverse_sqrt"):
        return f"{said}; train.optim.schedule={optim.schedule} does not depend on it: as if it had always been so"
    old, new = (
        lr_at(step, cfg=optim, total_steps=total, warmup_steps=plan.warmup_steps)
        for total in (before, plan.total_steps)
    )
    return (
        f"{said}; train.optim.schedule={optim.schedule} is stretched over all of it: the learning rate goes on from "
        f"{new:.3g} instead of {old:.3g}, and differs from that of a run which had this duration from the start"
    )


def device_name(device: torch.device) -> str:
    """The card's name, or how many threads there are."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()} threads"


def _report(
    cfg: Config,
    run: RunDir,
    world: World,
    *,
    plan: Plan,
    state: State,
    device: torch.device,
    numerics: dict[str, Any],
) -> None:
    line = distributed.describe(world, device)  # a collective
    if not world.main:
        return
    if said := longer(cfg, run, plan=plan, step=state.progress.step):
        print(said, file=sys.stderr)
    parameters = sum(p.numel() for net in state.networks.values() for p in net.parameters())
    print(
        f"{line}\n{parameters / 1e6:.2f} M parameters, step {state.progress.step} of {plan.total_steps}",
        file=sys.stderr,
    )
    start = {
        "time": time.time(),
        "earlier_seconds": seconds_of_starts(run),
        "step": state.progress.step,
        "commit": os.environ.get("MUDI_COMMIT") or commit_of(),
        "argv": sys.argv,
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT"),
        "world": line,
        "world_size": world.size,
        "device": device_name(device),
        "duration": cfg.train.duration,
        "plan": asdict(plan),
        "numerics": numerics,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "parameters": parameters,
    }
    append_line(run.starts, start)
