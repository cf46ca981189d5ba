"""Durations as people write them: "100 epochs", "50000 steps", "2000 kimg". The one place that converts them."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

_PATTERN = re.compile(r"^\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(epochs?|steps?|kimg|images?)\s*$")


def _checked(text: object) -> str:
    if not isinstance(text, str) or not _PATTERN.match(text):
        raise ValueError(f"found '{text}', expected a number and a unit: '100 epochs', '50000 steps' or '2000 kimg'")
    return text


def _positive(text: str) -> str:
    if not to_images(text, batch=1, train_images=10**9):
        raise ValueError(f"found '{text}', expected more than none, or null for never")
    return text


Duration = Annotated[str, BeforeValidator(_checked)]
Interval = Annotated[Duration, AfterValidator(_positive)]
"""How long from one time to the next."""


def needs_images(text: str) -> bool:
    """Whether `text` can be converted only when the size of the training split is known."""
    return "epoch" in text


def to_images(text: str, *, batch: int, train_images: int | None) -> int:
    """Images seen during `text`. `train_images` is the size of the training split, needed for epochs alone."""
    match = _PATTERN.match(text)
    if match is None:
        raise ValueError(_checked(text))
    number, unit = float(match[1]), match[2]
    if unit.startswith("epoch"):
        if train_images is None:
            raise ValueError(f"'{text}' needs the number of training images: prepare the data first")
        return round(number * train_images)
    return round(number * {"s": batch, "k": 1000, "i": 1}[unit[0]])


def to_steps(text: str, *, batch: int, train_images: int | None) -> int:
    """Optimiser steps in `text`: images divided by the global batch, rounded down, at least one unless zero."""
    images = to_images(text, batch=batch, train_images=train_images)
    return max(images // batch, 1) if images else 0
