"""metrics.jsonl is the truth, TensorBoard a view of it, and resumes leave no overlap in either."""

import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.monitor.recorder import Recorder, read_metrics
from pipeline.monitor.speed import goodput, seconds_of_starts
from pipeline.runtime.files import append_line
from pipeline.runtime.run_dir import RunDir


def record(run, *, start, steps, value):
    append_line(run.starts, {"time": time.time()})
    recorder = Recorder(run, step=start, active=True)
    for step in steps:
        recorder.add(step, {"loss": value})
    recorder.picture(steps[-1], "samples", np.zeros((4, 4, 3), np.uint8))
    recorder.close()


def test_after_a_resume_each_step_stands_once(tmp_path):
    run = RunDir(tmp_path)
    record(run, start=0, steps=[1, 2, 3, 4], value=1.0)
    record(run, start=2, steps=[3, 4, 5], value=2.0)  # killed after 4, resumed from 2
    assert [(row["step"], row["loss"]) for row in read_metrics(run.metrics)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
        (5, 2.0),
    ]
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert events.Tags()["images"] == ["samples"]


def test_goodput_counts_every_start(tmp_path):
    run = RunDir(tmp_path)
    for start, (begin, last) in enumerate([(100.0, 160.0), (200.0, 240.0)], start=1):
        append_line(run.starts, {"time": begin})
        append_line(run.metrics, {"step": start, "start": start, "time": last})
    assert seconds_of_starts(run) == pytest.approx(100.0)
    assert goodput(75.0, seconds_of_starts(run)) == pytest.approx(0.75)
