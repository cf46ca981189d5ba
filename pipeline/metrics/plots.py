"""Small plots of metrics against one setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.runtime.files import atomic_path

_COLUMNS = 4
_TITLES = {
    "step": "training step",
    "guidance": "guidance scale",
    "weights": "relative width of the average (0: other weights)",
    "steps": "sampler steps",
    "images": "images in the set",
    "number-of-samples": "samples used",
}


@dataclass(frozen=True)
class Line:
    """Points (x, y) by ascending x, and what they have in common."""

    label: str
    points: tuple[tuple[float, float], ...]


def draw_lines(path: Path, axis: str, panels: Mapping[str, Sequence[Line]]) -> None:
    """Write a PNG with one panel for each metric, all against `axis`, and one legend for all."""
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows + 0.8), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    colours: dict[str, str] = {}
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for place, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        for line in lines:
            colour = colours.setdefault(line.label, f"C{len(colours) % 10}")
            place.plot(*zip(*line.points, strict=True), marker="o", markersize=3, color=colour, label=line.label)
        place.set_title(name, fontsize=9)
        place.set_xlabel(_TITLES.get(axis, axis), fontsize=8)
        place.tick_params(labelsize=7)
        place.grid(alpha=0.3)
    found = {
        label: handle for place in axes.flat for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="lower center", fontsize=7, ncols=1)
    figure.tight_layout(rect=(0, 0.04 + 0.04 * len(found) / rows, 1, 1))
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
