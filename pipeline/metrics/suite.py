"""One pass, many metrics: everything that the features of one network say about a sample set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.metrics.accuracy import conditional_accuracy
from pipeline.metrics.domain import LABELS
from pipeline.metrics.extraction import Work, all_features, all_moments
from pipeline.metrics.features import Extractor
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.inception_score import inception_score
from pipeline.metrics.references import Reference


@dataclass
class Measured:
    """Metrics by name, what stands behind each, and sentences that a reader of the numbers should know."""

    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, **details: Any) -> None:
        """One number and its details."""
        self.metrics[name] = float(value)
        if details:
            self.details[name] = details

    def update(self, other: "Measured") -> None:
        """Take over what another part measured."""
        self.metrics.update(other.metrics)
        self.details.update(other.details)
        self.words.extend(word for word in other.words if word not in self.words)


def measure(
    extractor: Extractor,
    work: Work,
    references: Mapping[str, Reference],
    *,
    asked: npt.NDArray[np.int64],
    cfg: EvaluateConfig,
) -> Measured:
    """All metrics in one network's features.

    Args:
        work: the finished blocks of features of the samples.
        references: by split; the first names the metrics.
        asked: [N] class that each sample was asked for, -1 for none.
    """
    return measure_domain(extractor, work, references, asked=asked, cfg=cfg)


def measure_domain(
    extractor: Extractor,
    work: Work,
    references: Mapping[str, Reference],
    *,
    asked: npt.NDArray[np.int64],
    cfg: EvaluateConfig,
) -> Measured:
    """`fd-domain` against each reference; with a classifier of labels also `is-domain` and `accuracy-domain`."""
    out = Measured()
    _frechet(out, "fd-domain", work, references, space="features")
    if extractor.protocol.get("task") != LABELS:
        out.words.append("the domain classifier was trained to recognise rotations, as the data has no labels")
        return out
    logits = all_features(work, "logits")
    score = inception_score(logits, splits=cfg.splits, seed=cfg.seed)
    out.add("is-domain", score.mean, std=score.std, splits=score.splits)
    if (asked >= 0).any():
        found = conditional_accuracy(logits, asked)
        own = extractor.about
        out.words.append(
            f"the domain classifier itself is right on {own['accuracy']:.1%} of the images of {own['checked_on']}: "
            "accuracy-domain of perfect samples would be about that"
        )
        out.add(
            "accuracy-domain", found.value, low=found.low, high=found.high, count=found.count, by_class=found.by_class
        )
    return out


def _frechet(out: Measured, name: str, work: Work, references: Mapping[str, Reference], *, space: str) -> None:
    """The Frechet distance to each reference: `name` for the first, `name@split` for the others."""
    found = all_moments(work, space)
    for position, (split, reference) in enumerate(references.items()):
        full = name if position == 0 else f"{name}@{split}"
        if min(found.count, reference.record["count"]) < 2:
            out.words.append(f"{full} needs at least 2 images on both sides")
            continue
        target = reference.moments(space)
        dimensions = len(found.mean)
        out.add(full, frechet_distance(found, target), reference=split, images=[found.count, target.count])
        if min(found.count, target.count) <= dimensions:
            out.words.append(
                f"{full} is between {found.count} and {target.count} images in {dimensions} dimensions: a covariance "
                "of fewer images than dimensions is singular, and the distance is far too large"
            )
