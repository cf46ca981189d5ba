"""Plots of a sweep, and its TensorBoard page: `tensorboard --logdir sweeps/<name>/tensorboard`.

The page has a folder for each run with the scalars of its training, its sample grid, and a row of the HParams table.
The run's own task writes the folder when it ends, as one whole file: nothing is there twice, however often a run was
resumed, and a run's end costs the same however many others there are.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from google.protobuf.struct_pb2 import ListValue, Value  # type: ignore[import-untyped]
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline.runtime.files import atomic_path, read_lines
from slurm.sweep.runs import Run, known_params
from slurm.sweep.settings import Dimension, SweepDir, SweepSettings, number_of

if TYPE_CHECKING:  # a run's task writes its page without what plots need
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from slurm.sweep.report import Trial

_COLUMNS = 3
_MOST_TICKS = 8
_WIDE = 20.0  # largest value over the smallest


# Plots


def draw(folder: Path, found: "Sequence[Trial]", settings: SweepSettings) -> None:
    """All plots of a sweep with a complete trial."""
    done = [t for t in found if t.value is not None]
    varied = [d for d in settings.dimensions if not d.finite or len(d.choices) > 1] or settings.dimensions
    _search(folder / "search.png", found, done, settings)
    _settings(folder / "settings.png", done, varied, settings)
    _coordinates(folder / "coordinates.png", done, varied, settings)
    if any(t.loss("last") is not None for t in done) and settings.metric != "valid/loss":
        _losses(folder / "loss.png", done, settings)


def _search(path: Path, found: "Sequence[Trial]", done: "Sequence[Trial]", settings: SweepSettings) -> None:
    """Every trial's value in the order of the trials, and the best so far."""
    figure = _figure(7, 3.6)
    axes = figure.subplots()
    better = np.minimum if settings.minimize else np.maximum
    numbers, values = [t.number for t in done], [t.value or 0.0 for t in done]
    axes.errorbar(numbers, values, yerr=[t.spread or 0.0 for t in done], fmt="o", ms=4, lw=1, label="trial")
    axes.plot(numbers, better.accumulate(values), drawstyle="steps-post", color="C1", label="best so far")
    for word, mark in (("pruned", "|"), ("failed", "x")):
        gone = [t.number for t in found if t.word == word]
        if gone:  # on the frame, where nobody takes them for values
            above = axes.get_xaxis_transform()
            axes.plot(gone, [1.0] * len(gone), mark, color="C3", label=word, transform=above, clip_on=False)
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=8)
    _finish(axes, "trial", settings.metric, values)
    _save(figure, path)


