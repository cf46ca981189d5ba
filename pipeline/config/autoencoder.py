"""What a folder says of the autoencoder in it, before anything of it is loaded. Torch-free.

A run directory has `config.yaml`, a folder of `mudi export` has `settings.json`, diffusers' has `config.json`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.paths import run_directory, training_shards
from pipeline.config.registry import NETWORKS, import_plugins
from pipeline.config.schema import Config
from pipeline.config.schema_model import ModelConfig
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import content_hash, read_json

DIFFUSERS_CLASS = "AutoencoderKL"
_LARGE = 4096  # px: halved by any encoder without a rest


@dataclass(frozen=True)
class Facts:
    """Of one autoencoder: `factor` is an image's side over its latent's, `channels` are the image's.

    `latent_channels` is 0 where the network has no latents that are small images.
    """

    kind: str
    channels: int
    factor: int
    latent_channels: int
    settings: str  # hash of the network's settings
    has_ema: bool = True  # whether there is an EMA of the weights


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
            channels, plugins = ours["shape"][0], ours.get("plugins", ())
            return _facts({"model": ours["model"], "data": {"channels": channels}, "plugins": plugins})
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            halvings = len(config["block_out_channels"]) - 1
            kind = str(config.get("_class_name", DIFFUSERS_CLASS))
            known = kind == DIFFUSERS_CLASS
            settings = content_hash({key: value for key, value in config.items() if not key.startswith("_")})
            return Facts(kind, config["in_channels"], 2**halvings, config["latent_channels"] if known else 0, settings)
    except (Incomplete, KeyError, TypeError, ValidationError, yaml.YAMLError):
        return None
    return None


def _facts(values: dict[str, Any]) -> Facts:
    import_plugins(values.get("plugins", ()))
    model: ModelConfig = NETWORKS.validate(values["model"])
    channels, hashed = values["data"]["channels"], content_hash(values["model"])
    if model.is_a != "autoencoder":
        return Facts(model.kind, channels, 1, 0, hashed)
    has_ema = values.get("train", {}).get("ema", {}).get("half_life", "") is not None
    latent, side, _ = model.latent_shape((channels, _LARGE, _LARGE))
    return Facts(model.kind, channels, _LARGE // side, latent, hashed, has_ema)


def missing_autoencoder(cfg: Config) -> str | None:
    """What is wrong where the autoencoder of `cfg.latents` is not there, and the command that makes it."""
    latents = cfg.latents
    if latents is None or facts_in(latents.autoencoder) is not None:
        return None
    found = "which does not exist" if not latents.autoencoder.exists() else "which holds no autoencoder"
    expected = "expected a run directory, or a folder written by `mudi export` or by diffusers"
    if latents.experiment is None:
        return (
            f"latents.autoencoder: found {latents.autoencoder}, {found}; {expected}. Train one: "
            "mudi train experiment=NAME, or name the experiment in latents.experiment and submit."
        )
    return (
        f"latents.autoencoder: found {latents.autoencoder}, {found}; {expected}. Train it and encode the images by "
        f"one command: mudi submit {run_directory(cfg)}"
    )


def require_latents(cfg: Config) -> None:
    """Raise `Incomplete`, naming the command, where a run is to work on latents that are not encoded."""
    if cfg.latents is not None and not (training_shards(cfg) / "train" / "manifest.json").is_file():
        raise Incomplete(
            f"{training_shards(cfg)}: the latents of {cfg.data.name} by {cfg.latents.autoencoder} are not there. Run: "
            f"mudi prepare encode {run_directory(cfg)} (or with the same overrides)"
        )
