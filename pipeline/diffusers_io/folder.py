"""Folders that hold a network: diffusers' layout, or one safetensors file with its settings.

    model_index.json  unet/ or transformer/  scheduler/  pipeline.py      a denoiser for diffusers; vae/ where it
                                                                          works on latents
    config.json  diffusion_pytorch_model.safetensors                      an autoencoder for diffusers
    settings.json  model.safetensors                                      any network of ours; autoencoder/ where it
                                                                          works on latents

Writing and reading need neither diffusers nor a network built: settings, names and tensors. A folder of `export` also
has settings.json, which knows what diffusers' files cannot say, such as the diffusion process and the classes' names.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config.registry import import_plugins
from pipeline.config.schema import Precision
from pipeline.config.schema_diffusion import DiffusionConfig, SamplerConfig
from pipeline.config.schema_model import DiffusersConfig, KLAutoencoderConfig, ModelConfig, UNetConfig
from pipeline.diffusers_io.schedulers import Scheduling, process_of, scheduling
from pipeline.diffusers_io.tables import Sizes, as_it_is, from_config, from_weights, to_config, to_weights
from pipeline.models.build import build_network
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, read_json, write_json

Format = Literal["diffusers", "safetensors"]
SETTINGS, WEIGHTS, DIFFUSERS_WEIGHTS = "settings.json", "model.safetensors", "diffusion_pytorch_model.safetensors"
AUTOENCODER = "autoencoder"  # the folder of the one that a denoiser of latents needs, beside our own settings
TRAINING_ONLY = ("balance.", "augmentation.")  # weighs losses, embeds augmentation: nothing that sampling needs
PIPELINE = "pipeline"  # name of the module with LabelPipeline inside a folder


class AtRest(BaseModel):
    """What is stored of a network; tensors are left out of settings.json."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="ignore", frozen=True, protected_namespaces=())


class Latents(AtRest):
    """What a denoiser of latents needs to make images: the autoencoder, and how its latents were normalised.

    `mean` and `std` are per channel, of latents as the autoencoder makes them.
    """

    autoencoder: "Network" = Field(exclude=True)
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Network(AtRest):
    """A network at rest: what it takes to build it, its weights under our names, and what it was trained for."""

    format: int = 1
    model: ModelConfig
    shape: tuple[int, int, int]
    weights: Mapping[str, Tensor] = Field(exclude=True, repr=False)
    classes: int = 0
    class_names: tuple[str, ...] = ()
    attributes: int = 0
    attribute_names: tuple[str, ...] = ()
    outputs: int | None = None
    diffusion: DiffusionConfig | None = None
    sampler: SamplerConfig = SamplerConfig()
    seed: int = 0  # of the run: with an image's own seed, it decides the noise
    precision: Precision = "fp32"  # that the network runs in
    latents: Latents | None = None
    made_from: Mapping[str, Any] = {}
    plugins: tuple[str, ...] = ()  # modules that register its kinds
    note: str = Field("", exclude=True)  # why it is no network of ours, where diffusers builds it

    @property
    def sizes(self) -> Sizes:
        """As the tables of diffusers' names want it."""
        return Sizes(self.shape, self.classes, self.outputs)


def write_safetensors(folder: Path, network: Network) -> None:
    """settings.json and model.safetensors, atomically."""
    with atomic_path(folder) as partial:
        parts = {partial: network}
        if network.latents is not None:
            parts[partial / AUTOENCODER] = network.latents.autoencoder
        for place, part in parts.items():
            place.mkdir()
            _save(part.weights, place / WEIGHTS)
            write_json(place / SETTINGS, settings_of(part))


def write_diffusers(folder: Path, network: Network) -> list[str]:
    """A folder that diffusers loads, atomically. Returns in what it samples differently from us.

    Raises:
        UserError: for a network or a process that has no equal in diffusers, saying why.
    """
    notes: list[str] = []
    with atomic_path(folder) as partial:
        partial.mkdir()
        if isinstance(network.model, KLAutoencoderConfig):
            _component(partial, network)
        else:
            notes = _denoiser(partial, network)
        write_json(partial / SETTINGS, settings_of(network))
    return notes


