"""What a sweep varies, in Hydra's sweep grammar, and the words of each configuration.

train.global_batch=128,256          train.optim.lr=interval(1e-5,1e-3)     model=unet_tiny,unet_small
train.optim.kind=choice(sgd,adam)   train.optim.lr=tag(log, interval(...)) model.width=range(16,65,16)
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from pipeline.config import overrides
from pipeline.runtime.errors import UserError

Params = Mapping[str, str | float | int]  # of a configuration: key -> the words of a choice, or a number
MOST_CORNERS = 256  # combinations of ends and choices that are checked of a space with intervals


@dataclass(frozen=True)
class Dimension:
    """One varied key: finitely many choices (as words), or the numbers between two ends."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    integer: bool = False
    log: bool = False

    @property
    def finite(self) -> bool:
        """Whether it can stand in a grid."""
        return bool(self.choices)

    @property
    def ends(self) -> tuple[str | float | int, ...]:
        """Values that are checked for all: every choice, or both ends."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


def is_sweep(word: str) -> bool:
    """Whether a word `key=value` varies its key."""
    return overrides.is_sweep(word)


def dimension(key: str, grammar: str) -> Dimension:
    """The dimension that `key=grammar` means; one plain value is a dimension of one choice.

    Raises:
        UserError: what the grammar does not know, or what this kind of sweep cannot do.
    """
    override = _parsed(f"{key}={grammar}")
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(key, value)
    if isinstance(value, ChoiceSweep | RangeSweep):
        choices = tuple(dict.fromkeys(word_of(v) for v in override.sweep_iterator()))
        if not choices:
            raise UserError(f"{key}: found '{grammar}', which has no values.")
        return Dimension(key, choices=choices)
    if override.is_sweep_override():
        raise UserError(f"{key}: found '{grammar}'; expected values (1,2), choice(), range() or interval().")
    return Dimension(key, choices=(word_of(value),))


def _interval(key: str, value: IntervalSweep) -> Dimension:
    low, high = float(value.start or 0), float(value.end or 0)
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    log = "log" in value.tags
    if unknown := value.tags - {"log", "int"}:
        raise UserError(f"{key}: found the tag {', '.join(sorted(unknown))}, expected log or int.")
    if not low < high or (log and low <= 0):
        raise UserError(f"{key}: found interval({low:g}, {high:g}), expected two ends that ascend, and > 0 with log.")
    return Dimension(key, low=low, high=high, integer=whole or "int" in value.tags, log=log)


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _parsed(word: str) -> Override:
    try:
        return _parser().parse_override(word)
    except HydraException as error:
        raise UserError(f"Cannot read '{word}': {str(error).splitlines()[0]}") from error


def word_of(value: Any) -> str:
    """A value as it stands after the `=` of a word, for Hydra and for YAML alike."""
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, str) and value and all(c.isalnum() or c in "._:/+-" for c in value):
        return value
    return json.dumps(value)


def words_of(params: Params) -> tuple[str, ...]:
    """The words of a configuration."""
    return tuple(f"{key}={_shown(value)}" for key, value in params.items())


def shown(params: Params) -> dict[str, str]:
    """A configuration for people: numbers between ends with four digits."""
    return {k: f"{v:.4g}" if isinstance(v, float) else str(v).strip('"') for k, v in params.items()}


def _shown(value: str | float | int) -> str:
    return value if isinstance(value, str) else repr(value)


def grid(dimensions: Sequence[Dimension], rows: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """Every configuration of a grid, the last dimension varying fastest; rows vary slowest.

    Raises:
        UserError: an interval, which has no end of values.
    """
    for d in dimensions:
        if not d.finite:
            raise UserError(
                f"{d.key}: an interval cannot stand in a grid. Use range(), a list of values, or "
                "sweep.strategy.kind=random or tpe."
            )
    first = [{key: word_of(value) for key, value in row.items()} for row in rows] or [{}]
    products = itertools.product(*(d.choices for d in dimensions))
    rest = [dict(zip((d.key for d in dimensions), values, strict=True)) for values in products]
    return [row | values for row in first for values in rest]


def corners(dimensions: Sequence[Dimension]) -> list[Params]:
    """Configurations at the ends of intervals and at every choice: where they are valid, what lies between is too.

    All combinations where they are few; else each end and choice once, beside the first ends of the others.
    """
    if math.prod(len(d.ends) for d in dimensions) <= MOST_CORNERS:
        return [
            dict(zip((d.key for d in dimensions), values, strict=True))
            for values in itertools.product(*(d.ends for d in dimensions))
        ]
    base = {d.key: d.ends[0] for d in dimensions}
    return [base, *({**base, d.key: end} for d in dimensions for end in d.ends[1:])]


def row_dimensions(rows: Sequence[Mapping[str, Any]]) -> list[Dimension]:
    """The keys of rows as dimensions, for tables and plots."""
    keys = list(rows[0]) if rows else []
    return [Dimension(key, choices=tuple(dict.fromkeys(word_of(row[key]) for row in rows))) for key in keys]


def number_of(value: object) -> float | None:
    """A value as a number, where it is one: for axes and for order in tables."""
    try:
        return float(str(value))
    except ValueError:
        return None
