"""The import job: a network from a folder becomes step 0 of a new run, to sample from, to score or to train further.

mudi import FOLDER name=from-elsewhere data=cifar10
mudi sample runs/from-elsewhere
mudi train runs/from-elsewhere

The folder says what the network is, and by which process it was trained: `model` and `diffusion` need not be given.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint
from pipeline.config.load import config_from, validated
from pipeline.config.paths import training_shards
from pipeline.config.schema import Config
from pipeline.data.latents import latent_shape, spread_of
from pipeline.data.shards import Manifest, read_manifest
from pipeline.diffusers_io.folder import Network, read
from pipeline.diffusers_io.schedulers import disagreements
from pipeline.exported import load_network
from pipeline.objectives.build import build_objective
from pipeline.objectives.latent_codec import remember
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir, create_run

ROWS = "condition.rows.weight"


def main(argv: list[str]) -> int:
    """`mudi import FOLDER name=RUN data=DATA [experiment=NAME] [key=value ...]`."""
    parser = argparse.ArgumentParser(
        prog="mudi import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="written by `mudi export`, or by diffusers")
    options, rest = parser.parse_known_args(argv)
    network = read(options.folder)
    given: dict[str, Any] = {"model": network.model.model_dump(mode="json")}
    if network.diffusion is not None:
        given["diffusion"] = network.diffusion.model_dump(mode="json")
    cfg = config_from(rest, given=given)
    if plugins := [name for name in network.plugins if name not in cfg.plugins]:
        cfg = validated({**cfg.model_dump(mode="json"), "plugins": [*cfg.plugins, *plugins]})
    run = import_diffusers(options.folder, cfg)
    further = f"It is trained further by: mudi train {run.path}"
    notes = [
        f"step 0 is the network of {options.folder}. Go on: mudi sample {run.path}",
        f"It is run by diffusers, and not trained. {network.note}" if network.note else further,
    ]
    if network.diffusion is None and network.model.is_a != "autoencoder":
        row = cfg.diffusion.parametrisation
        notes.append(f"note: the folder has no scheduler that is known here: taken is diffusion.parametrisation={row}")
    print("\n".join(notes), file=sys.stderr)
    print(run.path)
    return 0


def import_diffusers(folder: Path, cfg: Config) -> RunDir:
    """A new run whose first checkpoint holds the folder's network.

    Raises:
        UserError: where the network does not fit the settings, the data or the diffusion process, saying everything
            that differs; where the run has checkpoints already.
    """
    network, manifest = read(folder), read_manifest(training_shards(cfg) / "train")
    network = _with_no_label(network, manifest)
    problems = [*_data_disagrees(network, manifest), *_latents_disagree(network, manifest)]
    if network.diffusion is not None:
        problems += disagreements(network.diffusion, cfg.diffusion)
    if cfg.model.kind != network.model.kind:
        problems.append(f"model.kind: found {cfg.model.kind}, the folder's is {network.model.kind}")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{folder} does not fit these settings:\n{listed}\nSet them as the folder has them.")
    run = create_run(cfg)
    if run.steps():
        raise UserError(f"{run.path} has checkpoints of steps {run.steps()} already. Give another name: name=...")
    torch.manual_seed(cfg.seed)  # of what the folder does not hold, such as a discriminator
    checkpoint.write(run.checkpoint(0), _snapshot(cfg, manifest, network))
    remember(run, manifest, write=True)
    return run


def _with_no_label(network: Network, manifest: Manifest) -> Network:
    """`network` with a row for "no label", the mean of all, where its table has exactly one for each class of the data.

    Diffusers does not say whether the last row is a class. Names of classes, which our own folders have, do.
    """
    rows = network.weights.get(ROWS)
    if network.class_names or rows is None or not 0 < len(rows) == len(manifest.classes):
        return network
    weights = {**network.weights, ROWS: torch.cat([rows, rows.mean(0, keepdim=True)])}
    return network.model_copy(update={"classes": len(rows), "weights": weights})


def _snapshot(cfg: Config, manifest: Manifest, network: Network) -> checkpoint.Snapshot:
    """A training state before its first step: the imported weights, EMAs equal to them, no moments."""
    objective = build_objective(cfg, manifest)
    load_network(objective, network)
    states = {name: module.state_dict() for name, module in objective.networks.items()}
    kinds = ["ema"] if cfg.train.ema.half_life else []
    kinds += [f"power-{width:g}" for width in cfg.train.ema.power_widths]
    tensors: dict[str, Any] = {f"network.{name}": state for name, state in states.items()}
    tensors |= {f"{kind}.{name}": states[name] for kind in kinds for name in objective.ema_networks}
    tensors |= {f"optimizer.{name}": {} for name in objective.trained}
    return checkpoint.Snapshot(tensors, {"step": 0})


def _data_disagrees(network: Network, manifest: Manifest) -> list[str]:
    problems = []
    shape = latent_shape(manifest) if manifest.kind == "latents" else manifest.layout.shape
    any_size = network.model.is_a == "autoencoder"  # an autoencoder takes images of any size that its factor divides
    if network.shape[:1] != shape[:1] or (network.shape != shape and not any_size):
        problems.append(f"data: {manifest.kind} are {shape} [C, H, W], the network was built for {network.shape}")
    if network.model.condition == "class" and network.classes != len(manifest.classes):
        problems.append(f"data: found {len(manifest.classes)} classes, the network knows {network.classes}")
    if network.class_names and network.class_names != tuple(manifest.classes):
        problems.append("data: the classes have other names, or another order, than those of the network")
    if network.model.condition == "attributes" and network.attributes != len(manifest.attributes):
        problems.append(f"data: found {len(manifest.attributes)} attributes, the network knows {network.attributes}")
    return problems


def _latents_disagree(network: Network, manifest: Manifest) -> list[str]:
    """A network of latents fits those of one autoencoder, normalised as they were when it was trained."""
    if network.latents is None:
        return []
    if manifest.kind != "latents":
        return [
            "latents: found none, the network was trained on latents. Set latents.autoencoder to that of its folder"
        ]
    spread = spread_of(manifest)
    scales = {"mean": (spread.mean, network.latents.mean), "std": (spread.std, network.latents.std)}
    return [
        f"latents: their {name} per channel is {[round(v, 4) for v in ours]}, the network was trained with "
        f"{[round(v, 4) for v in its]}: these are another autoencoder's, or of other images"
        for name, (ours, its) in scales.items()
        if len(ours) != len(its) or any(abs(a - b) > 1e-3 * max(abs(b), 1) for a, b in zip(ours, its, strict=False))
    ]
