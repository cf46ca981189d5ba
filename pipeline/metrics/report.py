"""Numbers in words and rows, for people."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.config.registry import METRICS, MetricKind, known_metric
from pipeline.config.schema_metrics import ATTRIBUTE_ACCURACY, FRECHET
from pipeline.runtime.errors import UserError
from pipeline.runtime.numbers_text import legend, notes, shown

ENOUGH = 10_000  # images below which a Frechet distance says little across papers
Row = tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A small table: what its columns are, and rows of as many cells."""

    columns: Row
    rows: tuple[Row, ...]


def is_distance(name: str) -> bool:
    """Whether a metric is a Frechet distance."""
    kind = known_metric(name)
    return kind is not None and kind.name == FRECHET


def usual() -> list[str]:
    """What people look at first, in this order."""
    return [name for kind in METRICS for name in kind.usual]


def usual_first(names: Iterable[str]) -> list[str]:
    """Names of metrics: the usual ones first, then distances, then the others, in the alphabet's order."""
    known = sorted(names, key=lambda n: (not is_distance(n), n))
    first = [n for n in usual() if n in known]
    return first + [n for n in known if n not in first]


def caution(count: int, metrics: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
    """What a small number of images means, in words."""
    found, distances = [], [n for n in metrics if is_distance(n)]
    if distances and count < ENOUGH:
        found.append(
            f"{', '.join(distances)}: measured on {count} images. A Frechet distance from fewer than {ENOUGH} images "
            "is too large, by an amount that grows as the set shrinks and differs between models: compare it only "
            "with others from the same number of images, never with published ones. KID has no such bias."
        )
    facts = {n: details.get(n, {}) for n in distances}
    if singular := [n for n, d in facts.items() if "dimensions" in d and min(d["images"]) <= d["dimensions"]]:
        named = ", ".join(f"{n} ({facts[n]['dimensions']})" for n in singular)
        found.append(
            f"{named}: on one side fewer images than the dimensions in brackets. The covariance is then singular and "
            "the distance far too large, which its interval does not show."
        )
    return found + notes(metrics)


def blocks(result: Mapping[str, Any]) -> list[Block]:
    """The tables of a result file: distances to each split side by side, the samples by themselves, attributes."""
    metrics, details = result["metrics"], result["details"]
    splits = [*result["data"]]
    compared = usual_first({n.partition("@")[0] for n in metrics if "@" in n or "reference" in details.get(n, {})})
    alone = [n for n in usual_first(metrics) if "@" not in n and n not in compared]
    counts = [f", {count} images" if (count := result["data"][split]["count"]) else "" for split in splits]
    heads = [f"against {_called(result, split)}{count}" for split, count in zip(splits, counts, strict=True)]
    found = [
        Block(("metric", *heads), tuple((n, *_against(result, n, splits)) for n in compared)),
        Block(
            ("metric", "value", "of"),
            tuple((n, shown(metrics[n], details.get(n, {})), remark(details.get(n, {}))) for n in alone),
        ),
    ]
    if each := details.get(ATTRIBUTE_ACCURACY, {}).get("by_attribute"):
        rows = ((n, shown(d["value"], d), str(d["count"]), f"{d['classifier']:.4g}") for n, d in each.items())
        found.append(
            Block(("attribute", "seen as asked", "samples asked", "classifier on held-out images"), tuple(rows))
        )
    return [block for block in found if block.rows]


def _called(result: Mapping[str, Any], split: str) -> str:
    """What a reference is called: its split; the last part of its path, where it is a set that somebody gave."""
    if (given := result["data"][split].get("set")) is None:
        return split
    path, scored = PurePath(given), PurePath(result["samples"]["set"])
    return path.name if path.name != scored.name else "/".join(path.parts[-2:])


def _against(result: Mapping[str, Any], name: str, splits: Sequence[str]) -> list[str]:
    names = [name, *(f"{name}@{split}" for split in splits[1:])]
    metrics, details = result["metrics"], result["details"]
    return [_cell(n, metrics[n], details.get(n, {})) if n in metrics else "" for n in names]


def _cell(name: str, value: float, details: Mapping[str, Any]) -> str:
    """A value, and what it counts as where an unbiased estimate fell below the least that there is."""
    kind = known_metric(name)
    least = None if kind is None else 0.0 if kind.note(name, -1.0) and name.endswith("-infinity") else kind.least
    return shown(value, details) + (f", counts as {least:g}" if least is not None and value < least else "")


def meanings(names: Iterable[str]) -> Block:
    """What the numbers of these names say, and which way is better; a row for each kind of number."""
    rows: dict[str, list[str]] = {}
    kinds = {}
    for name in usual_first({name.partition("@")[0] for name in names}):
        if (kind := known_metric(name)) is not None:
            rows.setdefault(kind.name, []).append(name)
            kinds[kind.name] = kind
    better = {"minimize": "lower", "maximize": "higher", None: "neither"}
    return Block(
        ("number", "better", "what it says"),
        tuple((", ".join(rows[n]), better[kind.direction], _meaning(kind)) for n, kind in kinds.items()),
    )


def _meaning(kind: MetricKind) -> str:
    """What a number says; of a plug-in's that does not say it, the first line of its function's docstring."""
    if kind.meaning or not kind.place:
        return kind.meaning
    try:
        said = kind.load().__doc__ or ""
    except UserError:  # the plug-in that measured it is another version here
        return ""
    return next(iter(str(said).strip().splitlines()), "").removesuffix(".")


def remark(details: Mapping[str, Any]) -> str:
    """What else there is to say of one metric on a line."""
    words = []
    if "splits" in details:
        words.append(f"{details['splits']} split{'s' * (details['splits'] > 1)}")
    if "count" in details:
        words.append(f"{details['count']} images")
    if "expected" in details:
        expected = details["expected"]
        words.append("not calibrated" if expected is None else f"held-out images: {expected:.3g}")
    if details.get("held_out") is not None:
        words.append(f"held-out images: {details['held_out']:.4g}")
    return ", ".join(words)


def _table(block: Block, *, justify: Literal["left", "right"] = "left") -> Table:
    table = Table()
    for number, column in enumerate(block.columns):
        table.add_column(column, justify=justify if number else "left", overflow="fold")
    for row in block.rows:
        table.add_row(*map(Text, row))
    return table


def show(result: Mapping[str, Any]) -> None:
    """Print a result as tables, and below them what a reader should know."""
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    console.print(
        f"{result['run']}, {result['samples']['set']}, {result['samples']['count']} images",
        style="bold",
        highlight=False,
        markup=False,
    )
    for block in blocks(result):
        console.print(_table(block, justify="right"))
    console.print(_table(meanings(result["metrics"])))
    for sentence in legend(result["metrics"], result["details"]):
        console.print(sentence, highlight=False, markup=False)
    for sentence in result["notes"]:
        console.print(f"- {sentence}", highlight=False, markup=False)
