"""What random numbers that are functions cost: their share of a training step of a 64 px U-Net.

    python benchmarks/draws.py [--model unet_base] [--batch 8] [--steps 3] [--threads 1]

A step is forward, backward and AdamW in float32, on the GPU where there is one. Its draws are those of the denoising
objective: noise level, noise, label drop and mirroring; the rates of single draws and of dropout, forward and
backward, are printed beside torch's own generator, which cannot say what image number 4711 gets. Where a draw is one
Triton kernel, so are the rates of the torch operations that it replaces.
"""

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor

from pipeline.config.schema_model import ModelConfig
from pipeline.models.build import build_network
from pipeline.models.dropout import KeyedDropout
from pipeline.runtime import random
from pipeline.runtime.random import Stream, chosen, normal, uniform

SHAPE, WIDE = (3, 64, 64), (128, 64, 64)
CLASSES = 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], object], times: int) -> float:
    """Median wall time of `work`, after one call that does not count."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def training_step(name: str, batch: int) -> tuple[Callable[[], None], int]:
    """A step on fixed data, and the number of parameters."""
    settings = yaml.safe_load((Path(__file__).parent.parent / "configs/model" / f"{name}.yaml").read_text())
    cfg: ModelConfig = TypeAdapter(ModelConfig).validate_python(settings)
    network = build_network(cfg, shape=SHAPE, classes=CLASSES).to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters())
    x, sample_indices = torch.randn(batch, *SHAPE, device=DEVICE), torch.arange(batch, device=DEVICE)
    condition = sample_indices % CLASSES if network.conditional else None

    def step() -> None:
        loss = network(x, torch.zeros(batch, device=DEVICE), condition, sample_indices=sample_indices).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(parameter.numel() for parameter in network.parameters())


def draws(sample_indices: Tensor) -> None:
    """Everything that one denoising step draws."""
    uniform(0, Stream.SIGMA, sample_indices, dtype=torch.float64)
    normal(0, Stream.NOISE, sample_indices, shape=SHAPE)
    uniform(0, Stream.LABEL_DROP, sample_indices)
    uniform(0, Stream.FLIP, sample_indices)


def dropping(sample_indices: Tensor, *, keyed: bool) -> Callable[[], None]:
    """Dropout of the activations of a 64 px U-Net, forward and backward, in channels-last order as networks are."""
    x = torch.randn(len(sample_indices), *WIDE, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    ones, layer = torch.ones_like(x), KeyedDropout(0.1).train()

    def work() -> None:
        y = layer(x, sample_indices) if keyed else torch.nn.functional.dropout(x, 0.1)
        y.backward(ones)
        x.grad = None

    return work


def rates(sample_indices: Tensor) -> None:
    """Millions of numbers a second, beside torch's generator."""
    given = {"shape": SHAPE, "draw": 0, "dtype": torch.float32}
    ways: dict[str, tuple[Callable[[], object], tuple[int, ...]]] = {
        "normal": (lambda: normal(0, Stream.NOISE, sample_indices, shape=SHAPE), SHAPE),
        "uniform": (lambda: uniform(0, Stream.NOISE, sample_indices, shape=SHAPE), SHAPE),
        "chosen": (lambda: chosen(0, Stream.DROPOUT, sample_indices, share=0.1, shape=WIDE), WIDE),
        "dropout": (dropping(sample_indices, keyed=True), WIDE),
        "torch.randn": (lambda: torch.randn(len(sample_indices), *SHAPE, device=DEVICE), SHAPE),
        "torch dropout": (dropping(sample_indices, keyed=False), WIDE),
    }
    if random.fused(DEVICE):
        unfused = functools.partial(random._fill, seed=0, stream=Stream.NOISE, numbers=sample_indices, **given)
        ways["normal, torch operations"] = (lambda: unfused(random._normal_words), SHAPE)
        ways["uniform, torch operations"] = (lambda: unfused(random._uniform_words), SHAPE)
    print("a draw is", "one Triton kernel" if random.fused(DEVICE) else "torch operations")
    for name, (work, shape) in ways.items():
        numbers = len(sample_indices) * math.prod(shape)
        print(f"{name:25} {numbers / seconds(work, 20) / 1e6:8.0f} million numbers/s")


def main() -> None:
    """Measure steps and draws in turn and print the share."""
    arguments = argparse.ArgumentParser(description="The share of random draws in a training step.")
    arguments.add_argument("--model", default="unet_base")
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    sample_indices = torch.arange(given.batch, device=DEVICE) + 10**10
    rates(sample_indices)
    step, parameters = training_step(given.model, given.batch)
    whole, part = seconds(step, given.steps), seconds(lambda: draws(sample_indices), 20)
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {given.threads} threads"
    print(f"{given.model} ({parameters / 1e6:.1f} M parameters), 64 px, batch {given.batch}, {where}")
    print(f"step {whole * 1e3:.1f} ms, draws {part * 1e3:.2f} ms: {part / (whole + part):.3%} of a step")


if __name__ == "__main__":
    main()
