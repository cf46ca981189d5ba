"""A measured number as people read it: with its uncertainty, and with what would mislead without a word. Torch-free."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.config.registry import Direction, known_metric
from pipeline.config.schema_metrics import FRECHET, WIDTHS

ENDINGS = {  # what a part of a metric's name says
    "domain": "in the features of a classifier trained on this data; papers use Inception",
    "pixel": "by the pixels alone",
    "dinov2": "in the features of DINOv2",
    "clip": "in the features of CLIP",
    "spatial": "in features of Inception that know where things are, as sfid is",
    "clean": "resized for Inception as clean-fid does",
    "torchmetrics": "resized for Inception as torchmetrics does",
    "infinity": "extrapolated to infinitely many images",
}
ONE = ", one subset"
BOLD = (
    "Bold: the best, and what its 95% interval (± s: value ± 2 s) does not tell from the best. Nothing is bold where a "
    "value of the column has neither, nor in Frechet distances of unequal numbers of images, nor in precision and "
    "density by the domain classifier, which noise can have, too."
)
Measured = tuple[float, Mapping[str, Any]]  # a number, and what stands behind it


def shown(value: float, details: Mapping[str, Any]) -> str:
    """A value with its 95% interval in brackets, or its standard deviation over subsets or splits: one has none."""
    if "low" in details:
        return f"{value:.4g} ({details['low']:.4g} to {details['high']:.4g})"
    if "subsets" in details and not _has_spread(details):
        return f"{value:.4g}{ONE}"
    return f"{value:.4g} ± {details['std']:.2g}" if _has_spread(details) else f"{value:.4g}"


def _has_spread(details: Mapping[str, Any]) -> bool:
    return "std" in details and 1 not in (details.get("splits"), details.get("subsets"))


def marked(name: str, found: Sequence[Measured | None], *, direction: Direction | None = None) -> list[bool]:
    """Which of these numbers of one name are the best, or not told from it by their own interval. None of them where
    that cannot be said: see BOLD.

    Args:
        found: a number of each row, with its details; None where a row has none.
        direction: of a name that is not registered, as that of a plug-in, which may not be here; by default it is that
            of the details.
    """
    nothing, known = [False] * len(found), [pair for pair in found if pair is not None]
    kind, ranges = known_metric(name), [_interval(*pair) for pair in known]
    towards = direction or (kind.direction if kind else known[0][1].get("direction") if known else None)
    if towards is None or len({value for value, _ in known}) < 2 or None in ranges:
        return nothing
    if note(name, 1.0):  # what is to be known of any value
        return nothing
    if kind is not None and kind.name == FRECHET and len({_counted(details) for _, details in known}) > 1:
        return nothing
    least = -math.inf if kind is None or kind.least is None else kind.least
    best = max((min if towards == "minimize" else max)(value for value, _ in known), least)
    return [pair is not None and _reaches(pair, best, least) for pair in found]


def _reaches(pair: Measured, best: float, least: float) -> bool:
    low, high = _interval(*pair) or (math.nan, math.nan)
    return max(low, least) <= best <= max(high, least) or max(pair[0], least) == best


def _interval(value: float, details: Mapping[str, Any]) -> tuple[float, float] | None:
    """Where the number would fall again, 95 times of 100. A deviation over single images is that of their mean."""
    if "low" in details:
        return details["low"], details["high"]
    if not _has_spread(details):
        return None
    reach = 2 * details["std"] / math.sqrt(details.get("count", 1))
    return value - reach, value + reach


def _counted(details: Mapping[str, Any]) -> int | None:
    """Of how many samples a number is."""
    return next(iter(details.get("images", ())), None)


def directions(names: Iterable[str]) -> list[str]:
    """Which of these numbers are better when they are lower, and which when they are higher."""
    bases = dict.fromkeys(name.partition("@")[0] for name in names)
    kinds = {name: kind for name in bases if (kind := known_metric(name))}
    lines = []
    for word, which in (("Lower", "minimize"), ("Higher", "maximize")):
        if those := [name for name, kind in kinds.items() if kind.direction == which]:
            lines.append(f"{word} is better: {', '.join(those)}.")
    return lines


def legend(metrics: Iterable[str], details: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the signs beside these numbers and the endings of their names mean; a line each, of those that are there."""
    names, lines = list(metrics), []
    told = [shown(0.0, details.get(name, {})) for name in names]
    if any("(" in text for text in told):
        lines.append(
            "In brackets: the 95% interval, where other samples of the same number would fall. It leaves out that "
            "few images make a Frechet distance larger."
        )
    if any("±" in text for text in told):
        lines.append(
            "±: the standard deviation over subsets, splits or images; it leaves out the scatter of the reference "
            "itself, which counts where that is small."
        )
    if any(text.endswith(ONE) for text in told):
        lines.append(
            "One subset: every subset of KID is the same images, or one was asked for, so that there is no ±; "
            "evaluate.kid_subset_size below the number of images, and more than one of kid_subsets, give it."
        )
    for split in sorted({name.partition("@")[2] for name in names} - {""}):
        lines.append(f"@{split}: against the images of {split}; names without @ are of the first reference.")
    if any(name.startswith(("sfid", "rsfid")) for name in names):
        lines.append("sfid: fid in features of an earlier layer of Inception, which know where things are.")
    parts = {part for name in names for part in name.partition("@")[0].split("-")[1:]}
    lines += [f"-{ending}: {said}." for ending, said in ENDINGS.items() if ending in parts]
    if widths := [f"-{width}" for width in WIDTHS if width in parts]:
        lines.append(f"{', '.join(widths)}: in so many features of an earlier layer of Inception; FID itself has 2048.")
    known = {name: facts for name in names if (facts := details.get(name, {})).get("held_out") is not None}
    if known:
        real = ", ".join(f"{name} {facts['held_out']:.3g}{_held_out(facts)}" for name, facts in known.items())
        lines.append(f"Real images, held out: {real}.")
    return lines


