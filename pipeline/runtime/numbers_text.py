"""A measured number as people read it: with its uncertainty, and with what would mislead without a word. Torch-free."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.registry import known_metric


def shown(value: float, details: Mapping[str, Any]) -> str:
    """A value with its 95% interval in brackets, or its standard deviation over subsets or splits: one has none."""
    if "low" in details:
        return f"{value:.4g} ({details['low']:.4g} to {details['high']:.4g})"
    spread = "std" in details and details.get("splits") != 1
    return f"{value:.4g} ± {details['std']:.2g}" if spread else f"{value:.4g}"


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
