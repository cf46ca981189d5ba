"""Feature networks kept by another library: DINOv2 (FD-DINOv2) and CLIP (CMMD), through `transformers`.

The library is optional and imported only here, only when a config asks for it. `weights` is a local folder in its own
format (`config.json` and `model.safetensors`): nothing is downloaded.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema_metrics import LibraryConfig
from pipeline.metrics.features import Extractor
from pipeline.metrics.resize import resize
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import sha256_file

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINOV2_SIZE = 224


def dinov2_extractor(cfg: LibraryConfig, *, device: str) -> Extractor:
    """FD-DINOv2's features (Stein et al. 2023): the normalised class token, of images of 224 pixels."""
    network = _load("dinov2", cfg, "Dinov2Model", device=device)
    mean, std = _columns(_IMAGENET, device)

    def run(images: Tensor) -> dict[str, Tensor]:
        x = (resize(images.expand(-1, 3, -1, -1), DINOV2_SIZE, "clean").clamp(0, 255) / 255 - mean) / std
        return {"features": network(pixel_values=x).pooler_output}

    return Extractor("dinov2", _protocol(cfg, "dinov2", DINOV2_SIZE), ("features",), run)


def clip_extractor(cfg: LibraryConfig, *, device: str) -> Extractor:
    """CMMD's embeddings (Jayasumana et al. 2024): CLIP's projected image embedding, at the network's own size."""
    network = _load("clip", cfg, "CLIPVisionModelWithProjection", device=device)
    mean, std = _columns(_CLIP, device)
    size = int(network.config.image_size)

    def run(images: Tensor) -> dict[str, Tensor]:
        x = (resize(images.expand(-1, 3, -1, -1), size, "clean").clamp(0, 255) / 255 - mean) / std
        return {"features": network(pixel_values=x).image_embeds}

    return Extractor("clip", _protocol(cfg, "clip", size), ("features",), run)


def _load(name: str, cfg: LibraryConfig, model: str, *, device: str) -> Any:
    setting = f"evaluate.{name}.weights"
    if cfg.weights is None or not (cfg.weights / "model.safetensors").is_file():
        raise UserError(
            f"{setting}: found {cfg.weights}, expected a local folder with config.json and model.safetensors, as "
            "`huggingface-cli download` makes on a login node."
        )
    found = sha256_file(cfg.weights / "model.safetensors")
    if cfg.sha256 is not None and found != cfg.sha256:
        raise UserError(f"{setting}: {cfg.weights}/model.safetensors has sha256 {found}, expected {cfg.sha256}.")
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"{setting} is set, but the library `transformers` cannot be imported ({error}). "
            f"Install it (pip install transformers), or set {setting}=null."
        ) from error
    network = getattr(library, model).from_pretrained(str(cfg.weights), local_files_only=True)
    return network.to(device, torch.float32).eval()


def _protocol(cfg: LibraryConfig, name: str, size: int) -> dict[str, Any]:
    file = Path(str(cfg.weights)) / "model.safetensors"
    return {"kind": name, "sha256": sha256_file(file), "resize": "clean", "size": size, "version": 1}


def _columns(values: tuple[tuple[float, ...], tuple[float, ...]], device: str) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in values)
    return mean, std