def _held_out(facts: Mapping[str, Any]) -> str:
    """Of how many real images a Frechet distance is, and what that means beside the distance of the samples: that of
    fewer images is larger."""
    if not (count := facts.get("held_out_count")):
        return ""
    samples, dimensions = facts.get("counts") or facts.get("images", [count])[:1], facts.get("dimensions", 0)
    much = f", far too large in {dimensions} dimensions" if count <= dimensions else ""  # the covariance is singular
    if count < min(samples):
        return f" (of {count}{much or ', too large'}: as many as the samples would have less)"
    if count > max(samples):
        return f" (of {count}, too small: as many as the samples would have more)"
    if len(set(samples)) > 1:
        return f" (of {count}{much}, which does not compare with distances of other numbers)"
    return f" (of {count}{much})"


def joined(results: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The details of several results as one, for `legend`; without what real images have where results differ in it."""
    found: dict[str, dict[str, Any]] = {}
    real: dict[str, set[Any]] = {}
    counts: dict[str, set[int]] = {}
    for name, facts in (item for details in results for item in details.items()):
        counts.setdefault(name, set()).update(facts.get("images", ())[:1])
        found[name] = {**facts, "counts": sorted(counts[name])}
        real.setdefault(name, set()).add(facts.get("held_out"))
    return {n: {k: v for k, v in f.items() if k != "held_out" or len(real[n]) == 1} for n, f in found.items()}


def notes(metrics: Mapping[str, float]) -> list[str]:
    """What a reader of these numbers should know; a sentence for all numbers that it is of."""
    noted: dict[str, list[str]] = {}
    for name, value in metrics.items():
        if said := note(name, value):
            noted.setdefault(said, []).append(name)
    return [f"{', '.join(names)}: {said}." for said, names in noted.items()]


def note(name: str, value: float) -> str:
    """What a reader of this one number should know, in a few words; "" where it speaks for itself."""
    kind = known_metric(name)
    return kind.note(name.partition("@")[0], value) if kind else ""
