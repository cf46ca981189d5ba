"""InceptionV3 from a local file, whichever of the three usual ones: its hash is part of every number.

pt_inception-2015-12-05-6726825d.pth   pytorch-fid's, the same as torch-fidelity's weights-inception-2015-12-05
inception-2015-12-05.pt                NVIDIA's torchscript file
*.npz                                  convolutions with batch norm folded, `NAME/w` and `NAME/b`, TensorFlow's names
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema_metrics import InceptionConfig
from pipeline.metrics.features import Extractor
from pipeline.metrics.inception import BLOCKS, HALVE, SIZE, STEM, InceptionV3, Weights
from pipeline.metrics.resize import resize
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import sha256_file

_EPS = 0.001  # of the batch norms
SCRIPT_OUTPUTS = ("2048", "logits")  # what NVIDIA's file gives


def inception_extractor(cfg: InceptionConfig, *, device: str) -> Extractor:
    """The extractor that a config asks for.

    Raises:
        UserError: the file is not there, is none of the three kinds, has another hash than expected, or does not
            reach a feature that was asked for.
    """
    path = checked_file("evaluate.inception.weights", cfg.weights, cfg.sha256)
    version = {"clean": 2}.get(cfg.resize, 1)  # 1 of clean did not cut to 0 ... 255
    protocol = {"kind": "inception-2015-12-05", "sha256": sha256_file(path), "resize": cfg.resize, "version": version}
    if path.suffix == ".pt":
        return _script(path, cfg, protocol, device=device)
    network = load_inception(path).to(device).eval()
    outputs = _chosen(cfg, network.outputs, path)

    def run(images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = network(prepare(images, cfg.resize), outputs)
        return found

    return Extractor("inception", {**protocol, "outputs": list(outputs)}, outputs, run, about={"file": path.name})


def checked_file(setting: str, path: Path | None, expected: str | None) -> Path:
    """A file of weights that is there and, where a hash is expected, is the one meant."""
    if path is None or not path.is_file():
        raise UserError(
            f"{setting}: found {path}, expected a local file. Compute nodes do not download: fetch it on a login node "
            "(`mudi prepare fetch weights` lists what there is), and give its path."
        )
    if expected is not None and sha256_file(path) != expected:
        raise UserError(f"{setting}: {path} has sha256 {sha256_file(path)}, expected {expected}. It is another file.")
    return path


def prepare(images: Tensor, protocol: str) -> Tensor:
    """uint8 [B, 1 or 3, H, W] -> the network's input [B, 3, 299, 299]; grey images have three equal channels."""
    return (resize(images.expand(-1, 3, -1, -1), SIZE, protocol) - 128) / 128


def load_inception(path: Path) -> InceptionV3:
    """The network from a `.pth` or `.npz` file, as far as its weights go."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return InceptionV3(*from_tensorflow({name: torch.from_numpy(file[name]) for name in file.files}))
    if path.suffix == ".pth":
        return InceptionV3(*from_pytorch(torch.load(path, map_location="cpu", weights_only=True)))
    raise UserError(
        f"evaluate.inception.weights: found {path.name}, expected pytorch-fid's or torch-fidelity's .pth, NVIDIA's "
        "torchscript .pt, or an .npz of folded convolutions."
    )


def from_pytorch(state: Mapping[str, Tensor]) -> tuple[Weights, Tensor | None]:
    """Weights and head from pytorch-fid's state dict: batch norms are folded, in float64."""
    weights = {}
    for key in state:
        if key.endswith(".conv.weight"):
            name = key.removesuffix(".conv.weight")
            gain, shift, mean, variance = (
                state[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = gain / torch.sqrt(variance + _EPS)
            weight = state[key].double() * scale[:, None, None, None]
            weights[name] = (weight.float(), (shift - mean * scale).float())
    return weights, state.get("fc.weight")


def from_tensorflow(arrays: Mapping[str, Tensor]) -> tuple[Weights, Tensor | None]:
    """Weights and head from folded arrays under TensorFlow's names."""
    weights = {
        name: (arrays[f"{graph_name}/w"], arrays[f"{graph_name}/b"])
        for name, graph_name in tensorflow_names().items()
        if f"{graph_name}/w" in arrays
    }
    return weights, arrays.get("softmax/w")


def tensorflow_names() -> dict[str, str]:
    """Our name of each convolution -> the graph's, with `_` for `/`: `Mixed_5b.branch5x5_2` -> `mixed_tower_conv_1`."""
    names = {name: "conv" if k == 0 else f"conv_{k}" for k, name in enumerate(STEM)}
    for number, (block, (branches, pool)) in enumerate(BLOCKS.items()):
        scope = "mixed" if number == 0 else f"mixed_{number}"
        towers = 0
        for branch in branches:
            if len(branch) == 1:
                names[f"{block}.{branch[0]}"] = f"{scope}_conv"
                continue
            tower = f"{scope}_tower" if towers == 0 else f"{scope}_tower_{towers}"
            towers += 1
            names.update(_tower(f"{block}.", branch, tower))
        if pool != HALVE:
            names[f"{block}.branch_pool"] = f"{scope}_tower_{towers}_conv"
    return names


def _tower(prefix: str, branch: Sequence[str | tuple[str, str]], tower: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for k, step in enumerate(branch):
        if isinstance(step, str):
            names[prefix + step] = f"{tower}_conv" if k == 0 else f"{tower}_conv_{k}"
        else:
            names[prefix + step[0]], names[prefix + step[1]] = f"{tower}_mixed_conv", f"{tower}_mixed_conv_1"
    return names


def _chosen(cfg: InceptionConfig, available: Sequence[str], path: Path) -> tuple[str, ...]:
    if cfg.features is None:
        return tuple(available)
    lacking = [output for output in cfg.features if output not in available]
    if lacking:
        raise UserError(
            f"evaluate.inception.features: found {', '.join(lacking)}, but {path.name} reaches only "
            f"{', '.join(available)}. Use a whole weight file, or ask for those."
        )
    return tuple(cfg.features)


def _script(path: Path, cfg: InceptionConfig, protocol: dict[str, Any], *, device: str) -> Extractor:
    """NVIDIA's file as it is: it resizes by itself, as TensorFlow did; images of 299 pixels pass through unchanged."""
    outputs = _chosen(cfg, SCRIPT_OUTPUTS, path)
    network = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    run = script_features(network, cfg.resize, outputs)
    return Extractor("inception", {**protocol, "outputs": list(outputs)}, outputs, run, about={"file": path.name})


def script_features(
    network: Callable[..., Tensor], protocol: str, outputs: Sequence[str]
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Features by the torchscript network's own interface (StyleGAN2-ADA's metrics): uint8 images in, and flags.

    Its output without `return_features` are probabilities; their logarithm are logits up to a constant.
    """

    def run(images: Tensor) -> dict[str, Tensor]:
        images = images.expand(-1, 3, -1, -1)
        if protocol != "tf1":
            images = resize(images, SIZE, protocol)
        found = {}
        if "2048" in outputs:
            found["2048"] = network(images, return_features=True)
        if "logits" in outputs:
            found["logits"] = network(images, no_output_bias=True).clamp_min(1e-30).log()
        return found

    return run
