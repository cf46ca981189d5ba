"""The training job's command line, and what it would do."""

from dataclasses import asdict

import torch
from rich.console import Console
from rich.table import Table

from pipeline.config.load import config_from, run_named, to_yaml
from pipeline.config.needs import require
from pipeline.config.paths import protocol_hash, run_directory, training_shards
from pipeline.config.plan import plan_for
from pipeline.config.schema import Config
from pipeline.config.schema_data import attribute_names, class_count
from pipeline.data.shards import Manifest, read_manifest
from pipeline.objectives.build import build_objective
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.run_dir import create_run
from pipeline.train.loop import train


def main(overrides: list[str], *, dry_run: bool = False) -> int:
    """`mudi train`; with `dry_run`, only say what it would do."""
    cfg = config_from(overrides)
    if path := run_named(overrides):  # a run directory may have been moved since its config was written
        cfg = cfg.model_copy(update={"runs_dir": path.parent, "name": path.name})
    if dry_run:
        describe(cfg)
        return 0
    require(cfg, "train")
    return train(cfg, create_run(cfg))


def describe(cfg: Config) -> None:
    """Print all settings, and what follows from them last: steps, images, epochs, parameters, size of checkpoints."""
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
        later = {"data": "not prepared yet", "steps and epochs": f"known once it is: {error}"}
        coming = _coming(cfg)
        return later | (sizes(cfg, coming) if coming else {"parameters": "known once it is"})
    plan = plan_for(cfg, train_images=manifest.count, world_size=1)
    images = plan.total_steps * cfg.train.global_batch
    return {
        "data": f"{manifest.count} training images, {len(manifest.classes)} classes, shape {manifest.layout.shape}",
        "steps": f"{plan.total_steps}",
        "images": f"{images} ({images / manifest.count:.1f} epochs)",
        **sizes(cfg, manifest),
        "plan on one GPU": ", ".join(f"{k}={v}" for k, v in asdict(plan).items() if v is not None),
    }


def sizes(cfg: Config, manifest: Manifest) -> dict[str, str]:
    """Parameters, and bytes of a checkpoint, in words."""
    with torch.device("meta"):
        networks = build_objective(cfg, manifest).networks
    parameters = sum(p.numel() for network in networks.values() for p in network.parameters())
    copies = 1 + bool(cfg.train.ema.half_life) + len(cfg.train.ema.power_widths)
    moments = 1 if cfg.train.optim.kind in ("sgd", "muon") else 2
    checkpoint = f"{parameters * 4 * (copies + moments) / 2**20:.1f} MiB each"
    return {"parameters": f"{parameters / 1e6:.2f} M", "checkpoint": checkpoint}


def _coming(cfg: Config) -> Manifest | None:
    """What stands in for images that are not prepared; None where the number of classes or attributes is not known."""
    classes, attributes = class_count(cfg.data), attribute_names(cfg.data)
    asked = {"class": classes, "attributes": attributes}.get(cfg.model.condition, 0)
    if cfg.latents is not None or asked is None:
        return None
    shape = (cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    names = [f"class {k}" for k in range(classes or 0)]
    protocol = {"name": cfg.data.name, "hash": protocol_hash(cfg.data)}
    return Manifest.of_no_image(shape, classes=names, attributes=attributes or (), protocol=protocol)
