"""What a folder says of the autoencoder in it, before anything of it is loaded. Torch-free.

A run directory has `config.yaml`, a folder of `pipeline export` has `settings.json`, diffusers' has `config.json`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.paths import run_directory, training_shards
from pipeline.config.schema import Config
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import content_hash, read_json

KINDS = ("kl_autoencoder", "bottleneck_autoencoder")  # those with latents that are small images
DIFFUSERS_CLASS = "AutoencoderKL"


@dataclass(frozen=True)
class Facts:
    """Of one autoencoder: `factor` is an image's side over its latent's, `channels` are the image's."""

    kind: str
    channels: int
    factor: int
    latent_channels: int
    settings: str  # hash of the network's settings
    averaged: bool = True  # whether there are averaged weights


def facts_of(cfg: Config) -> Facts:
    """Of the autoencoder that a config trains."""
    return _facts(cfg.model_dump(mode="json"))


def facts_in(folder: Path) -> Facts | None:
    """Of the autoencoder in a folder; None where there is none, or nothing that can be read."""
    try:
        if (folder / "config.yaml").is_file():
            return _facts(yaml.safe_load((folder / "config.yaml").read_text()))
        if (folder / "settings.json").is_file():
            ours = read_json(folder / "settings.json")
            return _facts({"model": ours["model"], "data": {"channels": ours["shape"][0]}})
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            halvings = len(config["block_out_channels"]) - 1
            name = str(config.get("_class_name", DIFFUSERS_CLASS))
            kind = KINDS[0] if name == DIFFUSERS_CLASS else name
            settings = content_hash({key: value for key, value in config.items() if not key.startswith("_")})
            return Facts(kind, config["in_channels"], 2**halvings, config["latent_channels"], settings)
    except (Incomplete, KeyError, TypeError, yaml.YAMLError):
        return None
    return None


def _facts(values: dict[str, Any]) -> Facts:
    model, average = values["model"], values.get("train", {}).get("average", {})
    if model["kind"] not in KINDS:
        return Facts(model["kind"], values["data"]["channels"], 1, 0, content_hash(model))
    halvings = len(model["multipliers"]) - 1
    averaged = average.get("half_life", "") is not None
    channels, latent, hashed = values["data"]["channels"], model["latent_channels"], content_hash(model)
    return Facts(model["kind"], channels, 2**halvings, latent, hashed, averaged)


def missing_autoencoder(cfg: Config) -> str | None:
    """What is wrong where the autoencoder of `cfg.latents` is not there, and the command that makes it."""
    latents = cfg.latents
    if latents is None or facts_in(latents.autoencoder) is not None:
        return None
    found = "which does not exist" if not latents.autoencoder.exists() else "which holds no autoencoder"
    expected = "expected a run directory, or a folder written by `pipeline export` or by diffusers"
    if latents.experiment is None:
        return (
            f"latents.autoencoder: found {latents.autoencoder}, {found}; {expected}. Train one: python -m pipeline "
            "train experiment=NAME, or name the experiment in latents.experiment and submit."
        )
    return (
        f"latents.autoencoder: found {latents.autoencoder}, {found}; {expected}. Train it and encode the images by "
        f"one command: python -m slurm submit {run_directory(cfg)}"
    )


def require_latents(cfg: Config) -> None:
    """Raise `Incomplete`, naming the command, where a run is to work on latents that are not encoded."""
    if cfg.latents is not None and not (training_shards(cfg) / "train" / "manifest.json").is_file():
        raise Incomplete(
            f"{training_shards(cfg)}: the latents of {cfg.data.name} by {cfg.latents.autoencoder} are not there. Run: "
            f"python -m data_prep encode {run_directory(cfg)} (or with the same words)"
        )
