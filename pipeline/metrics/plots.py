"""Small plots of metrics against one setting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.runtime.files import atomic_path

_COLUMNS = 3
_MARKED = 40  # most points of a line that have a dot each
_WIDTH, _HEIGHT, _TEXT = 3.9, 3.0, 0.24  # inches of a panel and of a line of the legend
_TITLES = {
    "step": "training step",
    "guidance": "guidance scale",
    "weights": "relative width of the EMA",
    "steps": "sampler steps",
    "images": "images in the set",
    "number-of-samples": "samples used",
    "training": "training step",
    "trade-off": "",  # the titles of its panels name both axes
}


@dataclass(frozen=True)
class Point:
    """A value at `x`, with its 95% interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""  # written beside it


@dataclass(frozen=True)
class Line:
    """Points in the order that they are joined, and what they have in common. `level`: what stands at one height and
    has no place on the axis; it has the colour of the line with the same label."""

    label: str
    points: tuple[Point, ...]
    level: str = ""

    @property
    def name(self) -> str:
        """In the legend."""
        return f"{self.label}: {self.level}" if self.level else self.label


def draw_lines(path: Path, axis: str, panels: Mapping[str, Sequence[Line]], *, title: str = "") -> None:
    """Write a PNG with one panel for each metric, all against `axis`, and one legend for all below them."""
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    every = [line for lines in panels.values() for line in lines]
    labels = list(dict.fromkeys(line.name for line in every))
    colours = {label: f"C{k % 10}" for k, label in enumerate(dict.fromkeys(line.label for line in every))}
    legend = _TEXT * len(labels) + 0.25
    height = _HEIGHT * rows + legend + (0.3 if title else 0.0)
    width = max(_WIDTH * columns, 0.085 * max(map(len, [*labels, title])) + 0.8)
    figure = Figure(figsize=(width, height), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for place, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        _panel(place, name, lines, colours)
        place.set_xlabel(_TITLES.get(axis, axis), fontsize=11)
        place.xaxis.set_major_locator(MaxNLocator(5))
        if max(point.x for line in lines for point in line.points) >= 10_000:
            place.xaxis.set_major_formatter(EngFormatter(sep=""))  # 160k rather than 160000
    found = {
        label: handle for place in axes.flat for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    if title:
        figure.suptitle(title, fontsize=11)
    figure.legend([found[label] for label in labels], labels, loc="lower center", fontsize=10, ncols=1)
    figure.tight_layout(rect=(0, legend / height, 1, 1))
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _panel(place: Any, name: str, lines: Sequence[Line], colours: Mapping[str, str]) -> None:
    for line in lines:
        colour = colours[line.label]
        if line.level:
            style = ":" if line.level == "network" else "--"
            place.axhline(line.points[0].y, color=colour, linestyle=style, linewidth=1.2, label=line.name)
            continue
        xs, ys = [p.x for p in line.points], [p.y for p in line.points]
        marker = "o" if len(xs) <= _MARKED else None
        place.plot(xs, ys, marker=marker, markersize=3, linewidth=1.2, color=colour, label=line.name)
        for p in line.points:
            if p.text:
                place.annotate(p.text, (p.x, p.y), (3, 3), textcoords="offset points", fontsize=10, color=colour)
            if p.low is not None and p.high is not None and math.isfinite(p.high):
                place.plot([p.x, p.x], [p.low, p.high], color=colour, linewidth=2.5, alpha=0.3)
    place.set_title(name, fontsize=12)
    place.tick_params(labelsize=10)
    place.ticklabel_format(axis="y", useOffset=False)
    place.margins(y=0.1)
    place.grid(alpha=0.3)
