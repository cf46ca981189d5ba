"""How near a set of reconstructed images is to the originals: image by image, and as a whole in features."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.reader import Reader
from pipeline.data.shards import ShardDirectory
from pipeline.metrics.extraction import Work, all_moments, default_device, extract
from pipeline.metrics.extractors import build_extractors
from pipeline.metrics.features import Extractor
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.reconstruction import psnr, ssim
from pipeline.metrics.suite import Asked, Measured, View, class_score, feature_sets
from pipeline.objectives.perceptual import Perceptual, reference_hashes
from pipeline.runtime.progress import progress

VERSION = 4  # raised when there are other numbers; 4: the inception score
CLIP = "clip"  # whose features are compared by another distance


@dataclass(frozen=True)
class Measures:
    """What reconstructions are measured by."""

    perceptual: Perceptual | None
    extractors: list[Extractor]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides a number, as JSON."""
        about = None if self.perceptual is None else self.perceptual.about
        return {
            "version": VERSION,
            "perceptual": about,
            "extractors": {e.name: dict(e.protocol) for e in self.extractors},
        }


def open_measures(cfg: Config) -> Measures:
    """The networks of a config; one that is not there raises `Incomplete` or `UserError` with what to do."""
    measured = cfg.autoencoder.perceptual.weights is not None or cfg.evaluate.domain.enabled
    reference = data_directory(cfg) / "reference"
    extractors = build_extractors(cfg.evaluate, reference, reference_hashes(cfg), device=default_device())
    return Measures(Perceptual(cfg) if measured else None, [e for e in extractors if e.name != CLIP])


def measure_reconstruction(
    cfg: Config, measures: Measures, *, originals: ShardDirectory, reconstructed: ShardDirectory, work: Path
) -> Measured:
    """PSNR, SSIM, L1 and perceptual distance as means over images; Frechet distances between both sets of features, and
    the inception score of the reconstructed one.

    `reconstructed` has the images of `originals` in their order. Both are bytes, so no number depends on how many are
    computed at once, up to the rounding of a sum. `work` is a folder for features, and is removed.
    """
    out = Measured()
    found: dict[str, float] = {}
    for x, y in _pairs(cfg, originals, reconstructed):
        values = {"psnr": psnr(y, x), "ssim": ssim(y, x), "l1": (y - x).abs().flatten(1).mean(dim=1)}
        if measures.perceptual is not None:
            values[f"perceptual-{measures.perceptual.name}"] = measures.perceptual(y, x)
        for name, value in values.items():
            found[name] = found.get(name, 0.0) + float(value.double().sum())
    for name, total in found.items():
        out.add(name, total / originals.manifest.count, count=originals.manifest.count)
    for extractor in measures.extractors:
        _frechet(out, cfg, extractor, sets=(originals, reconstructed), work=work)
    shutil.rmtree(work, ignore_errors=True)
    return out


@torch.inference_mode()
def _pairs(cfg: Config, originals: ShardDirectory, reconstructed: ShardDirectory) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of both sets [B, C, H, W] in [-1, 1], batch by batch."""
    readers, count = (Reader(originals), Reader(reconstructed)), originals.manifest.count
    with progress("compare", count) as tick:
        for first in range(0, count, cfg.evaluate.batch):
            indices = np.arange(first, min(first + cfg.evaluate.batch, count), dtype=np.int64)
            one, other = (pixels(reader, indices).to(default_device()) for reader in readers)
            yield one, other
            tick(len(indices))


def pixels(reader: Reader, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
    """Images [B, C, H, W] in [-1, 1]."""
    return torch.from_numpy(reader.read(indices)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _frechet(
    out: Measured, cfg: Config, extractor: Extractor, *, sets: tuple[ShardDirectory, ShardDirectory], work: Path
) -> None:
    """The reconstruction's Frechet distance, `rfd-domain`, `rfid`, ..., and inception score: `ris-domain`, `ris`."""
    count, works = sets[0].manifest.count, []
    for images in sets:
        part = Work(
            work / f"{extractor.key}-{images.manifest.sha256[:12]}", count, cfg.evaluate.block, cfg.evaluate.batch
        )
        extract(part, Reader(images).read, extractor, of=images.path.name)
        works.append(part)
    if "logits" in extractor.outputs:
        score = class_score(View(extractor, "logits", "", works[1], Asked(np.full(count, -1)), cfg.evaluate))
        for name, value in score.metrics.items():
            out.add(f"r{name}", value, **score.details[name])
    if count < 2:
        out.notes.append("a Frechet distance needs at least 2 images")
        return
    for name, features in feature_sets(extractor).items():
        one, other = (all_moments(part, name) for part in works)
        dimensions = len(one.mean)
        out.add(f"r{features.frechet}", frechet_distance(other, one), images=[count, count], dimensions=dimensions)
        if count <= dimensions:
            out.notes.append(
                f"r{features.frechet} is of {count} images in {dimensions} dimensions: the covariance of fewer images "
                "than dimensions is singular"
            )
