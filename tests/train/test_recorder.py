"""metrics.jsonl is the truth, TensorBoard a view of it, and resumes leave no overlap in either."""

import json
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from pipeline.metrics.tensorboard_log import write_tensorboard
from pipeline.runtime.files import append_line, read_lines
from pipeline.runtime.run_dir import RunDir
from pipeline.train.recorder import Recorder, goodput, seconds_of_starts


def record(run, *, start, steps, value):
    append_line(run.starts, {"time": time.time()})
    recorder = Recorder(run, step=start, active=True)
    for step in steps:
        recorder.add(step, {"loss": value})
    recorder.picture(steps[-1], "samples", np.zeros((4, 4, 3), np.uint8))
    recorder.close()
    second = int(time.time())
    while int(time.time()) == second:  # TensorBoard reads files in the order of the seconds in their names
        time.sleep(0.01)


ONCE = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def recorded(run):
    """What anybody reads in the file, and what TensorBoard shows."""
    rows = [(row["step"], row["loss"]) for row in map(json.loads, run.metrics.read_text().splitlines())]
    events = EventAccumulator(str(run.tensorboard)).Reload()
    return rows, [(event.step, event.value) for event in events.Scalars("loss/train")], events.Tags()["images"]


def test_after_a_resume_each_step_stands_once(tmp_path):
    run = RunDir(tmp_path)
    record(run, start=0, steps=[1, 2, 3, 4], value=1.0)
    with run.metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    record(run, start=2, steps=[3, 4, 5], value=2.0)  # resumed from 2
    assert recorded(run) == (ONCE, ONCE, ["samples"])


def test_after_a_rollback_each_step_stands_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9)
    )  # in the names of files, where 10 comes before 9
    run = RunDir(tmp_path)
    append_line(run.starts, {"time": time.time()})
    recorder = Recorder(run, step=0, active=True)
    for value, steps in ((1.0, [1, 2, 3, 4]), (2.0, [3, 4, 5])):
        for step in steps:
            recorder.add(step, {"loss": value})
            recorder.picture(step, "samples", np.zeros((4, 4, 3), np.uint8))
        if value == 1.0:
            recorder.rewind(2)
    recorder.close()
    assert recorded(run) == (ONCE, ONCE, ["samples"])


def test_goodput_counts_every_start(tmp_path):
    """Rows of a start are gone once its steps are trained again; its seconds are not."""
    run = RunDir(tmp_path)
    for start, (begin, last) in enumerate([(100.0, 160.0), (200.0, 240.0)], start=1):
        append_line(run.starts, {"time": begin, "earlier_seconds": seconds_of_starts(run)})
        Recorder(run, step=0, active=True).close()
        append_line(run.metrics, {"step": start, "start": start, "time": last})
    assert len(read_lines(run.metrics)) == 1
    assert seconds_of_starts(run) == pytest.approx(100.0)
    assert goodput(75.0, seconds_of_starts(run)) == pytest.approx(0.75)


def test_tensorboard_opens_on_loss_and_rate_and_shows_single_points_after_the_curves(tmp_path):
    """It shows groups by the alphabet, and of these the first two open."""
    run = RunDir(tmp_path)
    row = {
        "loss": 1.0,
        "lr": 0.1,
        "grad_norm": 1.0,
        "epoch": 1.0,
        "speed/images_per_second": 9.0,
        "save/stall_seconds": 0.1,
    }
    recorder = Recorder(run, step=0, active=True)
    recorder.add(2, row)
    recorder.add(2, {"valid/loss": 1.0})
    recorder.close()
    name = "step-000000002/heun12-w1.5-ema-0a2fe7"
    result = {"step": 2, "samples": {"set": name, "count": 8}, "metrics": {"fd-domain": 1.0, "accuracy-domain": 0.5}}
    write_tensorboard(run.tensorboard / "eval", result, {"train": {"lr": 0.1}})
    tags = {
        str(folder.relative_to(run.tensorboard)): sorted(EventAccumulator(str(folder)).Reload().Tags()["scalars"])
        for folder in (run.tensorboard, run.tensorboard / "eval" / "2-0a2fe7")
    }
    assert tags["."][:3] == ["loss/rate", "loss/train", "loss/valid"]
    assert tags["eval/2-0a2fe7"] == ["scores/accuracy-domain", "scores/fd-domain"]
    groups = sorted({tag.partition("/")[0] for found in tags.values() for tag in found})
    assert groups == ["loss", "progress", "save", "scores"]
