"""A measured number as people read it: with its uncertainty, and with what would mislead without a word. Torch-free."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.registry import known_metric


def shown(value: float, details: Mapping[str, Any]) -> str:
    """A value with its 95% interval in brackets, or its standard deviation over subsets or splits."""
    if "low" in details:
        return f"{value:.4g} ({details['low']:.4g} to {details['high']:.4g})"
    return f"{value:.4g} ± {details['std']:.2g}" if "std" in details else f"{value:.4g}"


def note(name: str, value: float) -> str:
    """What a reader of this one number should know, in a few words; "" where it speaks for itself."""
    kind = known_metric(name)
    return kind.note(name.partition("@")[0], value) if kind else ""