def _settings(path: Path, done: "Sequence[Trial]", dimensions: Sequence[Dimension], settings: SweepSettings) -> None:
    """The metric against each varied setting, a panel for each."""
    columns = min(len(dimensions), _COLUMNS)
    rows = -(-len(dimensions) // columns)
    figure = _figure(3.8 * columns, 3.0 * rows)
    places = figure.subplots(rows, columns, squeeze=False)
    for place in places.flat[len(dimensions) :]:
        place.set_axis_off()
    values = [t.value or 0.0 for t in done]
    for place, d in zip(places.flat, dimensions, strict=False):
        at, ticks = _places(done, d)
        aside = _aside(at) if ticks else np.zeros(len(at))  # points beside each other where they would hide
        place.plot(np.array(at) + aside, values, "o", ms=4, alpha=0.8)
        if ticks:
            means = [
                np.mean([v for a, v in zip(at, values, strict=True) if a == n] or [np.nan]) for n in range(len(ticks))
            ]
            place.plot(range(len(ticks)), means, "_", ms=22, color="C1")
            place.set_xticks(range(len(ticks)), ticks, fontsize=7, rotation=20 if max(map(len, ticks)) > 6 else 0)
            place.set_xlim(-0.6, len(ticks) - 0.4)
        else:
            place.set_xscale("log" if d.log else "linear")
        place.tick_params(labelsize=7)
        _finish(place, d.key, settings.metric, values)
    _save(figure, path)


def _places(done: "Sequence[Trial]", d: Dimension) -> tuple[list[float], list[str]]:
    """Where each trial stands on an axis: by its number, or by the place of its choice among the ticks."""
    numbers = [number_of(choice) for choice in d.choices]
    if not d.finite or (None not in numbers and len(numbers) > _MOST_TICKS):
        return [float(t.params[d.key]) for t in done], []
    order = sorted(d.choices, key=lambda c: (number_of(c) is None, number_of(c) or 0.0, c))
    return [order.index(str(t.params[d.key])) for t in done], order


def _aside(at: Sequence[float]) -> npt.NDArray[np.float64]:
    count = {a: at.count(a) for a in at}
    seen: dict[float, int] = {}
    steps = []
    for a in at:
        n = seen[a] = seen.get(a, -1) + 1
        steps.append(0.3 * (n / max(count[a] - 1, 1) - 0.5) if count[a] > 1 else 0.0)
    return np.array(steps)


def _coordinates(path: Path, done: "Sequence[Trial]", dimensions: Sequence[Dimension], settings: SweepSettings) -> None:
    """Parallel coordinates: a line for each trial through its settings to its metric, the best the darkest."""
    figure = _figure(1.8 * (len(dimensions) + 1) + 1.5, 3.8)
    axes = figure.subplots()
    values = np.array([t.value or 0.0 for t in done])
    heights = [_unit(np.log(at) if d.log else np.array(at)) for d in dimensions for at, _ in [_places(done, d)]]
    heights.append(_unit(values))
    order = np.argsort(-values if settings.minimize else values, kind="stable")  # the best on top
    for place, n in enumerate(order):
        shade = (place + 1) / len(order)
        axes.plot([h[n] for h in heights], "-", lw=0.6 + shade, color=(0.8 - 0.7 * shade, 0.8 - 0.5 * shade, 0.9))
    axes.set_xticks(range(len(heights)), [*(d.key for d in dimensions), settings.metric], fontsize=7, rotation=12)
    axes.set_yticks([0, 1], ["lowest", "highest"], fontsize=7)
    axes.grid(axis="x", alpha=0.6)
    _save(figure, path)


def _unit(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    low, high = float(np.min(x)), float(np.max(x))
    return np.full(len(x), 0.5) if low == high else (np.asarray(x, dtype=float) - low) / (high - low)


def _losses(path: Path, done: "Sequence[Trial]", settings: SweepSettings) -> None:
    """The metric against the last validation loss: where loss predicts the metric, a rising line."""
    figure = _figure(5, 3.8)
    axes = figure.subplots()
    points = [(t.number, loss, t.value or 0.0) for t in done if (loss := t.loss("last")) is not None]
    axes.plot([loss for _, loss, _ in points], [value for _, _, value in points], "o", ms=5)
    for number, loss, value in points if len(points) <= 24 else []:
        axes.annotate(str(number), (loss, value), textcoords="offset points", xytext=(4, 3), fontsize=6)
    _finish(axes, "validation loss at the end of training", settings.metric, [value for _, _, value in points])
    _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110)


def _finish(axes: "Axes", x: str, y: str, values: Sequence[float]) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.grid(alpha=0.3)
    if min(values) > 0 and max(values) > _WIDE * min(values):  # one bad trial would press all others onto a line
        axes.set_yscale("log")


def _save(figure: "Figure", path: Path) -> None:
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


# The TensorBoard page


def write_page(sweep: SweepDir, settings: SweepSettings, metrics: Sequence[str]) -> None:
    """Say which columns the HParams table has: one file, written anew. Runs write their own rows."""
    names = list(dict.fromkeys([*([] if "/" in settings.metric else [f"final/{settings.metric}"]), *metrics]))
    names += ["best/loss", "final/loss"] if settings.run is None else []
    infos = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name), display_name=name) for name in names]
    columns = [_column(d) for d in settings.dimensions]
    experiment = api_pb2.Experiment(name=settings.name, hparam_infos=columns, metric_infos=infos)
    _save_events(sweep.tensorboard, [_hparams(experiment=experiment)])


