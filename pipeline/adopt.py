"""The import job: a network from a folder becomes step 0 of a new run, which training goes on from.

python -m pipeline import FOLDER experiment=glyphs16 name=from-elsewhere
python -m pipeline train runs/from-elsewhere
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
from pipeline.interchange.folder import Network, read, scheduler_of
from pipeline.interchange.schedulers import disagreements
from pipeline.objectives.build import build_objective
from pipeline.objectives.space import remember
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir, create_run

TRAINING_ONLY = ("balance.", "augmentation.")  # weighs losses, is told of augmentation: no folder holds it


def main(words: list[str]) -> int:
    """`python -m pipeline import FOLDER experiment=NAME [name=RUN] [key=value ...]`."""
    parser = argparse.ArgumentParser(prog="pipeline import", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="written by `pipeline export`, or by diffusers")
    options, rest = parser.parse_known_args(words)
    run = adopt(options.folder, config_from(rest))
    print(f"step 0 is the network of {options.folder}. Train it: python -m pipeline train {run.path}", file=sys.stderr)
    print(run.path)
    return 0


def adopt(folder: Path, cfg: Config) -> RunDir:
    """A new run whose first checkpoint holds the folder's network; its model settings replace those of `cfg`.

    Raises:
        UserError: where the network does not fit the data or the diffusion process, saying everything that differs;
            where the run has checkpoints already.
    """
    network = read(folder)
    plugins = list(dict.fromkeys([*cfg.plugins, *network.plugins]))
    model = network.model.model_dump(mode="json")
    cfg = validated({**cfg.model_dump(mode="json"), "model": model, "plugins": plugins})
    manifest = read_manifest(training_shards(cfg) / "train")
    problems = [
        *_data_disagrees(network, manifest),
        *_latents_disagree(network, manifest),
        *_process_disagrees(folder, network, cfg),
    ]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{folder} does not fit these settings:\n{listed}\nSet them as the folder has them.")
    run = create_run(cfg)
    if run.steps():
        raise UserError(f"{run.path} has checkpoints of steps {run.steps()} already. Give another name: name=...")
    torch.manual_seed(cfg.seed)  # of what the folder does not hold, such as a second player
    checkpoint.write(run.checkpoint(0), _snapshot(cfg, manifest, network))
    remember(run, manifest, write=True)
    return run


def _snapshot(cfg: Config, manifest: Manifest, network: Network) -> checkpoint.Snapshot:
    """A training state before its first step: the imported weights, averages equal to them, no moments."""
    objective = build_objective(cfg, manifest)
    first = objective.averaged[0]
    fresh = objective.networks[first].state_dict()
    training_only = {name: tensor for name, tensor in fresh.items() if name.startswith(TRAINING_ONLY)}
    weights = {**training_only, **network.weights}
    checkpoint.load_strictly(objective.networks[first], weights, what="the imported network")
    states = {name: module.state_dict() for name, module in objective.networks.items()}
    kinds = ["average"] if cfg.train.average.half_life else []
    kinds += [f"power-{width:g}" for width in cfg.train.average.power_widths]
    tensors: dict[str, Any] = {f"network.{name}": state for name, state in states.items()}
    tensors |= {f"{kind}.{name}": states[name] for kind in kinds for name in objective.averaged}
    tensors |= {f"optimizer.{player}": {} for player in objective.trained}
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


def _process_disagrees(folder: Path, network: Network, cfg: Config) -> list[str]:
    """Ours says how it was trained; of another program's folder the scheduler tells what it can."""
    if network.diffusion is None:
        scheduler = scheduler_of(folder)
        return disagreements(scheduler, cfg.diffusion) if scheduler else []
    fields = ["parametrisation", "network_clock", "learned_variance"]
    fields += ["sigma_data"] if network.diffusion.parametrisation == "edm" else []
    found = [
        f"diffusion.{name}: found {getattr(cfg.diffusion, name)}, the network was trained with "
        f"{getattr(network.diffusion, name)}"
        for name in fields
        if getattr(cfg.diffusion, name) != getattr(network.diffusion, name)
    ]
    ours, its = cfg.diffusion.levels, network.diffusion.levels
    if not found and network.diffusion.network_clock == "timestep" and ours != its:
        found.append(f"diffusion.levels: found {ours}, but the network knows noise by the timesteps of {its}")
    return found
