"""Folders that hold a network: diffusers' layout, or one safetensors file with its settings.

    model_index.json  unet/ or transformer/  scheduler/  pipeline.py      a denoiser for diffusers; vae/ where it
                                                                          works on latents
    config.json  diffusion_pytorch_model.safetensors                      an autoencoder for diffusers
    settings.json  model.safetensors                                      any network of ours; autoencoder/ where it
                                                                          works on latents

Writing and reading need neither diffusers nor a network built: settings, names and tensors.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config.registry import NETWORKS, import_plugins
from pipeline.config.schema_diffusion import DiffusionConfig, SamplerConfig
from pipeline.config.schema_model import DiTConfig, KLAutoencoderConfig, ModelConfig, UNetConfig
from pipeline.interchange.schedulers import Scheduling, scheduling
from pipeline.models import foreign, foreign_autoencoder, foreign_dit, foreign_unet
from pipeline.models.build import build_network
from pipeline.models.foreign import read_weights, understood
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, read_json, write_json

Format = Literal["diffusers", "safetensors"]
SETTINGS, WEIGHTS, THEIR_WEIGHTS = "settings.json", "model.safetensors", "diffusion_pytorch_model.safetensors"
AUTOENCODER = "autoencoder"  # the folder of the one that a denoiser of latents needs, beside our own settings
PIPELINE = "pipeline"  # name of the module with LabelPipeline inside a folder


@dataclass(frozen=True)
class Latents:
    """What a denoiser of latents needs to make images: the autoencoder, and how its latents were normalised.

    `mean` and `std` are per channel, of latents as the autoencoder makes them.
    """

    autoencoder: "Network"
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Network:
    """A network at rest: what it takes to build it, its weights under our names, and what it was trained for."""

    model: ModelConfig
    shape: tuple[int, int, int]
    weights: Mapping[str, Tensor]
    classes: int = 0
    class_names: tuple[str, ...] = ()
    attributes: int = 0
    outputs: int | None = None
    diffusion: DiffusionConfig | None = None
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    latents: Latents | None = None
    made_from: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()  # modules that register its kinds


def write_safetensors(folder: Path, network: Network) -> None:
    """settings.json and model.safetensors, atomically."""
    with atomic_path(folder) as partial:
        partial.mkdir()
        _plain(partial, network)
        if network.latents is not None:
            (partial / AUTOENCODER).mkdir()
            _plain(partial / AUTOENCODER, network.latents.autoencoder)


def write_diffusers(folder: Path, network: Network) -> list[str]:
    """A folder that diffusers loads, atomically. Returns in what it samples differently from us.

    Raises:
        UserError: for a network or a process that has no equal in diffusers, saying why.
    """
    with atomic_path(folder) as partial:
        partial.mkdir()
        if isinstance(network.model, KLAutoencoderConfig):
            _autoencoder(partial, network)
            notes: list[str] = []
        else:
            notes = _denoiser(partial, network)
        write_json(partial / SETTINGS, settings_of(network))
    return notes


def read(folder: Path) -> Network:
    """The network of a folder of either kind. The folder's own settings decide; `diffusion` is None where unknown.

    Raises:
        UserError: for a folder of neither kind, and for a network that has no equal among ours.
        Incomplete: for files that are missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Give one that `export` or diffusers wrote.")
    if (folder / WEIGHTS).is_file():
        return _with_latents(_ours(folder), folder / AUTOENCODER, _known(folder))
    for name in ("unet", "transformer"):
        if (folder / name / "config.json").is_file():
            return _with_latents(_theirs(folder / name, _known(folder)), folder / "vae", _known(folder))
    if (folder / "config.json").is_file():
        return _theirs(folder, _known(folder))
    raise UserError(
        f"{folder} holds no network: expected {SETTINGS} and {WEIGHTS}, or diffusers' unet/, transformer/, config.json."
    )


