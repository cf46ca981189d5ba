"""A folder of `export`, or of diffusers, as what drawing needs: settings, the objective with its weights, class names.

Nothing else is there: no training data, no run directory, no optimiser. What the folder does not say takes its default,
and `Exported.notes` says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import checkpoint
from pipeline.config.autoencoder import facts_in
from pipeline.config.load import CONFIG_FILE, config_of, run_named
from pipeline.config.overrides import key_of
from pipeline.config.paths import protocol_hash
from pipeline.config.schema import Config
from pipeline.data.shards import INDEX, Manifest, ShardDirectory
from pipeline.diffusers_io.folder import AUTOENCODER, SETTINGS, TRAINING_ONLY, WEIGHTS, Network, read
from pipeline.models.pretrained import weights_file
from pipeline.objectives.build import build_objective
from pipeline.objectives.objective import Objective
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import sha256_file

OVERRIDES = ("sample", "cluster")  # what may be said of a model that is trained
_MARKS = (SETTINGS, WEIGHTS, "model_index.json", "config.json", "unet/config.json", "transformer/config.json")


def export_named(overrides: Sequence[str]) -> Path | None:
    """The exported folder that a command line begins with; None where it begins with a run, or with settings.

    Raises:
        UserError: for a folder that is neither a run nor an export.
    """
    folder = run_named(overrides)
    if folder is None or (folder / CONFIG_FILE).is_file():
        return None
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"'{folder}' {found}. Expected a run directory, or a folder that `export` wrote.")
    if not any((folder / name).is_file() for name in _MARKS):
        raise UserError(
            f"'{folder}' is neither a run directory, which has {CONFIG_FILE}, nor a folder that `export` or diffusers "
            f"wrote, which has {SETTINGS}, model_index.json or config.json. Give one of these."
        )
    return folder


@dataclass(frozen=True)
class Exported:
    """A network at rest, ready to be built and asked for images. `overrides`: those of this call."""

    folder: Path
    network: Network
    overrides: tuple[str, ...] = ()

    @classmethod
    def opened(cls, folder: Path, overrides: Sequence[str] = ()) -> "Exported":
        """Read the folder.

        Raises:
            UserError: for a network that makes no images, or not in a way that the folder says; for overrides of
                what training decided.
        """
        if wrong := [override for override in overrides if key_of(override).split(".")[0] not in OVERRIDES]:
            raise UserError(
                f"{', '.join(wrong)}: the model of {folder} is trained. Say settings of {' or '.join(OVERRIDES)}."
            )
        network = read(folder)
        if network.model.is_a == "autoencoder":
            raise UserError(
                f"{folder} holds a network of model.kind={network.model.kind}, which makes no images of noise. "
                "Expected an exported diffusion model, GAN or VAE."
            )
        if network.diffusion is None:
            raise UserError(
                f"{folder} does not say by which diffusion process its network was trained: it has no scheduler that "
                "is known here. Expected a folder that `export` wrote, or one of diffusers with scheduler/."
            )
        if network.latents is None and any((folder / name).is_dir() for name in ("vae", "vqvae")):
            raise UserError(
                f"{folder} has an autoencoder, and does not say how its latents were normalised for the network. Of "
                "models of latents, only folders that `export` wrote are drawn with."
            )
        return cls(folder, network, tuple(overrides))

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The settings: those that the folder says, those of this call, then `overrides`."""
        return config_of(self._settings, [*self.overrides, *overrides], trained=True)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        network, latents = self.network, self._autoencoder
        channels, side = network.shape[0], network.shape[1]
        if network.latents is not None and latents is not None and (facts := facts_in(latents)):
            channels, side = network.latents.autoencoder.shape[0], side * facts.factor
        sampler = network.sampler.alone.model_dump(mode="json")
        source = {"kind": "folder", "path": str(self.folder), "attribute_columns": network.attribute_names}
        data = {"name": "exported", "source": source, "image_size": side, "channels": channels}
        return {
            "name": "exported",
            "plugins": network.plugins,
            "seed": network.seed,
            "data_dir": str(self.folder / "data"),
            "data": {**data, "split": {"rule": "all"}},
            "model": network.model.model_dump(mode="json"),
            "latents": None if latents is None else {"autoencoder": str(latents)},
            "diffusion": None if network.diffusion is None else network.diffusion.model_dump(mode="json"),
            "train": {"precision": network.precision},
            "sample": {"sampler": sampler},
            "evaluate": {"reference_splits": ["train"], "domain": {"enabled": False}},
            "cluster": {"name": "local"},
        }

    @property
    def _autoencoder(self) -> Path | None:
        """The folder of the autoencoder that the network needs."""
        if self.network.latents is None:
            return None
        ours = self.folder / AUTOENCODER
        return ours if ours.is_dir() else self.folder / "vae"

    @cached_property
    def data(self) -> ShardDirectory:
        """What stands in for the training data: names and sizes, and no image."""
        network, cfg = self.network, self.config()
        classes = list(network.class_names) or [f"class {k}" for k in range(network.classes)]
        names, protocol = list(network.attribute_names), {"name": cfg.data.name, "hash": protocol_hash(cfg.data)}
        images = Manifest.of_no_image(network.shape, classes=classes, attributes=names, protocol=protocol)
        manifest = replace(images, **self._of_latents(cfg))
        unknown = np.full((1, len(names)), -1, np.int8) if names else None  # all that is not asked for
        return ShardDirectory(self.folder, manifest, np.zeros(0, INDEX), unknown)

    def _of_latents(self, cfg: Config) -> dict[str, Any]:
        """What a manifest of latents says otherwise than one of images; {} for a model of pixels."""
        latents, folder = self.network.latents, self._autoencoder
        if latents is None or folder is None or (facts := facts_in(folder)) is None:
            return {}
        d, *sides = self.network.shape
        autoencoder = {"sha256": sha256_file(weights_file(folder)), "config": facts.settings, "path": str(folder)}
        return {
            "kind": "latents",
            "encoding": "latent",
            "dtype": "float32",
            "shape": (2 * d, *sides),
            # Of means, then of deviations. The spread stands in the deviations, where it is read without rounding.
            "mean": [*latents.mean, *latents.std],
            "std": [0.0] * (2 * d),
            "made_from": {
                "autoencoder": autoencoder,
                "mirrored": False,
                "images": "",
                "image_shape": (cfg.data.channels, cfg.data.image_size, cfg.data.image_size),
            },
        }

    def objective(self, cfg: Config, *, device: torch.device) -> Objective:
        """The objective with the folder's weights, for inference."""
        objective = build_objective(cfg, self.data.manifest)
        load_network(objective, self.network)
        for network in objective.networks.values():
            network.to(device).eval().requires_grad_(False)
        return objective

    @property
    def notes(self) -> list[str]:
        """What the folder says, what it does not, and what is done about it; a sentence each."""
        said, sampler = self.network.model_fields_set, self.network.sampler
        classes, attributes = self.network.classes, self.network.attributes
        labelled = self.network.model.condition == "class"
        found = {
            "The same seed gives the same image as in the run that was exported.": "seed" in said,
            "The folder does not say how to sample: sampler, steps and guidance are the defaults.": (
                "sampler" not in said
            ),
            "The folder does not say the seed of the noise, so a seed may give another image than in its run.": (
                "seed" not in said
            ),
            "Guidance by a second model is not in the folder: it begins without guidance.": (
                sampler.guidance.kind == "autoguidance" and sampler.guidance.active
            ),
            "Where no class is chosen, the classes come in turn.": labelled and classes > 0,
            "The folder does not name its classes, and the last row of its table is taken for no class.": (
                labelled and classes > 0 and not self.network.class_names
            ),
            "Attributes that are not chosen are unknown to the model.": attributes > 0,
            "The training images are not in the folder: the nearest of them cannot be shown.": True,
        }
        return [note for note, holds in found.items() if holds]


def load_network(objective: Objective, network: Network) -> None:
    """Put the weights of a network at rest into the objective's own; what only training needs stays as it is."""
    first = objective.ema_networks[0]
    fresh = objective.networks[first].state_dict()
    training_only = {name: tensor for name, tensor in fresh.items() if name.startswith(TRAINING_ONLY)}
    checkpoint.load_strictly(
        objective.networks[first], {**training_only, **network.weights}, what="the network of the folder"
    )
