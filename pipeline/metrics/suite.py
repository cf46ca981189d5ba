"""One pass, many metrics: everything that the features of one network say about a sample set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.config.registry import METRICS
from pipeline.config.schema_metrics import ATTRIBUTE_ACCURACY, CLASS_ACCURACY, EvaluateConfig
from pipeline.metrics.accuracy import attribute_accuracy, conditional_accuracy
from pipeline.metrics.domain import ROTATION
from pipeline.metrics.extraction import Work, all_features, grouped_moments
from pipeline.metrics.extrapolation import at_infinity, jackknife
from pipeline.metrics.features import Extractor
from pipeline.metrics.frechet import Target, frechet_distance
from pipeline.metrics.inception_score import inception_score
from pipeline.metrics.kernel_distance import cmmd, kid
from pipeline.metrics.manifolds import (
    DENSITY_NEIGHBOURS,
    DensityCoverage,
    Floats,
    PrecisionRecall,
    density_coverage,
    precision_recall,
    radii,
)
from pipeline.metrics.moments import merged
from pipeline.metrics.references import Reference
from pipeline.runtime.progress import progress

IMAGES_PER_CLASS = 10  # fewest in a split of the inception score: a split smaller than its classes scores too low


@dataclass
class Measured:
    """Metrics by name, what stands behind each, and sentences that a reader of the numbers should know."""

    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, **details: Any) -> None:
        """One number and its details."""
        self.metrics[name] = float(value)
        if details:
            self.details[name] = details

    def update(self, other: "Measured") -> None:
        """Take over what another part measured."""
        self.metrics.update(other.metrics)
        self.details.update(other.details)
        self.notes.extend(note for note in other.notes if note not in self.notes)


@dataclass(frozen=True)
class Asked:
    """What each of N samples was asked for: `labels` [N], -1 for no class; `attributes` [N, A] of 0, 1 and -1 for not
    asked, with their `names`, or None."""

    labels: npt.NDArray[np.int64]
    attributes: npt.NDArray[np.int8] | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureSet:
    """One set of features in the tables: its Frechet distance's name, and the ending of its other metrics' names."""

    frechet: str
    ending: str
    full: bool  # also KID, precision and recall, density and coverage, interval and extrapolation


def feature_sets(extractor: Extractor) -> dict[str, FeatureSet]:
    """The outputs of an extractor that are compared as Gaussians. Never the name `fid` for anything but FID.

    A resize other than TensorFlow 1's is part of the name: `fid-clean`, `fid-768-torchmetrics`.
    """
    if extractor.name != "inception":
        return {"features": FeatureSet(f"fd-{extractor.name}", f"-{extractor.name}", True)}
    resize = extractor.protocol["resize"]
    end = "" if resize == "tf1" else f"-{resize}"
    deepest = next((s for s in ("2048", "768", "192", "64") if s in extractor.outputs), None)
    names = {"2048": ("fid", ""), "768": ("fid-768", "-768"), "192": ("fid-192", "-192"), "64": ("fid-64", "-64")}
    found = {s: FeatureSet(f + end, e + end, s == deepest) for s, (f, e) in names.items() if s in extractor.outputs}
    if "spatial" in extractor.outputs:
        found["spatial"] = FeatureSet(f"sfid{end}", f"-spatial{end}", False)
    return found


@dataclass(frozen=True)
class View:
    """What a metric of features looks at: one output of one network for a set of samples, beside a reference's.

    A metric is a function of a view that returns a number, or a `Measured` where it has more to say. `ending`: what its
    name ends in, such as `-domain@valid`. `reference` is None for a metric of logits or attributes.
    """

    extractor: Extractor
    output: str  # of the network
    ending: str
    work: Work
    asked: Asked
    cfg: EvaluateConfig
    options: Mapping[str, Any] = field(default_factory=dict)  # the metric's own settings
    reference: Reference | None = None
    frechet: str = ""  # what a Frechet distance is called here
    thorough: bool = False  # with interval and extrapolation: in full features, against the first reference

    @cached_property
    def samples(self) -> Floats:
        """The network's output for the samples, [N, D]."""
        return all_features(self.work, self.output)

    @cached_property
    def others(self) -> Floats:
        """The same of the reference's images, [M, D]."""
        if self.reference is None:
            raise ValueError(f"{self.output} has no reference")
        return self.reference.features(self.output)

    @property
    def facts(self) -> dict[str, Any]:
        """What stands behind a comparison: the reference's split, and both counts."""
        return {"reference": self.reference and self.reference.split, "images": [len(self.samples), len(self.others)]}

    @cached_property
    def reaches(self) -> list[Tensor]:
        """Distances of the reference's images to their k-th neighbours, [M]: for the k of recall, and of density."""
        k, y, split = self.cfg.neighbours, self.others, self.reference.split if self.reference else ""
        with progress(f"neighbours among {len(y)} features of {split}", len(y)) as tick:
            return list(radii(y, (k, DENSITY_NEIGHBOURS), tick=tick))

    @cached_property
    def near(self) -> PrecisionRecall:
        """Precision and recall."""
        return precision_recall(self.samples, self.others, k=self.cfg.neighbours, reaches=self.reaches[0])

    @cached_property
    def dense(self) -> DensityCoverage:
        """Density and coverage."""
        return density_coverage(self.samples, self.others, reaches=self.reaches[1])

    @property
    def too_few(self) -> str:
        """The sentence about sets in which neighbours cannot be counted; "" where they can."""
        if min(len(self.samples), len(self.others)) > max(self.cfg.neighbours, DENSITY_NEIGHBOURS):
            return ""
        return f"precision{self.ending} and its like need more than {DENSITY_NEIGHBOURS} images on both sides"