def scheduler_of(folder: Path) -> dict[str, Any] | None:
    """The folder's scheduler_config.json, None where it has none."""
    path = folder / "scheduler" / "scheduler_config.json"
    return dict(read_json(path)) if path.is_file() else None


def _plain(folder: Path, network: Network) -> None:
    _save(network.weights, folder / WEIGHTS)
    write_json(folder / SETTINGS, settings_of(network))


def settings_of(network: Network) -> dict[str, Any]:
    """What settings.json says: all but the tensors, as JSON gives it back."""
    settings = {
        "format": 1,
        "model": network.model.model_dump(mode="json"),
        "shape": list(network.shape),
        "classes": network.classes,
        "class_names": list(network.class_names),
        "attributes": network.attributes,
        "outputs": network.outputs,
        "diffusion": network.diffusion.model_dump(mode="json") if network.diffusion else None,
        "sampler": network.sampler.model_dump(mode="json"),
        "latents": {"mean": network.latents.mean, "std": network.latents.std} if network.latents else None,
        "made_from": dict(network.made_from),
        "plugins": list(network.plugins),
    }
    return dict(json.loads(json.dumps(settings)))


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def _component(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", dict(config))
    _save(tensors, folder / THEIR_WEIGHTS)


def _autoencoder(folder: Path, network: Network, latents: Latents | None = None) -> None:
    if not isinstance(network.model, KLAutoencoderConfig):
        raise UserError(f"model.kind={network.model.kind} has no equal in diffusers: use `--format safetensors`.")
    config = foreign_autoencoder.to_config(network.model, network.shape)
    if latents is not None:
        config |= {"latents_mean": list(latents.mean), "latents_std": list(latents.std)}
    _component(folder, config, foreign.to_foreign(network.weights, foreign_autoencoder.theirs))


def _denoiser(partial: Path, network: Network) -> list[str]:
    model = network.model
    if network.diffusion is None:
        raise UserError("A denoiser without a diffusion process cannot be sampled from: use `--format safetensors`.")
    if isinstance(model, UNetConfig):
        name = "unet"
        config = foreign_unet.to_config(model, network.shape, classes=network.classes, outputs=network.outputs)
        tensors = foreign.to_foreign(network.weights, foreign_unet.theirs)
    elif isinstance(model, DiTConfig):
        name = "transformer"
        config = foreign_dit.to_config(model, network.shape, classes=network.classes, outputs=network.outputs)
        tensors = foreign_dit.to_foreign(network.weights, model.depth)
    else:
        raise UserError(f"model.kind={model.kind} has no equal in diffusers: use `--format safetensors`.")
    plan = scheduling(network.diffusion, network.sampler)
    _component(partial / name, config, tensors)
    if network.latents is not None:
        _autoencoder(partial / "vae", network.latents.autoencoder, network.latents)
    (partial / "scheduler").mkdir()
    write_json(partial / "scheduler" / "scheduler_config.json", plan.config)
    shutil.copyfile(Path(__file__).with_name("label_pipeline.py"), partial / f"{PIPELINE}.py")
    # The order of the parts is theirs to read, so this file is not written with sorted keys.
    (partial / "model_index.json").write_text(json.dumps(_index(name, config, network=network, plan=plan), indent=1))
    return plan.notes


def _index(name: str, config: Mapping[str, Any], *, network: Network, plan: Scheduling) -> dict[str, Any]:
    parts = {name: ["diffusers", config["_class_name"]], "scheduler": ["diffusers", plan.config["_class_name"]]}
    if network.latents is not None:
        parts["vae"] = ["diffusers", foreign_autoencoder.CLASS_NAME]
    own = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}.get(plan.config["_class_name"])
    eta = network.sampler.eta if network.sampler.kind == "ddim" else None
    plain = network.model.condition == "none" and network.latents is None and not eta
    if own and name == "unet" and plain and network.outputs in (None, network.shape[0]):
        return {"_class_name": own, **parts}  # one of theirs does it
    return {
        "_class_name": [PIPELINE, "LabelPipeline"],
        **parts,
        "classes": network.classes if network.model.condition == "class" else 0,
        "start": plan.start,
        "flow_start": plan.flow_start,
        "steps": network.sampler.steps,
        "guidance": network.sampler.guidance.factor,
        "eta": eta or 0.0,
    }


