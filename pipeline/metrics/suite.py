"""One pass, many metrics: everything that the features of one network say about a sample set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.metrics.accuracy import attribute_accuracy, conditional_accuracy
from pipeline.metrics.domain import ROTATION
from pipeline.metrics.extraction import Work, all_features, grouped_moments
from pipeline.metrics.extrapolation import at_infinity, jackknife
from pipeline.metrics.features import Extractor
from pipeline.metrics.frechet import Target
from pipeline.metrics.inception_score import inception_score
from pipeline.metrics.kernel_distance import cmmd, kid
from pipeline.metrics.manifolds import DENSITY_NEIGHBOURS, density_coverage, precision_recall, radii
from pipeline.metrics.moments import merged
from pipeline.metrics.references import Reference
from pipeline.runtime.progress import progress

IMAGES_PER_CLASS = 10  # fewest in a split of the inception score: a split smaller than its classes scores too low


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


@dataclass(frozen=True)
class Asked:
    """What each of N samples was asked for: `labels` [N], -1 for no class; `attributes` [N, A] of 0, 1 and -1 for not
    asked, with their `names`, or None."""

    labels: npt.NDArray[np.int64]
    attributes: npt.NDArray[np.int8] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Space:
    """One feature space in the tables: its Frechet distance's name, and the ending of its other metrics' names."""

    frechet: str
    ending: str
    full: bool  # also KID, precision and recall, density and coverage, interval and extrapolation


def spaces_of(extractor: Extractor) -> dict[str, Space]:
    """The spaces of an extractor that are compared as Gaussians. Never the name `fid` for anything but FID.

    A resize other than TensorFlow 1's is part of the name: `fid-clean`, `fid-768-torchmetrics`.
    """
    if extractor.name != "inception":
        return {"features": Space(f"fd-{extractor.name}", f"-{extractor.name}", True)}
    resize = extractor.protocol["resize"]
    end = "" if resize == "tf1" else f"-{resize}"
    deepest = next((s for s in ("2048", "768", "192", "64") if s in extractor.spaces), None)
    names = {"2048": ("fid", ""), "768": ("fid-768", "-768"), "192": ("fid-192", "-192"), "64": ("fid-64", "-64")}
    found = {s: Space(f + end, e + end, s == deepest) for s, (f, e) in names.items() if s in extractor.spaces}
    if "spatial" in extractor.spaces:
        found["spatial"] = Space(f"sfid{end}", f"-spatial{end}", False)
    return found


def measure(
    extractor: Extractor,
    work: Work,
    references: Mapping[str, Reference],
    *,
    asked: Asked,
    cfg: EvaluateConfig,
) -> Measured:
    """All metrics in one network's features.

    Args:
        work: the finished blocks of features of the samples.
        references: by split; the first names the metrics, the others add `@split`.
        asked: what each sample was asked for.
    """
    out = Measured()
    for position, (split, reference) in enumerate(references.items()):
        at = "" if position == 0 else f"@{split}"
        if min(work.count, reference.record["count"]) < 2:
            out.words.append(f"nothing was compared with {split}: that needs at least 2 images on both sides")
        elif extractor.name == "clip":
            x, y = all_features(work, "features"), reference.features("features")
            out.add(f"cmmd{at}", cmmd(x, y), reference=reference.split, images=[len(x), len(y)])
        else:
            for name, space in spaces_of(extractor).items():
                _compare(out, space, work, reference=reference, name=name, at=at, cfg=cfg)
    if "logits" in extractor.spaces:
        _classes(out, extractor, work, asked=asked.labels, cfg=cfg)
    if "attributes" in extractor.spaces and asked.attributes is not None:
        _attributes(out, extractor, work, asked=asked)
    return out


def _compare(
    out: Measured, space: Space, work: Work, *, reference: Reference, name: str, at: str, cfg: EvaluateConfig
) -> None:
    """One space against one reference; interval and extrapolation for the first reference alone."""
    groups = grouped_moments(work, name, cfg.confidence_blocks)
    found, target = merged(groups), reference.moments(name)
    counts, dimensions = [found.count, target.count], len(found.mean)
    details: dict[str, Any] = {"reference": reference.split, "images": counts, "dimensions": dimensions}
    towards = Target(target)
    value = towards.exact(found)
    if space.full and not at:
        interval = jackknife(groups, towards)
        if interval is not None:
            details.update(low=interval.low, high=interval.high, error=interval.error, blocks=interval.blocks)
        limit = at_infinity(all_features(work, name), towards, seed=cfg.seed)
        if limit is not None:
            out.add(f"{space.frechet}-infinity", limit.value, points=limit.points, reference=reference.split)
    out.add(space.frechet + at, value, **details)
    if space.full:
        _neighbourhoods(out, work, reference, name=name, ending=space.ending + at, cfg=cfg)


def _neighbourhoods(
    out: Measured, work: Work, reference: Reference, *, name: str, ending: str, cfg: EvaluateConfig
) -> None:
    """KID, precision and recall, density and coverage: from features rather than moments."""
    x, y = all_features(work, name), reference.features(name)
    facts = {"reference": reference.split, "images": [len(x), len(y)]}
    distance = kid(x, y, subsets=cfg.kid_subsets, size=cfg.kid_subset_size, seed=cfg.seed)
    out.add(f"kid{ending}", distance.mean, std=distance.std, subsets=distance.subsets, size=distance.size, **facts)
    if min(len(x), len(y)) <= max(cfg.neighbours, DENSITY_NEIGHBOURS):
        out.words.append(f"precision{ending} and its like need more than {DENSITY_NEIGHBOURS} images on both sides")
        return
    with progress(f"neighbours among {len(y)} features of {reference.split}", len(y)) as tick:
        reaches = radii(y, (cfg.neighbours, DENSITY_NEIGHBOURS), tick=tick)
    near, dense = (
        precision_recall(x, y, k=cfg.neighbours, reaches=reaches[0]),
        density_coverage(x, y, reaches=reaches[1]),
    )
    out.add(f"precision{ending}", near.precision, k=cfg.neighbours, **facts)
    out.add(f"recall{ending}", near.recall, k=cfg.neighbours, **facts)
    out.add(f"density{ending}", dense.density, k=DENSITY_NEIGHBOURS, **facts)
    out.add(f"coverage{ending}", dense.coverage, k=DENSITY_NEIGHBOURS, **facts)


def _classes(
    out: Measured, extractor: Extractor, work: Work, *, asked: npt.NDArray[np.int64], cfg: EvaluateConfig
) -> None:
    """What the class probabilities say: the inception score, and for the domain classifier conditional accuracy."""
    if extractor.protocol.get("task") == ROTATION:
        out.words.append(f"the data has no labels: the domain classifier learned {ROTATION}, and judges no classes")
        return
    logits = all_features(work, "logits")
    splits = cfg.splits
    if extractor.name == "domain":
        splits = min(splits, max(len(logits) // (IMAGES_PER_CLASS * logits.shape[1]), 1))
    score = inception_score(logits, splits=splits, seed=cfg.seed)
    resize = extractor.protocol.get("resize", "tf1")
    name = "is-domain" if extractor.name == "domain" else "is" if resize == "tf1" else f"is-{resize}"
    out.add(name, score.mean, std=score.std, splits=score.splits)
    if extractor.name == "domain" and (asked >= 0).any():
        found, own = conditional_accuracy(logits, asked), extractor.about
        facts = {"low": found.low, "high": found.high, "count": found.count, "by_class": found.by_class}
        out.add("accuracy-domain", found.value, **facts)
        out.words.append(
            f"the domain classifier itself is right on {own['accuracy']:.1%} of the images of {own['checked_on']}: "
            "accuracy-domain of perfect samples would be about that"
        )


def _attributes(out: Measured, extractor: Extractor, work: Work, *, asked: Asked) -> None:
    """How often the domain classifier sees the attributes that were asked for, each beside its own accuracy."""
    own = dict(zip(extractor.about["attributes"], extractor.about["accuracy_by_attribute"], strict=True))
    columns = [extractor.about["attributes"].index(name) for name in asked.names if name in own]
    wanted = np.asarray(asked.attributes)[:, [name in own for name in asked.names]]
    if not (wanted >= 0).any():
        return
    found = attribute_accuracy(all_features(work, "attributes")[:, columns], wanted)
    names = [name for name in asked.names if name in own]
    each = {
        name: {"value": a.value, "low": a.low, "high": a.high, "count": a.count, "classifier": own[name]}
        for name, a in zip(names, found.by_attribute, strict=True)
        if a is not None
    }
    facts = {"low": found.low, "high": found.high, "count": found.count, "by_attribute": each}
    out.add("accuracy-attributes", found.value, **facts)
    real = float(np.mean([own[name] for name in each]))
    out.words.append(
        f"the domain classifier itself is right on {real:.1%} of these attributes of {extractor.about['checked_on']}: "
        "accuracy-attributes of perfect samples would be about that, if they are asked for as they occur there"
    )
