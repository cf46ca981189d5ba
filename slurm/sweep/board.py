"""The TensorBoard page of a sweep: `tensorboard --logdir sweeps/<name>/tensorboard`.

A folder for each run with the scalars of its training, its sample grid, and a row of the HParams table with final and
best metrics. Whatever is new is added as one whole file, whose name says how far it goes: nothing is there twice,
however often a run was resumed or a writer killed.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Value  # type: ignore[import-untyped]
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter

from pipeline.runtime.files import atomic_path, content_hash, read_lines
from slurm.sweep.driver import dimensions_of
from slurm.sweep.folder import SweepDir
from slurm.sweep.measured import Measured, RunMeasured, measured, metric_names
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Dimension, number_of

_NAME = re.compile(r"tfevents\.\d+\.to-(-?\d+)(-end)?$")
_STATUS = {"complete": "STATUS_SUCCESS", "pruned": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}


def write(sweep: SweepDir, found: Sequence[Measured] | None = None) -> None:
    """Add what is new to the page. `found`: what the trials came to, where that has been gathered already."""
    with sweep.lock(of="-tensorboard"):  # two writers would each add the same
        settings, found = sweep.settings(), found or measured(sweep)
        dimensions = dimensions_of(settings)
        _experiment(sweep.tensorboard, settings, dimensions, names=_metrics(found, settings))
        for trial in found:
            for run in trial.runs:
                _run(sweep.tensorboard / run.run.name, trial, run, dimensions=dimensions)


def _metrics(found: Sequence[Measured], settings: SweepSettings) -> list[str]:
    """The columns of numbers; TensorBoard shows the first five unless asked for more."""
    first = [] if "/" in settings.metric else [f"final/{settings.metric}"]
    losses = ["best/loss", "final/loss"] if any(r.best_loss is not None for m in found for r in m.runs) else []
    others = [f"final/{name}" for name in metric_names(found, settings)]
    return list(dict.fromkeys([*first, *losses, *others]))


def _summary_of(run: RunMeasured) -> dict[str, float]:
    """The metrics of a row of the table: final ones of the results, the best and the last of losses."""
    values = {f"final/{name}": value for name, value in sorted(run.metrics.items())}
    if run.best_loss is not None and run.last_loss is not None:
        values |= {"best/loss": run.best_loss, "final/loss": run.last_loss}
    return values


def _experiment(
    folder: Path, settings: SweepSettings, dimensions: Sequence[Dimension], *, names: Sequence[str]
) -> None:
    """Which columns the table has. One file; it is replaced where the sweep was extended or measures more."""
    columns = [_column(d) for d in dimensions]
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name), display_name=name) for name in names]
    experiment = api_pb2.Experiment(name=settings.name, hparam_infos=columns, metric_infos=metrics)
    mark = content_hash([str(experiment)])[:12]
    old = list(folder.glob("*.experiment-*"))
    if any(path.name.endswith(mark) for path in old):
        return
    _save(folder / f"events.out.tfevents.{time.time_ns()}.experiment-{mark}", [_hparams(experiment=experiment)])
    for path in old:
        path.unlink(missing_ok=True)


def _column(d: Dimension) -> Any:
    if not d.finite:
        ends = api_pb2.Interval(min_value=d.low, max_value=d.high)
        return api_pb2.HParamInfo(name=d.key, type="DATA_TYPE_FLOAT64", domain_interval=ends)
    numbers = _numbers(d)
    kind = "DATA_TYPE_FLOAT64" if numbers else "DATA_TYPE_STRING"
    return api_pb2.HParamInfo(
        name=d.key, type=kind, domain_discrete=ListValue(values=[_value(c, numbers) for c in d.choices])
    )


def _numbers(d: Dimension) -> bool:
    return all(number_of(c) is not None for c in d.choices)


def _value(choice: object, numbers: bool) -> Any:
    number = number_of(choice)
    return Value(number_value=number) if numbers and number is not None else Value(string_value=str(choice))


def _run(folder: Path, trial: Measured, run: RunMeasured, *, dimensions: Sequence[Dimension]) -> None:
    """Add a file with what earlier ones do not have: scalars of later steps; at the end metrics and picture."""
    marks = [match for path in folder.glob("*tfevents*") if (match := _NAME.search(path.name))]
    upto = max((int(match[1]) for match in marks), default=-1)
    ended = any(match[2] for match in marks)
    over = trial.word != "running"
    if ended:
        return
    events = [] if marks else [_start(trial, run, dimensions)]
    scalars = list(_scalars(run, upto))
    events += scalars
    last = max((event.step for event in scalars), default=upto)
    if over:
        events += _end(trial, run, step=max(last, 0))
    if events:
        end = "-end" if over else ""
        _save(folder / f"events.out.tfevents.{time.time_ns()}.to-{last}{end}", events)


def _start(trial: Measured, run: RunMeasured, dimensions: Sequence[Dimension]) -> Event:
    info = SessionStartInfo(group_name=f"{trial.number:04d}", start_time_secs=time.time())
    for d in dimensions:
        info.hparams[d.key].CopyFrom(_value(trial.params[d.key], not d.finite or _numbers(d)))
    info.model_uri = str(run.run.path)
    return _hparams(session_start_info=info)


def _scalars(run: RunMeasured, upto: int) -> Iterator[Event]:
    """The rows of metrics.jsonl beyond a step; of a step that was trained twice, the later row."""
    rows: dict[int, dict[str, float]] = {}
    times: dict[int, float] = {}
    for row in read_lines(run.launch.run.metrics) if run.launch.run.path == run.run.path.resolve() else []:
        values = {
            k: float(v) for k, v in row.items() if k not in ("step", "start", "time") and isinstance(v, int | float)
        }
        rows.setdefault(int(row["step"]), {}).update(values)
        times[int(row["step"])] = float(row.get("time", 0.0))
    for step in sorted(s for s in rows if s > upto):
        tagged = {name if "/" in name else f"train/{name}": value for name, value in rows[step].items()}
        yield Event(wall_time=times[step] or time.time(), step=step, summary=_scalar_summary(tagged))


def _scalar_summary(values: Mapping[str, float]) -> Any:
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])


def _end(trial: Measured, run: RunMeasured, *, step: int) -> list[Event]:
    summary = _summary_of(run) if trial.word == "complete" else {}
    events = [Event(wall_time=time.time(), step=step, summary=_scalar_summary(summary))] if summary else []
    if run.picture is not None:
        with Image.open(run.picture) as image:
            width, height = image.size
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=run.picture.read_bytes())
        picture = Summary(value=[Summary.Value(tag="samples", image=shown)])
        events.append(Event(wall_time=time.time(), step=step, summary=picture))
    info = SessionEndInfo(status=api_pb2.Status.Value(_STATUS[trial.word]), end_time_secs=time.time())
    return [*events, _hparams(session_end_info=info)]


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


def _save(path: Path, events: Sequence[Event]) -> None:
    # Hidden until it is whole, and not among what TensorBoard reads: it opens everything that is called tfevents.
    hidden = path.parent.parent / f".writing-{path.parent.name}" / str(time.time_ns())
    with atomic_path(hidden) as partial, partial.open("wb") as file:
        writer = RecordWriter(file)
        for event in (Event(wall_time=time.time(), file_version="brain.Event:2"), *events):
            writer.write(event.SerializeToString())
        writer.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden.rename(path)
    hidden.parent.rmdir()
