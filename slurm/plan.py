"""What a submission would do, and what follows from the config. Nothing is written, made or submitted."""

from rich.console import Console
from rich.table import Table

from pipeline.config.durations import needs_images, to_images, to_steps
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import Resources
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import read_json
from slurm.graph import ordered
from slurm.watching import duration
from slurm.workflows import Launch


def show(launch: Launch, console: Console) -> None:
    """Print the graph with what is complete already, then the derived quantities."""
    complete = launch.complete()
    table = Table(title=f"{launch.run.path} on cluster={launch.cfg.cluster.name}", title_justify="left")
    for column in ("job", "after", "asks for", "command", "now"):
        table.add_column(column, overflow="fold")
    for job in ordered(launch.jobs):
        now = "complete: skipped" if complete[job.name] else "to do"
        table.add_row(job.name, ", ".join(job.parents), asked(job.resources), job.command(), now)
    console.print(table)
    for name, value in derived(launch.cfg).items():
        console.print(f"{name:22s} {value}", highlight=False)


def asked(resources: Resources) -> str:
    """Resources in words."""
    words = [f"{resources.nodes} nodes x"] if resources.nodes > 1 else []
    words.append(f"{resources.tasks_per_node} process{'es' if resources.tasks_per_node > 1 else ''}")
    words += [f"{resources.gpus} GPUs"] if resources.gpus else []
    words += [f"{resources.cpus} cores each"] if resources.cpus else []
    words += [f"{resources.memory_gb:g} GB"] if resources.memory_gb else []
    words.append(f"{duration(60 * resources.minutes)} at most")
    words += [f"{resources.parts} parts"] if resources.parts > 1 else []
    return ", ".join(words)


def derived(cfg: Config) -> dict[str, str]:
    """Quantities that follow from the config, in words. Those that need the data say so until it is prepared."""
    train, images = cfg.train, train_images(cfg)
    ranks = cfg.cluster.train.nodes * cfg.cluster.train.tasks_per_node
    rows = {"global batch": f"{train.global_batch} = {ranks} process(es) x {train.global_batch / ranks:g}"}
    if needs_images(train.duration) and images is None:
        return rows | {"training": f"{train.duration}; in steps once the data is prepared ({data_directory(cfg)})"}
    total = to_images(train.duration, batch=train.global_batch, train_images=images)
    steps = to_steps(train.duration, batch=train.global_batch, train_images=images)
    rows["training"] = f"{steps} steps, {total / 1000:g} thousand images" + (
        f", {total / images:.1f} epochs of {images}" if images else ""
    )
    if not needs_images(train.checkpoint_every) or images:
        every = to_steps(train.checkpoint_every, batch=train.global_batch, train_images=images)
        rows["checkpoints"] = f"every {every} steps, the last {train.keep_last} kept"
    rows["samples"] = f"{cfg.sample.count}, {cfg.sample.sampler.steps} steps of {cfg.sample.sampler.kind}"
    return rows


def train_images(cfg: Config) -> int | None:
    """The size of the training split; None while it is not prepared."""
    try:
        return int(read_json(data_directory(cfg) / "shards" / "train" / "manifest.json")["count"])
    except Incomplete:
        return None
