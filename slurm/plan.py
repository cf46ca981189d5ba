"""What a submission would do, and what follows from the config. Nothing is written, made or submitted."""

import shlex
import subprocess
from collections.abc import Sequence

from rich.console import Console

from pipeline.config.durations import needs_images
from pipeline.config.paths import data_directory
from pipeline.config.plan import plan_for
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import Resources
from pipeline.config.schema_objectives import objective_kind
from pipeline.config.weights import NO_FOLDER
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import read_json
from slurm.executor import python_of
from slurm.graph import ordered
from slurm.job import Job
from slurm.watching import duration
from slurm.workflows import Launch, trained_autoencoder


def show(launch: Launch, console: Console) -> None:
    """Print the graph with what is complete already, then the derived quantities. Commands stay in one line."""
    complete = launch.complete()
    _say(console, f"{launch.run.path} on cluster={launch.cfg.cluster.name}", "")
    for job in ordered(launch.jobs):
        after = f", after {', '.join(job.parents)}" if job.parents else ""
        _say(console, f"{job.name}: {'complete: skipped' if complete[job.name] else 'to do'}{after}")
        _say(console, f"  {job.command()}", f"  {asked(job.resources)}", "")
    for name, value in quantities(launch).items():
        _say(console, f"{name:14s} {value}")
    if objective_kind(launch.cfg).samples and launch.cfg.evaluate.inception.weights is None:
        _say(console, f"FID and IS     not measured: no weights. {NO_FOLDER}")
    _say(console, "parameters     `mudi train ... --dry-run` counts them, with the size of a checkpoint")


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def asked(resources: Resources) -> str:
    """Resources in words."""
    nodes = f"{resources.nodes} nodes x " if resources.nodes > 1 else ""
    words = [nodes + _counted(resources.tasks_per_node, "process", "processes")]
    words += [_counted(resources.gpus, "GPU", "GPUs") + (" a node" if nodes else "")] if resources.gpus else []
    words += [_counted(resources.cpus, "core", "cores") + " each"] if resources.cpus else []
    words += [f"{resources.memory_gb:g} GB"] if resources.memory_gb else []
    words.append(f"{duration(60 * resources.minutes)} at most")
    words += [f"{resources.parts} parts"] if resources.parts > 1 else []
    return ", ".join(words)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def quantities(launch: Launch) -> dict[str, str]:
    """What follows from the config, and from that of the autoencoder which the graph trains.

    Raises:
        UserError: as `derived`, and as `check_gpus`.
    """
    check_gpus(launch.cfg, launch.jobs)
    own = trained_autoencoder(launch.cfg)
    theirs = {f"autoencoder: {k}": v for k, v in derived(own).items() if k != "samples"} if own is not None else {}
    return theirs | derived(launch.cfg)


def check_gpus(cfg: Config, jobs: Sequence[Job]) -> None:
    """Refuse GPUs that this machine does not have, where jobs run here: they would run on the CPU.

    Raises:
        UserError: naming the settings, and how many GPUs torch sees.
    """
    asked = {f"cluster.{job.name}.gpus": job.resources.gpus for job in jobs if job.resources.gpus}
    if cfg.cluster.executor != "local" or not asked:
        return
    # The job's own Python is asked: this package's launcher does not load torch.
    words = [*shlex.split(python_of(cfg.cluster)), "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = int(done.stdout) if done.returncode == 0 else 0
    if short := [f"{name}={number}" for name, number in asked.items() if number > found]:
        raise UserError(
            f"{', '.join(short)}: found {found} GPUs on this machine, where cluster={cfg.cluster.name} runs its jobs. "
            "Ask for as many as there are (0: on the CPU), or name a cluster that has them."
        )


def derived(cfg: Config) -> dict[str, str]:
    """Quantities that follow from the config, in words. Those that need the data say so until it is prepared.

    Raises:
        UserError: a global batch that does not divide over the ranks, or exceeds the training split.
    """
    train, images = cfg.train, train_images(cfg)
    ranks = cfg.cluster.train.nodes * cfg.cluster.train.tasks_per_node
    plan = plan_for(cfg, train_images=images or train.global_batch, world_size=ranks)
    share = f"{train.global_batch} = {ranks} process(es) x {plan.accumulate} micro-batch(es) x {plan.micro_batch}"
    rows = {"global batch": share}
    samples = f"{cfg.sample.count}, {cfg.sample.sampler.steps} steps of {cfg.sample.sampler.kind}"
    if needs_images(train.duration) and images is None:
        waiting = f"{train.duration}; in steps once the data is prepared ({data_directory(cfg)})"
        return rows | {"training": waiting, "samples": samples}
    seen = plan.total_steps * train.global_batch
    epochs = f", {seen / images:.1f} epochs of {images}" if images else ""
    rows["training"] = f"{plan.total_steps} steps, {seen / 1000:g} thousand images{epochs}"
    if images or not needs_images(train.checkpoint_every):
        rows["checkpoints"] = f"every {plan.checkpoint_every} steps, the last {train.keep_last} kept"
    return rows | {"samples": samples}


def train_images(cfg: Config) -> int | None:
    """The size of the training split; None while it is not prepared."""
    try:
        return int(read_json(data_directory(cfg) / "shards" / "train" / "manifest.json")["count"])
    except (Incomplete, NotADirectoryError):
        return None
