"""Training steps: ours, diffusers' example loop, and the bare network forward and backward, in turns."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checks
import torch
import yaml
from on_gpu import adapter
from on_gpu.report import Clock, Report, guarded, interleaved, release, seconds
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.schema import Config
from pipeline.config.schema_model import ModelConfig, UNetConfig
from pipeline.diffusers_io.tables import Sizes, to_config
from pipeline.models.build import build_network

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
COLUMNS = (
    "network",
    "px",
    "batch",
    "mode",
    "ours",
    "diffusers",
    "bare",
    "/diffusers",
    "/bare",
    "MFU%",
    "GiB",
    "diffusers",
)
SHARES = ("fwd+bwd", "optim", "ema", "data", "rest")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    network: str  # a file of configs/model
    size: int
    batch: int
    compiled: bool
    profiled: bool = False
    graph: bool = False
    precision: str = "bf16"  # or fp32

    @property
    def mode(self) -> str:
        """In one word."""
        return "graph" if self.graph else "compiled" if self.compiled else "eager"

    @property
    def label(self) -> str:
        """Network, pixels, batch, mode: unet_base-64-256-graph."""
        return f"{self.network}-{self.size}-{self.batch}-{self.mode}"


def cases(device: str) -> list[Case]:
    """The most important first."""
    if device == "cpu":
        return [Case("unet_tiny", 16, 4, compiled=False, profiled=True), Case("unet_tiny", 16, 2, compiled=False)]
    base, small, large = ("unet_base", 64), ("unet_small", 32), ("unet_large", 64)
    first = [Case(*base, 256, compiled=False, graph=True, profiled=True)]
    first += [Case(*network, 256, compiled=False, graph=True) for network in (large, small)]
    eager = [Case(*network, 256, compiled=False) for network in (base, small, large)]
    eager += [
        Case(*network, batch, compiled=False, graph=True) for network in (base, small) for batch in (512, 128, 64)
    ]
    compiled = [Case(*base, 256, compiled=True), Case(*small, 256, compiled=True)]  # minutes to compile
    return [*first, *eager, *compiled]


def run(report: Report, clock: Clock, context: checks.CheckContext, chosen: list[str]) -> None:
    """Measure cases until the time is over, and print the table. `chosen`: parts of their labels; [] is all."""
    rows: list[dict[str, Any]] = []
    some = [case for case in cases(context.device) if not chosen or any(part in case.label for part in chosen)]
    try:
        _run_cases(report, clock, context, rows, some)
    finally:  # also where the time is over in the middle of a case
        show(report, rows)


def _run_cases(
    report: Report, clock: Clock, context: checks.CheckContext, rows: list[dict[str, Any]], some: list[Case]
) -> None:
    spent = {False: 0.0, True: 0.0}  # seconds of the longest case, by compilation
    for case in some:
        if rows and clock.left() < spent[case.compiled] * 1.2:
            report.log(f"no time for {case}")
            continue
        begin = time.monotonic()
        row = {"network": case.network, "px": case.size, "batch": case.batch, "mode": case.mode}
        rows.append(row)
        try:
            with guarded(report, f"step of {case.network}, {case.size} px, batch {case.batch}, {case.mode}"):
                measure(case, clock, context, report, row)
        finally:  # where the time is over, what is measured of the row
            if "ours" in row or "note" in row:
                report.add("steps", row)
                report.log(str(row))
        torch._dynamo.reset()
        release()
        spent[case.compiled] = max(spent[case.compiled], time.monotonic() - begin)


def show(report: Report, rows: list[dict[str, Any]]) -> None:
    """Two tables: speeds, and where the time of our step goes."""
    report.say("images per second, bf16; GiB is peak memory, ours and diffusers'")
    keys = (
        "network",
        "px",
        "batch",
        "mode",
        "ours",
        "diffusers",
        "bare",
        "ratio",
        "of_bare",
        "mfu",
        "gib",
        "gib_diffusers",
    )
    report.table(COLUMNS, [[row.get(key) for key in keys] for row in rows if "ours" in row])
    for row in rows:
        if "note" in row:
            report.say(f"{row['network']} {row['px']} px, batch {row['batch']}, {row['mode']}: {row['note']}")
    shared = [row for row in rows if "shares" in row]
    report.say("where the time of our step goes, %")
    report.table(
        ("network", "px", "batch", "mode", *SHARES),
        [[row["network"], row["px"], row["batch"], row["mode"], *row["shares"].values()] for row in shared],
    )


def model_settings(network: str, size: int | None = None) -> dict[str, Any]:
    """A file of configs/model, with classes and without dropout, as benchmarks/networks.py has it.

    Given the `size` of images, attention is left out where no map has its size.
    """
    settings = yaml.safe_load((CONFIGS / f"{network}.yaml").read_text())
    if size is not None:
        maps = [size >> level for level in range(len(settings["multipliers"]))]
        settings["attention"] = [pixels for pixels in settings["attention"] if pixels in maps]
    return {**settings, "condition": "class", "dropout": 0.0}


def unet(network: str, size: int | None = None) -> UNetConfig:
    """The same, checked."""
    cfg: UNetConfig = TypeAdapter(ModelConfig).validate_python(model_settings(network, size))
    return cfg


def flops_per_image(cfg: UNetConfig, size: int) -> int:
    """Of one forward and backward pass: products and convolutions, two for each multiplication."""
    with torch.device("meta"):
        network = build_network(cfg, shape=(3, size, size), classes=adapter.CLASSES)
        x, noise_cond, labels = torch.randn(2, 3, size, size), torch.randn(2), torch.zeros(2, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        network(x, noise_cond, labels).sum().backward()
    return int(counter.get_total_flops()) // 2


class Waiting:
    """An iterator that adds up how long its consumer waited."""

    def __init__(self, data: Iterator[Any]) -> None:
        self.data, self.seconds = data, 0.0

    def __next__(self) -> Any:
        start = time.perf_counter()
        value = next(self.data)
        self.seconds += time.perf_counter() - start
        return value

    def __iter__(self) -> Iterator[Any]:
        return self


def config_of(case: Case, context: checks.CheckContext) -> Config:
    """Our experiment of a case, with its data prepared."""
    cfg = adapter.config(
        context.root,
        name=f"{case.network}-{case.batch}-{case.mode}-{case.precision}",
        model=model_settings(case.network, case.size),
        size=case.size,
        batch=case.batch,
        precision=case.precision,
        compile=case.compiled,
        cuda_graph=case.graph,
        workers=min(os.cpu_count() or 1, 8) if context.device == "cuda" else 0,
    )
    adapter.prepare(cfg, count=4096 if context.device == "cuda" else 64)
    return cfg


def measure(case: Case, clock: Clock, context: checks.CheckContext, report: Report, row: dict[str, Any]) -> None:
    """Fill one row. Where a side has no memory, the row says so."""
    device, cuda = context.device, context.device == "cuda"
    rounds, least = (5, 0.25) if cuda else (2, 0.0)
    peak = report.data.get("header", {}).get("peak_tflops")
    try:
        with contextlib.ExitStack() as stack:
            memory = Memory(device)
            s = stack.enter_context(adapter.open_session(config_of(case, context), device))
            data = Waiting(adapter.feed(s))
            stack.callback(data.data.close)  # type: ignore[attr-defined]
            start = time.perf_counter()
            for _ in range(3):
                adapter.step(s, data)
            row["gib"], row["first_steps_seconds"] = memory.peak(), time.perf_counter() - start
            network, inputs = adapter.network(s), example(case, device)
            sides: dict[str, Callable[[], Any]] = {
                "ours": lambda: adapter.step(s, data),
                "bare": lambda: forward_backward(network, inputs, keep=False),
            }
            if case.compiled:  # diffusers takes minutes to compile: ours is kept where they do not come in time
                times = interleaved(sides, device=device, rounds=rounds, least=least, clock=clock)
                row |= speeds(case, times, peak=peak)
            try:
                memory = Memory(device)
                diffusers_step = diffusers_loop(case, inputs[0], inputs[2], device=device)
                for _ in range(3):
                    diffusers_step()
                sides["diffusers"], row["gib_diffusers"] = diffusers_step, memory.peak()
            except torch.OutOfMemoryError:
                row["note"] = "out of memory (diffusers)"
                release()
            times = interleaved(sides, device=device, rounds=rounds, least=least, clock=clock)
            row |= speeds(case, times, peak=peak)
            row["shares"] = shares(s, times, network=network, inputs=inputs, device=device)
            if case.profiled:
                profile(report, case, lambda: adapter.step(s, data), device=device)
    except torch.OutOfMemoryError:
        row["note"] = "out of memory (ours)"


class Memory:
    """Peak memory of what comes, beyond what is there already."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """GiB."""
        return (torch.cuda.max_memory_allocated() - self.before) / 2**30 if self.cuda else None


def example(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch on the device: images, what the network knows of the noise, labels, image numbers."""
    images = torch.rand(case.batch, 3, case.size, case.size, device=device) * 2 - 1
    numbers = torch.arange(case.batch, device=device)
    return images, torch.rand(case.batch, device=device), numbers % adapter.CLASSES, numbers


