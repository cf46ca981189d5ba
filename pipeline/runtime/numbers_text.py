"""A measured number as people read it: with its uncertainty, and with what would mislead without a word. Torch-free."""

from collections.abc import Mapping
from typing import Any


def shown(value: float, details: Mapping[str, Any]) -> str:
    """A value with its 95% interval in brackets, or its standard deviation over subsets or splits."""
    if "low" in details:
        return f"{value:.4g} ({details['low']:.4g} to {details['high']:.4g})"
    return f"{value:.4g} ± {details['std']:.2g}" if "std" in details else f"{value:.4g}"


def note(name: str, value: float) -> str:
    """What a reader of this one number should know, in a few words; "" where it speaks for itself."""
    kind = name.partition("@")[0]
    if kind.endswith("-infinity") and value < 0:
        return "below 0: too few images for the extrapolation; read it as 0"
    if kind.startswith("kid") and value < 0:
        return "below 0: no difference seen, around which an unbiased estimate scatters; read it as 0"
    if kind in ("precision-domain", "density-domain"):
        return "the domain classifier never saw noise: pure noise may get 0.7 and more; trust it beside fd-domain only"
    return ""