def measure(
    extractor: Extractor,
    work: Work,
    references: Mapping[str, Reference],
    *,
    asked: Asked,
    cfg: EvaluateConfig,
) -> Measured:
    """All registered metrics in one network's features.

    Args:
        work: the finished blocks of features of the samples.
        references: by split; the first names the metric, the others add `@split`.
        asked: what each sample was asked for.
    """
    out = Measured()
    for position, (split, reference) in enumerate(references.items()):
        at = "" if position == 0 else f"@{split}"
        if min(work.count, reference.record["count"]) < 2:
            out.notes.append(f"nothing was compared with {split}: that needs at least 2 images on both sides")
            continue
        for output, features in feature_sets(extractor).items():
            view = View(
                extractor,
                output,
                features.ending + at,
                work,
                asked,
                cfg,
                reference=reference,
                frechet=features.frechet + at,
                thorough=features.full and not at,
            )
            _measure(out, view, "reference", full=features.full)
    _real_images(out, extractor, list(references.values()))
    for output in ("logits", "attributes"):
        if output in extractor.outputs:
            _measure(out, View(extractor, output, f"-{extractor.name}", work, asked, cfg), output, full=True)
    return out


def _real_images(out: Measured, extractor: Extractor, references: Sequence[Reference]) -> None:
    """Beside a Frechet distance that of real images: the second reference, held out, against the first."""
    if len(references) < 2 or min(reference.record["count"] for reference in references[:2]) < 2:
        return
    first, held_out = references[:2]
    for output, features in feature_sets(extractor).items():
        if features.full and features.frechet in out.details:
            value = frechet_distance(held_out.moments(output), first.moments(output))
            out.details[features.frechet] |= {"held_out": value, "held_out_count": held_out.record["count"]}


def _measure(out: Measured, view: View, needs: str, *, full: bool) -> None:
    """Every metric that reads this kind of view."""
    for kind in METRICS:
        fits = kind.place and kind.needs == needs and (full or not kind.full)
        if fits and (not kind.networks or view.extractor.name in kind.networks):
            seen = view
            if kind.settings is not None:
                seen = replace(view, options=kind.settings(**view.cfg.options.get(kind.name, {})).model_dump())
            found = kind.load()(seen)
            if isinstance(found, Measured):
                out.update(found)
            else:
                # The direction travels with the number: `compare` may run where the plug-in is not.
                facts = view.facts if view.reference else {}
                out.add(kind.name + view.ending, found, direction=kind.direction, **facts)


def frechet(view: View) -> Measured:
    """The Frechet distance of two Gaussians; with its interval and its value at infinity where the view is thorough."""
    out, reference = Measured(), view.reference
    if reference is None:
        raise ValueError("a Frechet distance needs a reference")
    groups = grouped_moments(view.work, view.output, view.cfg.confidence_blocks)
    found, target = merged(groups), reference.moments(view.output)
    counts, dimensions = [found.count, target.count], len(found.mean)
    details: dict[str, Any] = {"reference": reference.split, "images": counts, "dimensions": dimensions}
    towards = Target(target)
    value = towards.exact(found)
    if view.thorough:
        interval = jackknife(groups, towards)
        if interval is not None:
            details.update(low=interval.low, high=interval.high, error=interval.error, blocks=interval.blocks)
        limit = at_infinity(view.samples, towards, seed=view.cfg.seed)
        if limit is not None:
            out.add(f"{view.frechet}-infinity", limit.value, points=limit.points, reference=reference.split)
    out.add(view.frechet, value, **details)
    return out


