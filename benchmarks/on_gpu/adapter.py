"""The one place that knows how training is called inside. Everything else uses commands and stable functions.

When the step, the batches or the session change, change these functions, and the checks and benchmarks go on.
"""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from pipeline.config.load import validated
from pipeline.config.paths import data_directory, protocol_hash
from pipeline.config.schema import Config
from pipeline.data.images import encode
from pipeline.data.shards import Layout, Sample, finish, shard_name, write_shard
from pipeline.runtime import distributed
from pipeline.runtime.run_dir import RunDir, create_run
from pipeline.train import loop
from pipeline.train.loop import Launched, Outcome, launch_step
from pipeline.train.report import Reporter
from pipeline.train.setup import Session, session

CLASSES = 10
SMALL = {  # a network with everything that training touches: attention, classes, a change of resolution
    "kind": "unet",
    "condition": "class",
    "width": 32,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [8],
    "head_channels": 16,
    "groups": 8,
}


def config(
    root: Path,
    *,
    name: str,
    model: dict[str, Any] | None = None,
    size: int = 16,
    batch: int = 16,
    groups: dict[str, Any] | None = None,
    **train: Any,
) -> Config:
    """An experiment on generated images of `size` px, data and runs below `root`.

    `train` are settings of training; `groups` are other groups of settings, such as {"diffusion": {...}}.
    """
    return validated(
        {
            **(groups or {}),
            "name": name,
            "seed": 7,
            "data_dir": str(root / "data"),
            "runs_dir": str(root / "runs"),
            "data": {"name": f"noise{size}", "source": {"kind": "glyphs"}, "image_size": size, "encoding": "raw"},
            "model": model or SMALL,
            "train": {
                "duration": "100000 steps",
                "global_batch": batch,
                "optim": {"lr": 1e-4, "warmup": "0 steps"},
                "ema": {"half_life": "10 kimg"},
                "log_every": "1 steps",
                "checkpoint_every": "100000 steps",
                **train,
            },
            "sample": {"count": 16, "batch": 8, "images_per_shard": 8, "sampler": {"kind": "heun", "steps": 6}},
            "cluster": {"name": "local"},
        }
    )


def prepare(cfg: Config, *, count: int) -> None:
    """Write its training data: random images of random classes, as raw bytes. Does nothing where they are."""
    directory, size = data_directory(cfg) / "shards" / "train", cfg.data.image_size
    if (directory / "manifest.json").is_file():
        return
    rng = np.random.default_rng(0)
    layout = Layout(encoding="raw", shape=(3, size, size))
    samples = []
    for k in range(count):
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        samples.append(Sample(f"train{k:06d}", encode(pixels, "raw"), "npy", label=k % CLASSES, pixels=pixels))
    record = write_shard(directory / shard_name(0), samples, layout)
    protocol = {"name": cfg.data.name, "hash": protocol_hash(cfg.data)}
    finish(directory, [record], layout, protocol=protocol, split="train", classes=[str(c) for c in range(CLASSES)])


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products with all of its digits: no TF32. Set after the session, which may have its own rules."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def using(device: str) -> Iterator[None]:
    """What is built in the body stands on "cuda" or "cpu", whatever torch sees."""
    context = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    with mock.patch.object(distributed, "device_for", return_value=context):
        yield


@contextlib.contextmanager
def open_session(cfg: Config, device: str) -> Iterator[Session]:
    """A training session in this process."""
    with using(device), session(cfg, create_run(cfg), distributed.World()) as s:
        yield s


def train(cfg: Config, device: str) -> RunDir:
    """The whole training loop in this process."""
    run = create_run(cfg)
    with using(device):
        code = loop.train(cfg, run)
    assert code == 0, f"training ended with code {code}"
    return run


