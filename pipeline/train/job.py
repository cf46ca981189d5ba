"""The training job's command line, and what it would do."""

from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

from pipeline.config.load import config_from, run_named, to_yaml
from pipeline.config.needs import require
from pipeline.config.paths import run_directory, training_shards
from pipeline.config.plan import plan_for
from pipeline.config.schema import Config
from pipeline.data.shards import read_manifest
from pipeline.objectives.build import build_objective
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.run_dir import create_run
from pipeline.train.loop import train


def main(words: list[str], *, dry_run: bool = False) -> int:
    """`mudi train`; with `dry_run`, only say what it would do."""
    cfg = config_from(words)
    if path := run_named(words):  # a run directory may have been moved since its config was written
        cfg = cfg.model_copy(update={"runs_dir": path.parent, "name": path.name})
    if dry_run:
        describe(cfg)
        return 0
    require(cfg, "train")
    return train(cfg, create_run(cfg))


def describe(cfg: Config) -> None:
    """Print the resolved config and derived quantities: steps, images, epochs, parameters, size of checkpoints."""
    console = Console()
    console.print(to_yaml(cfg), markup=False, highlight=False)
    console.print(run_directory(cfg), highlight=False, soft_wrap=True)
    table = Table("quantity", "value")
    for name, value in derived(cfg).items():
        table.add_row(name, value)
    console.print(table)


def derived(cfg: Config) -> dict[str, str]:
    """What follows from the config and the prepared data, in words."""
    try:
        manifest = read_manifest(training_shards(cfg) / "train")
    except Incomplete as error:
        return {"data": "not prepared yet", "steps, epochs, parameters": f"known once it is: {error}"}
    plan = plan_for(cfg, train_images=manifest.count, world_size=1)
    with torch.device("meta"):
        networks = build_objective(cfg, manifest).networks
    parameters = sum(p.numel() for network in networks.values() for p in network.parameters())
    copies = 1 + bool(cfg.train.average.half_life) + len(cfg.train.average.power_widths)
    moments = 1 if cfg.train.optim.kind in ("sgd", "muon") else 2
    images = plan.total_steps * cfg.train.global_batch
    return {
        "data": f"{manifest.count} training images, {len(manifest.classes)} classes, shape {manifest.layout.shape}",
        "steps": f"{plan.total_steps}",
        "images": f"{images} ({images / manifest.count:.1f} epochs)",
        "parameters": f"{parameters / 1e6:.2f} M",
        "checkpoint": f"{parameters * 4 * (copies + moments) / 2**20:.1f} MiB each",
        "plan on one GPU": ", ".join(f"{k}={v}" for k, v in asdict(plan).items() if v is not None),
    }