def forward_backward(network: torch.nn.Module, inputs: tuple[Tensor, ...], *, keep: bool) -> None:
    """The network and its gradients, and nothing else; `keep` leaves the gradients there."""
    x, noise_cond, labels, numbers = inputs
    network(x, noise_cond, labels, sample_indices=numbers).float().square().mean().backward()
    if not keep:
        network.zero_grad(set_to_none=True)


def diffusers_loop(case: Case, images: Tensor, labels: Tensor, *, device: str) -> Callable[[], float]:
    """A step of diffusers' example of unconditional training, given classes; its batch lies on the device already."""
    import diffusers
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(mixed_precision="no" if case.precision == "fp32" else case.precision, cpu=device == "cpu")
    settings = to_config(unet(case.network, case.size), Sizes((3, case.size, case.size), adapter.CLASSES))
    model = diffusers.UNet2DModel.from_config(settings)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True)
    model = model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, fused=device == "cuda"
    )
    schedule = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    ema.to(accelerator.device)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    called = torch.compile(model) if case.compiled else model

    def step() -> float:
        noise = torch.randn(images.shape, device=images.device)
        timesteps = torch.randint(0, 1000, (len(images),), device=images.device).long()
        noisy = scheduler.add_noise(images, noise, timesteps)
        with accelerator.accumulate(model):
            output = called(noisy, timesteps, class_labels=labels).sample
            loss = torch.nn.functional.mse_loss(output.float(), noise.float())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        ema.step(model.parameters())
        return loss.detach().item()  # their example logs every step

    return step


