"""How different two images look: distances between features of a network (Zhang et al. 2018, "The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric", equation 1).

The network is SqueezeNet from a local file, with the published weights of single channels where they are given; or,
without any file, the domain classifier that `mudi prepare reference` trains on the data set itself.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.config.schema_objectives import PerceptualConfig, missing_weights
from pipeline.data.shards import read_manifest
from pipeline.metrics.domain import SIDE, DomainClassifier, load_classifier
from pipeline.metrics.extractors import CLASSIFIER, classifier_directory
from pipeline.models.squeezenet import SqueezeNet
from pipeline.runtime.constants import beside
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import read_json, sha256_file
from pipeline.runtime.numerics import own_precision

EPS = 1e-10
_SETTING = "autoencoder.perceptual"


def distance(one: Sequence[Tensor], other: Sequence[Tensor], heads: Sequence[Tensor] | None = None) -> Tensor:
    """Equation 1, [B]: over maps [B, C, h, w], the mean over places of the weighted squared differences of features.

    Features have unit length at every place. `heads`: a weight [C] for each channel of each map; None is 1 for all.
    """
    total = torch.zeros(len(one[0]), dtype=one[0].dtype, device=one[0].device)
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        squared = (_unit(a) - _unit(b)).square()
        if heads is not None:
            squared = squared * heads[number][:, None, None]
        total = total + squared.sum(dim=1).mean(dim=(1, 2))
    return total


def _unit(features: Tensor) -> Tensor:
    # EPS keeps the root's gradient finite where nothing is active.
    return features / torch.sqrt(features.square().sum(dim=1, keepdim=True) + EPS)


def shrunk(images: Tensor, side: int) -> Tensor:
    """Adaptive average pooling of [B, C, H, W] to [B, C, side, side], as two products.

    torch's own has no gradient on a GPU whose sums are taken in a fixed order.
    """
    rows, columns = (beside(_windows(size, side), images) for size in images.shape[2:])
    return rows @ (images @ columns.T)


@functools.lru_cache(maxsize=32)
def _windows(before: int, after: int) -> Tensor:
    """[after, before] float64: each row averages what one result sees."""
    found = torch.zeros(after, before, dtype=torch.float64)
    for k in range(after):
        first, last = k * before // after, -(-(k + 1) * before // after)
        found[k, first:last] = 1 / (last - first)
    return found


class DomainMaps(nn.Module):
    """The maps of the domain classifier's stages, of images [B, C, H, W] in [-1, 1]."""

    def __init__(self, classifier: DomainClassifier) -> None:
        super().__init__()
        self.stages = classifier.stages
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map [B, C, h, w] a stage."""
        x = images if images.shape[-1] <= SIDE else shrunk(images, SIDE)
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Perceptual:
    """The distance of a config. `about` says which network it is, with the sha256 of every file."""

    def __init__(self, cfg: Config) -> None:
        """Files are checked here and read when the first distance is asked for.

        Raises:
            UserError: a file is missing or not the expected one.
            Incomplete: the domain classifier is to be used and was not trained yet.
        """
        self._cfg = cfg.autoencoder.perceptual
        self._network: nn.Module | None = None
        self._heads: list[Tensor] | None = None
        if self._cfg.weights is None:
            self._classifier = _classifier(cfg)
            self.name = "domain"
            self.about = {"network": "domain classifier", "sha256": sha256_file(self._classifier)}
        else:
            self.name = "squeezenet" if self._cfg.heads is None else "lpips-squeezenet"
            self.about = {"network": "SqueezeNet", "scale": self._cfg.scale, **_checked(cfg)}

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """The distance of images [B, C, H, W] in [-1, 1], [B]. In float32 or wider, whatever runs around it."""
        network = self._loaded(one)
        with own_precision(one):
            heads = None if self._heads is None else [beside(h, one) for h in self._heads]
            return distance(network(one), network(other), heads)

    def _loaded(self, like: Tensor) -> Callable[[Tensor], list[Tensor]]:
        if self._network is None:
            if self._cfg.weights is None:
                self._network = DomainMaps(load_classifier(self._classifier))
            else:
                squeezenet = _squeezenet(self._cfg.weights, self._cfg)
                self._network = squeezenet
                self._heads = None if self._cfg.heads is None else _heads(self._cfg.heads, squeezenet)
        return self._network.to(like.device, like.dtype)


def _checked(cfg: Config) -> dict[str, str]:
    """Hashes of the files, by name."""
    for problem in missing_weights(cfg):
        raise UserError(problem)
    its, found = cfg.autoencoder.perceptual, dict[str, str]()
    for name, path, expected in (("sha256", its.weights, its.sha256), ("heads_sha256", its.heads, its.heads_sha256)):
        if path is None:
            continue
        found[name] = sha256_file(path)
        if expected is not None and found[name] != expected:
            setting = f"{_SETTING}.{'weights' if name == 'sha256' else 'heads'}"
            raise UserError(
                f"{setting}: {path} has sha256 {found[name]}, expected {expected} ({_SETTING}.{name}). It is another "
                "file or a damaged one: fetch it again, or set the hash to the one of this file."
            )
    return found


def _squeezenet(path: Path, cfg: PerceptualConfig) -> SqueezeNet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return SqueezeNet(dict(arrays), scale=cfg.scale)
    except Exception as error:  # damaged bytes make decoders raise all sorts: the name is what matters
        raise UserError(f"{_SETTING}.weights: {path}: {error}") from error


def _heads(path: Path, network: SqueezeNet) -> list[Tensor]:
    """The linear layers of LPIPS v0.1, `lin0.model.1.weight` [1, C, 1, 1] and so on."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # likewise
        raise UserError(f"{_SETTING}.heads: {path} cannot be read: {error}. Fetch the file again.") from error
    shapes = {f"lin{k}.model.1.weight": (1, c, 1, 1) for k, c in enumerate(network.channels)}
    found = {name: tuple(stored[name].shape) if name in stored else None for name in shapes}
    wrong = [f"{name} is {found[name]}, not {shape}" for name, shape in shapes.items() if found[name] != shape]
    if wrong:
        raise UserError(
            f"{_SETTING}.heads: {path} does not belong to SqueezeNet {network.version}: {'; '.join(wrong[:2])}. "
            f"LPIPS's heads were trained for version 1.1; with 1.0 set {_SETTING}.heads=null."
        )
    return [stored[name].flatten() for name in shapes]


def _classifier(cfg: Config) -> Path:
    """The file of the domain classifier of the prepared data."""
    data = data_directory(cfg)
    directory = classifier_directory(data / "reference", cfg.evaluate.domain, reference_hashes(cfg))
    path = directory / CLASSIFIER
    if not path.is_file() or read_json(directory / "classifier.json")["sha256"] != sha256_file(path):
        raise Incomplete(
            f"{path} is not finished: the perceptual distance is measured in the features of the data's own classifier "
            f"({_SETTING}.weights is null). Run mudi prepare reference with the same overrides, or give weights."
        )
    return path


def reference_hashes(cfg: Config) -> dict[str, str]:
    """sha256 of the shards of the splits that evaluation compares with, of which the domain classifier was made."""
    shards, names = data_directory(cfg) / "shards", cfg.evaluate.reference_splits
    there = [n for n in names if (shards / n).exists()] or list(names[:1])
    manifests = {n: read_manifest(shards / n) for n in there}
    return {n: manifest.sha256 for n, manifest in manifests.items() if manifest.count}