def write_run(run: Run, settings: SweepSettings) -> None:
    """Write everything of a run that has ended, in place of what an earlier start of it left."""
    outcome, launch = run.outcome(), run.launch()
    params = known_params(run.sweep, settings, run.trial) or {}
    info = SessionStartInfo(group_name=f"{run.trial:04d}", start_time_secs=time.time(), model_uri=str(run.path))
    for d in settings.dimensions:
        info.hparams[d.key].CopyFrom(_value(params[d.key], not d.finite or _numbers(d)))
    events = [_hparams(session_start_info=info)]
    if settings.run is None:
        events += _scalars(launch.run.metrics)
    last = max((event.step for event in events), default=0)
    values = {f"final/{name}": value for name, value in sorted(outcome.get("metrics", {}).items())}
    if loss := outcome.get("loss"):
        values |= {"best/loss": loss["best"], "final/loss": loss["last"]}
    events += [Event(wall_time=time.time(), step=last, summary=_scalar_summary(values))] if values else []
    grid = Path(outcome.get("samples") or "") / "grid.png"
    if outcome.get("samples") and grid.is_file():
        with Image.open(grid) as image:
            width, height = image.size
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=grid.read_bytes())
        picture = Summary(value=[Summary.Value(tag="samples", image=shown)])
        events.append(Event(wall_time=time.time(), step=last, summary=picture))
    end = SessionEndInfo(status=api_pb2.Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    _save_events(run.sweep.tensorboard / run.name, [*events, _hparams(session_end_info=end)])


def _column(d: Dimension) -> Any:
    if not d.finite:
        ends = api_pb2.Interval(min_value=d.low, max_value=d.high)
        return api_pb2.HParamInfo(name=d.key, type="DATA_TYPE_FLOAT64", domain_interval=ends)
    numbers = _numbers(d)
    kind = "DATA_TYPE_FLOAT64" if numbers else "DATA_TYPE_STRING"
    values = ListValue(values=[_value(c, numbers) for c in d.choices])
    return api_pb2.HParamInfo(name=d.key, type=kind, domain_discrete=values)


def _numbers(d: Dimension) -> bool:
    return all(number_of(c) is not None for c in d.choices)


def _value(choice: object, numbers: bool) -> Any:
    number = number_of(choice)
    return Value(number_value=number) if numbers and number is not None else Value(string_value=str(choice))


def _scalars(metrics: Path) -> Iterator[Event]:
    """The rows of metrics.jsonl; of a step that was trained twice, the later row."""
    rows: dict[int, dict[str, float]] = {}
    times: dict[int, float] = {}
    for row in read_lines(metrics):
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
        rows.setdefault(int(row["step"]), {}).update(
            {k: numbers[k] for k in numbers.keys() - {"step", "start", "time"}}
        )
        times[int(row["step"])] = float(row.get("time", 0.0))
    for step in sorted(rows):
        tagged = {name if "/" in name else f"train/{name}": value for name, value in sorted(rows[step].items())}
        yield Event(wall_time=times[step] or time.time(), step=step, summary=_scalar_summary(tagged))


def _scalar_summary(values: Mapping[str, float]) -> Any:
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _hparams(**content: Any) -> Event:
    """An event of the HParams plugin."""
    tags = {
        "experiment": metadata.EXPERIMENT_TAG,
        "session_start_info": metadata.SESSION_START_INFO_TAG,
        "session_end_info": metadata.SESSION_END_INFO_TAG,
    }
    (kind,) = content
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
    value = Summary.Value(tag=tags[kind], metadata=SummaryMetadata(plugin_data=plugin))
    return Event(wall_time=time.time(), summary=Summary(value=[value]))


def _save_events(folder: Path, events: Sequence[Event]) -> None:
    """The only file of events in a folder. Hidden until it is whole, outside of what TensorBoard reads."""
    hidden = folder.parent.parent / f".writing-{folder.name}-{time.time_ns()}"
    with atomic_path(hidden) as partial, partial.open("wb") as file:
        writer = RecordWriter(file)
        for event in (Event(wall_time=time.time(), file_version="brain.Event:2"), *events):
            writer.write(event.SerializeToString())
        writer.flush()
    old = list(folder.glob("*tfevents*"))
    folder.mkdir(parents=True, exist_ok=True)
    hidden.rename(folder / f"events.out.tfevents.{time.time_ns()}.sweep")
    for path in old:
        path.unlink(missing_ok=True)
