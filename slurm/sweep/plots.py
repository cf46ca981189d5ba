"""Pictures of a sweep: the search over time, the metric against each setting, the metric against validation loss."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.runtime.files import atomic_path
from slurm.sweep.measured import Measured
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Dimension, number_of

_COLUMNS = 3
_MOST_TICKS = 8
_WIDE = 20.0  # largest value over the smallest


def draw_search(path: Path, found: Sequence[Measured], settings: SweepSettings) -> None:
    """Every trial's value in the order of the search, and the best so far."""
    figure = Figure(figsize=(7, 3.6), dpi=110)
    axes = figure.subplots()
    done = [m for m in found if m.value is not None]
    better = np.minimum if settings.direction == "minimize" else np.maximum
    numbers, values = [m.number for m in done], [m.value or 0.0 for m in done]
    axes.errorbar(numbers, values, yerr=[m.spread or 0.0 for m in done], fmt="o", ms=4, lw=1, label="trial")
    axes.plot(numbers, better.accumulate(values), drawstyle="steps-post", color="C1", label="best so far")
    for word, mark in (("pruned", "|"), ("failed", "x")):
        gone = [m.number for m in found if m.word == word]
        if gone:  # on the frame, where nobody takes them for values
            above = axes.get_xaxis_transform()
            axes.plot(gone, [1.0] * len(gone), mark, color="C3", label=word, transform=above, clip_on=False)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(settings.metric)
    _scale(axes, values)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def draw_settings(
    path: Path, found: Sequence[Measured], dimensions: Sequence[Dimension], *, settings: SweepSettings
) -> None:
    """The metric against each varied setting, a panel for each."""
    done = [m for m in found if m.value is not None]
    columns = min(len(dimensions), _COLUMNS)
    rows = -(-len(dimensions) // columns)
    figure = Figure(figsize=(3.8 * columns, 3.0 * rows), dpi=110)
    places = figure.subplots(rows, columns, squeeze=False)
    for place in places.flat[len(dimensions) :]:
        place.set_axis_off()
    for place, d in zip(places.flat, dimensions, strict=False):
        _panel(place, done, d)
        place.set_ylabel(settings.metric, fontsize=8)
        _scale(place, [m.value or 0.0 for m in done])
    _save(figure, path)


def _panel(place: Axes, done: Sequence[Measured], d: Dimension) -> None:
    numbers = [number_of(choice) for choice in d.choices]
    values = [m.value or 0.0 for m in done]
    if d.finite and (None in numbers or len(numbers) <= _MOST_TICKS):
        # Choices stand side by side, whatever they are worth; points beside each other where they would hide.
        order = sorted(d.choices, key=lambda c: (number_of(c) is None, number_of(c) or 0.0, c))
        at = [order.index(str(m.params[d.key])) for m in done]
        place.plot(np.array(at) + _aside(at), values, "o", ms=4, alpha=0.8)
        means = [np.mean([v for a, v in zip(at, values, strict=True) if a == n] or [np.nan]) for n in range(len(order))]
        place.plot(range(len(order)), means, "_", ms=22, color="C1")
        place.set_xticks(range(len(order)), order, fontsize=7, rotation=20 if max(map(len, order)) > 6 else 0)
        place.set_xlim(-0.6, len(order) - 0.4)
    else:
        place.plot([float(m.params[d.key]) for m in done], values, "o", ms=4, alpha=0.8)
        place.set_xscale("log" if d.log else "linear")
    place.set_xlabel(d.key, fontsize=8)
    place.tick_params(labelsize=7)
    place.grid(alpha=0.3)


def _aside(at: Sequence[int]) -> npt.NDArray[np.float64]:
    count = {a: at.count(a) for a in at}
    seen: dict[int, int] = {}
    steps = []
    for a in at:
        n = seen[a] = seen.get(a, -1) + 1
        steps.append(0.3 * (n / max(count[a] - 1, 1) - 0.5) if count[a] > 1 else 0.0)
    return np.array(steps)


def draw_losses(path: Path, found: Sequence[Measured], settings: SweepSettings) -> None:
    """The metric against the last validation loss: where loss predicts the metric, a rising line."""
    figure = Figure(figsize=(5, 3.8), dpi=110)
    axes = figure.subplots()
    done = [(m.number, m.last_loss, m.value) for m in found if m.value is not None and m.last_loss is not None]
    axes.plot([loss for _, loss, _ in done], [value for _, _, value in done], "o", ms=5)
    for number, loss, value in done if len(done) <= 24 else []:
        axes.annotate(str(number), (loss, value), textcoords="offset points", xytext=(4, 3), fontsize=6)
    axes.set_xlabel("validation loss at the end of training")
    axes.set_ylabel(settings.metric)
    _scale(axes, [value for _, _, value in done])
    axes.grid(alpha=0.3)
    _save(figure, path)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where one bad trial would press all others onto a line."""
    if min(values) > 0 and max(values) > _WIDE * min(values):
        axes.set_yscale("log")


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
