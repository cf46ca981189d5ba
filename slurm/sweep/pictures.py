"""Plots of a sweep, and its TensorBoard page: `tensorboard --logdir sweeps/<name>/tensorboard`.

The page has a folder for each run with the scalars of its training, its sample grid, and a row of the HParams table.
The run's own task writes the folder when it ends, as one whole file: nothing is there twice, however often a run was
resumed, and a run's end costs the same however many others there are.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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
    from slurm.sweep.report import Trial


# Plots


def draw(folder: Path, done: "Sequence[Trial]", settings: SweepSettings) -> None:
    """Plots of complete trials: Optuna's, and the metric against validation loss."""
    import matplotlib as mpl

    from slurm.sweep.study import study_of

    mpl.use("Agg")
    from matplotlib.figure import Figure
    from optuna.visualization import matplotlib as plots

    study = study_of([(t.params, t.value or 0.0) for t in done], settings)
    keys = [d.key for d in settings.dimensions if not d.finite or len(d.choices) > 1] or None
    named = {"target": lambda t: t.value, "target_name": settings.metric}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its plots experimental, and matplotlib a constant axis
        _save(folder / "search.png", plots.plot_optimization_history(study, target_name=settings.metric))
        _save(folder / "settings.png", plots.plot_slice(study, params=keys, **named))
        _save(folder / "coordinates.png", plots.plot_parallel_coordinate(study, params=keys, **named))
    points = [(t.number, loss, t.value or 0.0) for t in done if (loss := t.loss("last")) is not None]
    if points and settings.metric != "valid/loss":  # where loss predicts the metric: a rising line
        axes = Figure(figsize=(5, 3.8), dpi=110).subplots()
        axes.plot([loss for _, loss, _ in points], [value for _, _, value in points], "o", ms=5)
        for number, loss, value in points if len(points) <= 24 else []:
            axes.annotate(str(number), (loss, value), textcoords="offset points", xytext=(4, 3), fontsize=6)
        axes.set(xlabel="validation loss at the end of training", ylabel=settings.metric)
        _save(folder / "loss.png", axes)


def _save(path: Path, axes: Any) -> None:
    from matplotlib import pyplot

    figure = np.ravel(axes)[0].figure
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


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
