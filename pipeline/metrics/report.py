"""Numbers in words and rows, for people."""

from collections.abc import Mapping
from typing import Any

ENOUGH = 10_000  # images below which a Frechet distance says little across papers


def is_distance(name: str) -> bool:
    """Whether a metric is a Frechet distance."""
    return name.startswith(("fd-", "fid", "sfid"))


def caution(count: int, names: Mapping[str, float]) -> list[str]:
    """What a small number of images means, in words; nothing from 10,000 on."""
    if count >= ENOUGH:
        return []
    distances = [n for n in names if is_distance(n)]
    if not distances:
        return []
    return [
        f"{', '.join(distances)}: measured on {count} images. A Frechet distance from fewer than {ENOUGH} images is "
        "too large, by an amount that grows as the set shrinks and differs between models: compare it only with "
        "others from the same number of images, never with published ones. KID has no such bias."
    ]


def rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, remark) of each metric of a result file, in the order of names."""
    return [
        (name, f"{value:.5g}", remark(result.get("details", {}).get(name, {})))
        for name, value in sorted(result["metrics"].items())
    ]


def remark(details: Mapping[str, Any]) -> str:
    """The details of one metric that fit on a line."""
    words = []
    if "low" in details:
        words.append(f"95%: {details['low']:.5g} to {details['high']:.5g}")
    if "std" in details:
        words.append(f"± {details['std']:.3g}")
    if "splits" in details:
        words.append(f"over {details['splits']} splits")
    if "images" in details:
        words.append(f"{details['images'][0]} against {details['images'][1]} {details.get('reference', '')}".strip())
    elif "count" in details:
        words.append(f"of {details['count']} images")
    if "expected" in details:
        expected = details["expected"]
        words.append("not calibrated" if expected is None else f"held-out images: {expected:.3g}")
    return ", ".join(words)
