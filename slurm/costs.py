"""What the jobs of a run will cost, estimated from speeds that were measured: those of earlier runs, or on an H100.

Every start of training writes its network, device and plan into `starts.jsonl`, and its speed and memory into
`metrics.jsonl` (`speed/...`). Here they are read from the runs of one folder. Nothing is guessed: what is like nothing
that was measured has no estimate.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from pipeline.config.durations import needs_images
from pipeline.config.load import CONFIG_FILE, CONFIG_ROOT
from pipeline.config.plan import plan_for
from pipeline.config.schema import Config
from pipeline.config.schema_objectives import objective_kind
from pipeline.runtime.files import read_lines
from pipeline.runtime.inventory import size_in_words
from pipeline.runtime.run_dir import RunDir
from slurm.graph import Job
from slurm.progress import duration, tail_rows

WAITS = "known once the data is prepared"
H100 = "NVIDIA H100 80GB HBM3"
# Network of configs/model, px, images a second, GiB, parameters: bf16, 256 images on one GPU (docs/performance.md).
_SHIPPED = (
    ("unet_base", 64, 3961.0, 9.7, 25e6),
    ("unet_small", 32, 9723.0, 2.7, 8e6),
    ("unet_large", 64, 1583.0, 19.8, 100e6),
)
_NO_COST = {"condition", "dropout"}  # settings of a network that hardly change its speed
_BACKWARD = 3  # a training image costs about as much as so many calls of the network


@dataclass(frozen=True)
class Measured:
    """The speed of one training on one process."""

    network: Mapping[str, Any]
    shape: tuple[int, int]  # px, channels
    precision: str
    batch: int  # images of a micro-batch
    device: str
    images_per_second: float
    memory_gib: float | None
    parameters: float
    source: str


def measured_in(folder: Path) -> Iterator[Measured]:
    """From every run of a folder that trained, its newest start that logged a speed."""
    for config in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        run, starts = RunDir(config.parent), read_lines(config.parent / "starts.jsonl")
        rows = [row for row in tail_rows(run.metrics) if "speed/images_per_second" in row]
        if not starts or not rows or "device" not in starts[-1]:
            continue
        own = [row for row in rows if row["start"] == rows[-1]["start"]]
        start, values = starts[min(int(rows[-1]["start"]), len(starts)) - 1], _values_of(config)
        if "device" not in start or not values:
            continue
        yield Measured(
            network=values["model"],
            shape=(values["data"]["image_size"], values["data"]["channels"]),
            precision=values["train"]["precision"],
            batch=start["plan"]["micro_batch"],
            device=start["device"],
            images_per_second=median(row["speed/images_per_second"] for row in own) / start["world_size"],
            memory_gib=max((row.get("speed/memory_gib", 0.0) for row in own), default=0.0) or None,
            parameters=start["parameters"],
            source=str(run.path),
        )


def _values_of(config: Path) -> dict[str, Any] | None:
    try:
        found = yaml.load(config.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None
    known = isinstance(found, dict) and {"model", "data", "train"} <= found.keys() and found.get("latents") is None
    return found if known else None


@cache
def _shipped() -> tuple[Measured, ...]:
    found = []
    for name, size, rate, memory, parameters in _SHIPPED:
        network = yaml.safe_load((CONFIG_ROOT / "model" / f"{name}.yaml").read_text())
        shape, source = (size, 3), "docs/performance.md"
        found.append(Measured(network, shape, "bf16", 256, H100, rate, memory, parameters, source))
    return tuple(found)


def like(cfg: Config, known: list[Measured]) -> Measured | None:
    """The measurement that is most like the training of a config: the same network, size, precision and kind of
    device; of those the nearest number of images at once, and own runs before what is shipped."""
    if cfg.latents is not None:
        return None
    network = cfg.model.model_dump(mode="json")
    batch = cfg.train.micro_batch or cfg.train.global_batch // _ranks(cfg)
    fitting = [
        one
        for one in (*known, *_shipped())
        if all(network.get(k) == v for k, v in one.network.items() if k not in _NO_COST)
        and (one.shape, one.precision) == ((cfg.data.image_size, cfg.data.channels), cfg.train.precision)
        and one.device.startswith("cpu") == (not cfg.cluster.train.gpus)
    ]
    return min(fitting, key=lambda one: abs(one.batch - batch), default=None)


def _ranks(cfg: Config) -> int:
    return max(cfg.cluster.train.nodes * cfg.cluster.train.tasks_per_node, 1)


def estimates(cfg: Config, jobs: tuple[Job, ...], *, train_images: int | None) -> dict[str, str]:
    """What jobs will cost, in words: time, GPU hours, memory, disk; all of it marked as an estimate. Without those of
    which nothing is known."""
    said: dict[str, str] = {}
    found = like(cfg, list(measured_in(cfg.runs_dir)))
    if found is None:
        return said
    for job in jobs:
        if job.name == "train":
            waits = train_images is None and needs_images(cfg.train.duration)
            said["train"] = WAITS if waits else _training(cfg, job, found, train_images)
        elif job.name == "sample" and objective_kind(cfg).diffusion:
            said["sample"] = _sampling(cfg, job, found)
    return said


def in_all(cfg: Config, jobs: Sequence[Job], *, train_images: int | None) -> dict[str, str]:
    """What jobs can hold and last at most by their time limits, along their longest chain and without waiting in the
    queue; and the GPU hours of it that are estimated. {} of no job.

    `jobs`: those that are to do, each after its parents; parents that are not among them are complete.
    """
    if not jobs:
        return {}
    hours = {job.name: job.resources.minutes * job.resources.starts / 60 for job in jobs}
    ends: dict[str, float] = {}
    for job in jobs:
        waves = -(-job.resources.parts // min(job.resources.at_once, job.resources.parts))
        ends[job.name] = hours[job.name] * waves + max((ends.get(name, 0.0) for name in job.parents), default=0.0)
    held = sum(hours[job.name] * _gpus(job) for job in jobs)
    most = f"{held:.3g} GPU hours, " if held else ""
    rows = {"in all": f"at most {most}{duration(3600 * max(ends.values()))} (time limits)"}
    known = seconds_of(cfg, jobs, train_images=train_images)
    likely = sum(known[job.name] / 3600 * _gpus(job) for job in jobs if job.name in known)
    return rows | ({"estimate": f"{likely:.2g} GPU hours of {' and '.join(known)}"} if likely else {})


def seconds_of(cfg: Config, jobs: Sequence[Job], *, train_images: int | None) -> dict[str, float]:
    """Estimated seconds of training and sampling, as far as something like them was measured."""
    found = like(cfg, list(measured_in(cfg.runs_dir)))
    if found is None:
        return {}
    waits = train_images is None and needs_images(cfg.train.duration)
    seconds = {job.name: _sampling_seconds(cfg, job, found) for job in jobs if job.name == "sample"}
    if not objective_kind(cfg).diffusion:
        seconds = {}
    if not waits and any(job.name == "train" for job in jobs):
        seconds = {"train": _training_seconds(cfg, found, train_images)} | seconds
    return seconds


def shipped_cost(overrides: Sequence[str]) -> str | None:
    """What the header of the chosen experiment says of its cost, in a line; None where it says nothing."""
    name = next((override.partition("=")[2] for override in overrides if override.startswith("experiment=")), "")
    path = CONFIG_ROOT / "experiment" / f"{name}.yaml"
    found = re.search(r"^# Cost: +(.*(?:\n#  +.*)*)", path.read_text(), re.MULTILINE) if path.is_file() else None
    said = "" if found is None else re.sub(r"\n#  +", " ", found[1]).strip()
    return None if said in ("", "not measured") else f"{name} as shipped: {said}"


def _training(cfg: Config, job: Job, found: Measured, train_images: int | None) -> str:
    train, ranks = cfg.train, _ranks(cfg)
    plan = plan_for(cfg, train_images=train_images or train.global_batch, world_size=ranks)
    seconds = _training_seconds(cfg, found, train_images)
    copies = 1 + bool(train.ema.half_life) + len(train.ema.power_widths)
    moments = {"sgd": 1, "muon": 1}.get(train.optim.kind, 2)
    kept = train.keep_last + (plan.total_steps // plan.keep_every if plan.keep_every else 0)
    disk = 4 * found.parameters * (copies + moments) * kept
    memory = f"{found.memory_gib:.1f} GiB of GPU memory, " if found.memory_gib else ""
    notes = [f"{found.images_per_second:,.0f} images/s on {found.device}, {found.batch} at once: {found.source}"]
    notes += [f"as if {ranks} processes were {ranks} times as fast"] if ranks > 1 else []
    return f"{_time(seconds, job)}{memory}{size_in_words(disk)} of checkpoints ({'; '.join(notes)})"


def _training_seconds(cfg: Config, found: Measured, train_images: int | None) -> float:
    train, ranks = cfg.train, _ranks(cfg)
    plan = plan_for(cfg, train_images=train_images or train.global_batch, world_size=ranks)
    return plan.total_steps * train.global_batch / (found.images_per_second * ranks)


def _sampling_seconds(cfg: Config, job: Job, found: Measured) -> float:
    sampler, processes = cfg.sample.sampler, job.resources.nodes * job.resources.tasks_per_node * job.resources.parts
    calls = cfg.sample.count * sampler.calls * (2 if sampler.guidance.active else 1)
    return calls / (_BACKWARD * found.images_per_second * processes)


def _sampling(cfg: Config, job: Job, found: Measured) -> str:
    seconds = _sampling_seconds(cfg, job, found)
    disk = cfg.sample.count * cfg.data.channels * cfg.data.image_size**2
    return f"{_time(seconds, job)}{size_in_words(disk)} of images at most (from the speed of training: {found.source})"


def _gpus(job: Job) -> int:
    """Of all nodes and parts."""
    return job.resources.nodes * job.resources.gpus * job.resources.parts


def _time(seconds: float, job: Job) -> str:
    """Time, and GPU hours where there are GPUs."""
    gpus = _gpus(job)
    hours = f"{seconds / 3600 * gpus:.2g} GPU hours, " if gpus else ""
    return f"about {duration(seconds)}, {hours}"
