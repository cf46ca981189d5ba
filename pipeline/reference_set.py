"""The reference set of samples: the splits of a data set, feature networks, and their statistics on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.shards import ShardDirectory, open_shards
from pipeline.metrics.extraction import default_device
from pipeline.metrics.extractors import build_extractors, domain_extractor
from pipeline.metrics.features import Extractor
from pipeline.metrics.quality_suite import Scorer, build_scorers
from pipeline.metrics.references import Reference, open_reference, reference_path


@dataclass(frozen=True)
class ReferenceSet:
    """Splits by name, feature networks, references by the network's key and the split, measures of single images."""

    splits: Mapping[str, ShardDirectory]
    extractors: Sequence[Extractor]
    references: Mapping[str, Mapping[str, Reference]]
    scorers: Sequence[Scorer]

    @property
    def identity(self) -> dict[str, Any]:
        """Hashes of networks and references."""
        return {key: {s: r.record["sha256"] for s, r in found.items()} for key, found in self.references.items()}


def open_reference_set(cfg: Config) -> ReferenceSet:
    """Splits, networks and references of a config; what is not there raises `Incomplete` with the command to run."""
    splits = open_splits(cfg)
    images, folder = _images(splits), data_directory(cfg) / "reference"
    extractors = build_extractors(cfg.evaluate, folder, images, device=default_device())
    references = {
        e.key: {n: open_reference(reference_path(folder, e, n), e, images=images[n]) for n in splits}
        for e in extractors
    }
    return ReferenceSet(splits, extractors, references, build_scorers(cfg.evaluate.quality))


def open_domain(cfg: Config, *, device: str) -> tuple[Extractor, Reference]:
    """The domain classifier alone, and its statistics of the first split."""
    splits = open_splits(cfg)
    images, folder = _images(splits), data_directory(cfg) / "reference"
    extractor, first = domain_extractor(folder, cfg.evaluate.domain, images, device=device), next(iter(splits))
    return extractor, open_reference(reference_path(folder, extractor, first), extractor, images=images[first])


def open_splits(cfg: Config) -> dict[str, ShardDirectory]:
    """The splits that evaluation compares with, those that are there and not empty."""
    shards = data_directory(cfg) / "shards"
    names = [n for n in cfg.evaluate.reference_splits if (shards / n).exists()]
    opened = {n: open_shards(shards / n) for n in names or cfg.evaluate.reference_splits[:1]}
    return {n: split for n, split in opened.items() if split.manifest.count}


def _images(splits: Mapping[str, ShardDirectory]) -> dict[str, str]:
    return {n: split.manifest.sha256 for n, split in splits.items()}
