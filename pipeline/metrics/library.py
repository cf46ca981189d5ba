"""Feature networks kept by another library: DINOv2 (FD-DINOv2) and CLIP (CMMD), through `transformers`.

The library is optional and imported only here, only when a config asks for it. `weights` is a local folder in its own
format (`config.json`, and `model.safetensors` or `pytorch_model.bin`): nothing is downloaded.
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
FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is loaded


def dinov2_extractor(cfg: LibraryConfig, *, device: str) -> Extractor:
    """FD-DINOv2's features (Stein et al. 2023): the normalised class token, of images of 224 pixels."""
    network = _load("dinov2", cfg, "Dinov2Model", device=device)
    mean, std = _columns(_IMAGENET, device)

    def run(images: Tensor) -> dict[str, Tensor]:
        x = (resize(images.expand(-1, 3, -1, -1), DINOV2_SIZE, "clean") / 255 - mean) / std
        return {"features": network(pixel_values=x).pooler_output}

    return Extractor("dinov2", _protocol(cfg, "dinov2", DINOV2_SIZE), ("features",), run)


def clip_extractor(cfg: LibraryConfig, *, device: str) -> Extractor:
    """CMMD's embeddings (Jayasumana et al. 2024): CLIP's projected image embedding, at the network's own size."""
    network = _load("clip", cfg, "CLIPVisionModelWithProjection", device=device)
    mean, std = _columns(_CLIP, device)
    size = int(network.config.image_size)

    def run(images: Tensor) -> dict[str, Tensor]:
        x = (resize(images.expand(-1, 3, -1, -1), size, "clean") / 255 - mean) / std
        return {"features": network(pixel_values=x).image_embeds}

    return Extractor("clip", _protocol(cfg, "clip", size), ("features",), run)


def _load(name: str, cfg: LibraryConfig, model: str, *, device: str) -> Any:
    setting = f"evaluate.{name}.weights"
    file = _weight_file(cfg)
    if file is None:
        raise UserError(
            f"{setting}: found {cfg.weights}, expected a local folder with config.json and {' or '.join(FILES)}. "
            f"`mudi prepare fetch weights {name}` makes one on a login node."
        )
    found = sha256_file(file)
    if cfg.sha256 is not None and found != cfg.sha256:
        raise UserError(f"{setting}: {file} has sha256 {found}, expected {cfg.sha256}.")
    try:
        library = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"{setting} is set, but the library `transformers` cannot be imported ({error}). "
            f"Install it (pip install transformers), or set {setting}=null."
        ) from error
    network, report = getattr(library, model).from_pretrained(
        str(cfg.weights), local_files_only=True, output_loading_info=True
    )
    if report["missing_keys"]:  # the library would fill them with random numbers
        raise UserError(f"{setting}: {file} lacks {', '.join(sorted(report['missing_keys']))}. Fetch it again.")
    return network.to(device, torch.float32).eval()


def _protocol(cfg: LibraryConfig, name: str, size: int) -> dict[str, Any]:
    file = _weight_file(cfg)
    sha256 = sha256_file(file) if file else None
    return {"kind": name, "sha256": sha256, "resize": "clean", "size": size, "version": 1}


def _weight_file(cfg: LibraryConfig) -> Path | None:
    files = [cfg.weights / name for name in FILES] if cfg.weights else []
    return next((file for file in files if file.is_file()), None)


def _columns(values: tuple[tuple[float, ...], tuple[float, ...]], device: str) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in values)
    return mean, std