def read(folder: Path) -> Network:
    """The network of a folder of either kind. `diffusion` is None where neither its settings nor a scheduler tell it.

    Raises:
        UserError: for a folder of neither kind, and for a network that has no equal among ours.
        Incomplete: for files that are missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give one that `export` or diffusers wrote.")
    known: Mapping[str, Any] = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    part = next((name for name in ("unet", "transformer", "") if (folder / name / "config.json").is_file()), None)
    if (folder / WEIGHTS).is_file():
        return _described(known, read_weights(folder / WEIGHTS), folder)
    if part is not None:
        return _read_diffusers(folder, folder / part, known)
    raise UserError(
        f"{folder} holds no network: expected {SETTINGS} and {WEIGHTS}, or diffusers' unet/, transformer/, config.json."
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Pickled weights are never read.

    Raises:
        Incomplete: where it is missing or damaged.
    """
    if not path.is_file():
        raise Incomplete(f"{path} does not exist. Only safetensors are read, never pickled weights.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Incomplete(f"{path} cannot be read: {error}") from error


def settings_of(network: Network) -> dict[str, Any]:
    """What settings.json says: all but the tensors."""
    return network.model_dump(mode="json")


def _described(settings: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path) -> Network:
    """The network of our settings.json in `folder`, with the autoencoder that it needs."""
    latents = settings.get("latents")
    if latents is not None:
        latents = {**latents, "autoencoder": read(folder / (AUTOENCODER if (folder / AUTOENCODER).is_dir() else "vae"))}
    import_plugins(settings.get("plugins", ()))
    try:
        return Network.model_validate({**settings, "latents": latents, "weights": weights})
    except ValidationError as error:
        raise Incomplete(f"{folder / SETTINGS} cannot be read: {error}") from error


def _read_diffusers(folder: Path, part: Path, known: Mapping[str, Any]) -> Network:
    """The network in `part` of a folder of diffusers; where `known` is empty, the scheduler tells the process."""
    path = part / "config.json"
    config, weights = read_json(path), read_weights(part / DIFFUSERS_WEIGHTS)
    try:
        model, sizes, note = _understood(config)
        with torch.device("meta"):
            like = build_network(model, shape=sizes.shape, classes=sizes.classes, outputs=sizes.outputs).state_dict()
        ours = from_weights(model, config, weights, like=like)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be understood ({type(error).__name__}: {error}). Expected the settings that diffusers "
            "writes, with the sizes of the network among them."
        ) from error
    if known:  # it also knows what diffusers' settings do not hold, such as a transformer's dropout
        return _described(known, ours, folder)
    process = _process(folder, learned_variance=sizes.outputs == 2 * sizes.shape[0])
    return Network(model=model, weights=ours, **sizes._asdict(), diffusion=process, note=note)


def _understood(config: Mapping[str, Any]) -> tuple[ModelConfig, Sizes, str]:
    """The network of a config.json, and why it is none of ours where diffusers is to build it."""
    try:
        return *from_config(config), ""
    except UserError as error:
        found = as_it_is(config)
        if found is None:
            raise
        return *found, str(error)


def _process(folder: Path, *, learned_variance: bool) -> DiffusionConfig | None:
    """What the folder's scheduler says of training; older folders have its file at the top."""
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file() and (process := process_of(read_json(path))) is not None:
            return DiffusionConfig.model_validate({**process, "learned_variance": learned_variance})
    return None


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def _component(folder: Path, network: Network, **more: Any) -> str:
    """config.json, with `more` keys, and weights; returns the name of the class in diffusers."""
    config = to_config(network.model, network.sizes) | more
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    _save(to_weights(network.model, network.sizes, network.weights), folder / DIFFUSERS_WEIGHTS)
    return str(config["_class_name"])


def _denoiser(partial: Path, network: Network) -> list[str]:
    if network.diffusion is None:
        raise UserError("A denoiser without a diffusion process cannot be sampled from: use `--format safetensors`.")
    name = "unet" if isinstance(network.model, UNetConfig | DiffusersConfig) else "transformer"
    parts = {name: _component(partial / name, network)}
    if network.latents is not None:
        scale = {"latents_mean": network.latents.mean, "latents_std": network.latents.std}
        parts["vae"] = _component(partial / "vae", network.latents.autoencoder, **scale)
    plan = scheduling(network.diffusion, network.sampler)
    (partial / "scheduler").mkdir()
    write_json(partial / "scheduler" / "scheduler_config.json", plan.config)
    shutil.copyfile(Path(__file__).with_name("label_pipeline.py"), partial / f"{PIPELINE}.py")
    # diffusers reads the parts in this order, so this file is not written with sorted keys.
    index = _index({**parts, "scheduler": plan.config["_class_name"]}, network, plan)
    (partial / "model_index.json").write_text(json.dumps(index, indent=1))
    return plan.notes


def _index(parts: Mapping[str, str], network: Network, plan: Scheduling) -> dict[str, Any]:
    """model_index.json: a pipeline of diffusers where one does it, else ours."""
    own = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}.get(parts["scheduler"])
    eta = network.sampler.eta if network.sampler.kind == "ddim" else None
    plain = network.model.condition == "none" and network.latents is None and not eta
    listed = {part: ["diffusers", name] for part, name in parts.items()}
    if own and "unet" in parts and plain and network.outputs in (None, network.shape[0]):
        return {"_class_name": own, **listed}
    return {
        "_class_name": [PIPELINE, "LabelPipeline"],
        **listed,
        "classes": network.classes if network.model.condition == "class" else 0,
        "start": plan.start,
        "flow_start": plan.flow_start,
        "steps": network.sampler.steps,
        "guidance": network.sampler.guidance.factor,
        "eta": eta or 0.0,
    }