def _with_latents(network: Network, autoencoder: Path, known: Mapping[str, Any]) -> Network:
    """With the autoencoder of a denoiser of latents; another program's folder does not say how they are normalised."""
    latents = known.get("latents")
    if latents is None:
        return network
    return replace(network, latents=Latents(read(autoencoder), tuple(latents["mean"]), tuple(latents["std"])))


def _known(folder: Path) -> Mapping[str, Any]:
    """Our settings.json of a folder of theirs, {} where another program wrote it."""
    known: dict[str, Any] = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    return known


def _ours(folder: Path) -> Network:
    return _with(read_json(folder / SETTINGS), None, read_weights(folder / WEIGHTS))


def _with(settings: Mapping[str, Any], model: ModelConfig | None, weights: Mapping[str, Tensor]) -> Network:
    """The network of our settings.json, or of `model`, which is theirs."""
    import_plugins(settings.get("plugins", ()))
    try:
        diffusion = settings.get("diffusion")
        model = model or NETWORKS.validate(settings["model"])
        return Network(
            model=model,
            shape=(settings["shape"][0], settings["shape"][1], settings["shape"][2]),
            weights=weights,
            classes=settings.get("classes", 0),
            class_names=tuple(settings.get("class_names", ())),
            attributes=settings.get("attributes", 0),
            outputs=settings.get("outputs"),
            diffusion=DiffusionConfig.model_validate(diffusion) if diffusion else None,
            sampler=SamplerConfig.model_validate(settings.get("sampler", {})),
            made_from=settings.get("made_from", {}),
            plugins=tuple(settings.get("plugins", ())),
        )
    except (KeyError, ValidationError) as error:
        raise Incomplete(f"{SETTINGS} of the folder cannot be read: {error}") from error


def _theirs(folder: Path, known: Mapping[str, Any]) -> Network:
    config, weights = read_json(folder / "config.json"), read_weights(folder / THEIR_WEIGHTS)
    model, shape, classes = understood(MODELS[_class_of(folder, config)], folder / "config.json")
    outputs = config.get("out_channels")
    with torch.device("meta"):
        like = build_network(model, shape=shape, classes=classes, outputs=outputs).state_dict()
    if isinstance(model, DiTConfig):
        ours = foreign_dit.from_foreign(weights, model.depth, like)
    elif isinstance(model, UNetConfig):
        ours = foreign.from_foreign(weights, foreign_unet.theirs, like)
    else:
        ours = foreign_autoencoder.from_weights(weights, config, like)
    if known:  # it also knows what their settings do not hold, such as a transformer's dropout
        return _with(known, None, ours)
    return _with({"shape": shape, "classes": classes, "outputs": outputs}, model, ours)


def _autoencoder_settings(config: Mapping[str, Any]) -> tuple[ModelConfig, tuple[int, int, int], int]:
    return *foreign_autoencoder.from_config(config), 0


MODELS: dict[str, Callable[[Mapping[str, Any]], tuple[ModelConfig, tuple[int, int, int], int]]] = {
    foreign_unet.CLASS_NAME: foreign_unet.from_config,
    foreign_dit.CLASS_NAME: foreign_dit.from_config,
    "Transformer2DModel": foreign_dit.from_config,  # what older versions called it
    foreign_autoencoder.CLASS_NAME: _autoencoder_settings,
}


def _class_of(folder: Path, config: Mapping[str, Any]) -> str:
    name = str(config.get("_class_name"))
    if name not in MODELS:
        raise UserError(f"{folder}: found a {name}, expected one of {', '.join(MODELS)}.")
    return name