def train_on_ranks(cfg: Config, device: str, *, ranks: int, limit: float = 90.0) -> RunDir:
    """The whole training loop in `ranks` processes on one device, joined by gloo: NCCL refuses to share a GPU.

    Raises:
        RuntimeError: where one of them fails, or is not done after `limit` seconds.
    """
    run, port = create_run(cfg), distributed._free_port()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(cfg, run, device, rank, ranks, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    end = time.monotonic() + limit
    for process in processes:
        process.join(max(end - time.monotonic(), 0.1))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    if any(codes):
        raise RuntimeError(f"the ranks ended with {codes} (None: still running after {limit:.0f} s)")
    return run


def _rank(cfg: Config, run: RunDir, device: str, rank: int, ranks: int, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    begin = torch.distributed.init_process_group
    with (
        mock.patch.object(torch.distributed, "init_process_group", lambda _, **options: begin("gloo", **options)),
        using(device),
    ):
        code = loop.train(cfg, run)
    sys.exit(code)


def feed(s: Session) -> Iterator[Any]:
    """What each step sees, read ahead as in training."""
    return loop._data(s)


def step(s: Session, data: Iterator[Any]) -> Launched:
    """One step on the next data. As in the training loop, nothing waits for the device; `read` does."""
    return launch_step(s, next(data), stop_asked=False, save_asked=False)


def read(s: Session, launched: Launched) -> Outcome:
    """What a step did, counted in the run's books. Waits for the device."""
    outcome = launched.read()
    s.state.count(outcome.finite, loss_scale=outcome.loss_scale)
    return outcome


def scale_of(s: Session) -> float:
    """fp16's loss scale. Waits for the device."""
    assert s.state.loss_scale is not None
    return s.state.loss_scale.numbers()[0]


def network(s: Session) -> torch.nn.Module:
    """The denoiser as training calls it, without a DDP wrapper: autocast and compiled where the settings say so."""
    return s.objective.networks["denoiser"]


def weights(s: Session) -> dict[str, Tensor]:
    """A copy of every network's weights and numbers on the CPU, in float64, by network/name."""
    return {
        f"{name}/{key}": value.detach().double().cpu().clone()
        for name, network in s.objective.networks.items()
        for key, value in network.state_dict().items()
    }


def use_ddp(s: Session) -> None:
    """Wrap the denoiser in DDP, whatever the number of ranks. A process group must be there."""
    prepared = s.networks["denoiser"]
    ids = [s.device] if s.device.type == "cuda" else None
    s.networks["denoiser"] = torch.nn.parallel.DistributedDataParallel(prepared, device_ids=ids)
    s.graph = None


@contextlib.contextmanager
def broken_loss(s: Session) -> Iterator[None]:
    """In the body every loss is infinite."""
    plain = s.objective.loss

    def broken(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: value * torch.inf for name, value in plain(*args, **kwargs).items()}

    with mock.patch.object(s.objective, "loss", broken):
        yield


@contextlib.contextmanager
def reporter(s: Session) -> Iterator[Reporter]:
    """What saves and logs."""
    with Reporter(s) as report:
        yield report


def save(report: Reporter) -> None:
    """A checkpoint of now, on the disk when this returns."""
    report.save(wait=True)


def roll_back(s: Session, report: Reporter) -> None:
    """Return to the last checkpoint, as after too many steps that were not finite."""
    loop._roll_back(s, report, failed_step=s.state.progress.step)


def save_stall(s: Session) -> float:
    """Seconds that the loop stands still for one checkpoint, by `train.async_save`."""
    s.saver.save(s.state.snapshot(), wait=False)
    stall = s.saver.stall_seconds
    s.saver.finish()
    return stall


def update_weights(s: Session) -> None:
    """The norm of the gradients that are there, clipping, and the optimiser's step alone."""
    flags, loss = torch.zeros(2, dtype=torch.float64, device=s.device), torch.ones((), device=s.device)
    keep = [p.grad for p in s.networks["denoiser"].parameters()]
    loop._update(s, "denoiser", sums={"loss": loss.double()}, flags=flags, lr=1e-4)
    for p, gradient in zip(s.networks["denoiser"].parameters(), keep, strict=True):
        p.grad = gradient


def update_ema(s: Session) -> None:
    """The update of the EMA alone."""
    s.state.update_ema(batch=s.cfg.train.global_batch, half_life=s.plan.half_life_images)