def speeds(case: Case, times: dict[str, float], *, peak: float | None) -> dict[str, Any]:
    """Images a second, ratios, and the share of the card's peak."""
    rate = {name: case.batch / value for name, value in times.items()}
    flops = flops_per_image(unet(case.network, case.size), case.size)
    return {
        **rate,
        "ratio": rate["ours"] / rate["diffusers"] if "diffusers" in rate else None,
        "of_bare": rate["ours"] / rate["bare"],
        "gflop_per_image": flops / 1e9,
        "mfu": None if peak is None else 100 * rate["ours"] * flops / (peak * 1e12),
        "milliseconds": {name: 1e3 * value for name, value in times.items()},
    }


def shares(
    s: Any, times: dict[str, float], *, network: torch.nn.Module, inputs: tuple[Tensor, ...], device: str
) -> dict[str, float]:
    """Percent of our step: the bare network's time, optimiser and EMA timed alone, a wait for data, the rest."""
    forward_backward(network, inputs, keep=True)
    parts = {"fwd+bwd": times["bare"]}
    for name, work in (("optim", adapter.update_weights), ("ema", adapter.update_ema)):
        work(s)
        parts[name] = statistics.median(seconds(lambda work=work: work(s), device) for _ in range(5))
    network.zero_grad(set_to_none=True)
    data = Waiting(adapter.feed(s))
    for _ in range(3):
        adapter.step(s, data)
    data.seconds = 0.0
    for _ in range(5):  # each step ends before the next begins, so a wait is one for data that is not there yet
        seconds(lambda: adapter.step(s, data), device)
    parts["data"] = data.seconds / 5
    data.data.close()  # type: ignore[attr-defined]
    parts["rest"] = times["ours"] - sum(parts.values())
    return {name: 100 * value / times["ours"] for name, value in parts.items()}


def profile(report: Report, case: Case, step: Callable[[], Any], *, device: str) -> None:
    """The most expensive kernels of ten steps, as text."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(10 if device == "cuda" else 1):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)
    with (report.out / "profile.txt").open("a") as file:
        file.write(f"{case}\n{table}\n\n")