def kernel(view: View) -> Measured:
    """KID."""
    out, cfg = Measured(), view.cfg
    found = kid(view.samples, view.others, subsets=cfg.kid_subsets, size=cfg.kid_subset_size, seed=cfg.seed)
    whole = found.size == len(view.samples) == len(view.others)  # then all subsets are the same
    spread = {} if whole or found.subsets == 1 else {"std": found.std}
    out.add(f"kid{view.ending}", found.mean, subsets=found.subsets, size=found.size, **spread, **view.facts)
    return out


def precision(view: View) -> Measured:
    """The share of samples within the reference's reach."""
    return _neighbours(view, "precision", view.cfg.neighbours, lambda: view.near.precision)


def recall(view: View) -> Measured:
    """The share of the reference within the samples' reach."""
    return _neighbours(view, "recall", view.cfg.neighbours, lambda: view.near.recall)


def density(view: View) -> Measured:
    """How many of the reference's neighbourhoods hold a sample."""
    return _neighbours(view, "density", DENSITY_NEIGHBOURS, lambda: view.dense.density)


def coverage(view: View) -> Measured:
    """The share of the reference's neighbourhoods that hold a sample."""
    return _neighbours(view, "coverage", DENSITY_NEIGHBOURS, lambda: view.dense.coverage)


def _neighbours(view: View, name: str, k: int, value: Callable[[], float]) -> Measured:
    out = Measured()
    if view.too_few:
        out.notes.append(view.too_few)
    else:
        out.add(name + view.ending, value(), k=k, **view.facts)
    return out


def clip_distance(view: View) -> Measured:
    """CMMD: its name says the network already."""
    out = Measured()
    out.add(f"cmmd{view.ending.removeprefix('-clip')}", cmmd(view.samples, view.others), **view.facts)
    return out


def class_score(view: View) -> Measured:
    """The inception score."""
    out, extractor, cfg = _judged(view), view.extractor, view.cfg
    if out.notes:
        return out
    logits, splits = view.samples, cfg.splits
    if extractor.name == "domain":
        splits = min(splits, max(len(logits) // (IMAGES_PER_CLASS * logits.shape[1]), 1))
    score = inception_score(logits, splits=splits, seed=cfg.seed)
    resize = extractor.protocol.get("resize", "tf1")
    name = "is-domain" if extractor.name == "domain" else "is" if resize == "tf1" else f"is-{resize}"
    out.add(name, score.mean, std=score.std, splits=score.splits)
    return out


def logits_accuracy(view: View) -> Measured:
    """How often the domain classifier sees the class that was asked for."""
    out, asked = _judged(view), view.asked.labels
    if out.notes or not (asked >= 0).any():
        return out
    found, own = conditional_accuracy(view.samples, asked), view.extractor.about
    facts = {"low": found.low, "high": found.high, "count": found.count, "by_class": found.by_class}
    out.add(CLASS_ACCURACY, found.value, **facts, held_out=own["accuracy"])
    return out


def _judged(view: View) -> Measured:
    """Nothing, or the sentence about a classifier that judges no classes."""
    out = Measured()
    if view.extractor.protocol.get("task") == ROTATION:
        out.notes.append(f"the data has no labels: the domain classifier learned {ROTATION}, and judges no classes")
    return out


def attributes_accuracy(view: View) -> Measured:
    """How often the domain classifier sees the attributes that were asked for, each beside its own accuracy."""
    out, about, asked = Measured(), view.extractor.about, view.asked
    if asked.attributes is None:
        return out
    own = dict(zip(about["attributes"], about["accuracy_by_attribute"], strict=True))
    names = [name for name in asked.names if name in own]
    columns = [about["attributes"].index(name) for name in names]
    wanted = np.asarray(asked.attributes)[:, [name in own for name in asked.names]]
    if not (wanted >= 0).any():
        return out
    found = attribute_accuracy(view.samples[:, columns], wanted)
    each = {
        name: {"value": a.value, "low": a.low, "high": a.high, "count": a.count, "classifier": own[name]}
        for name, a in zip(names, found.by_attribute, strict=True)
        if a is not None
    }
    facts = {"low": found.low, "high": found.high, "count": found.count, "by_attribute": each}
    out.add(ATTRIBUTE_ACCURACY, found.value, **facts)
    real = float(np.mean([own[name] for name in each]))
    out.notes.append(
        f"the domain classifier itself is right on {real:.1%} of these attributes of {about['checked_on']}: "
        f"{ATTRIBUTE_ACCURACY} of perfect samples would be about that, if they are asked for as they occur there"
    )
    return out
