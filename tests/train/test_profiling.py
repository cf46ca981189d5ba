"""`train.profile`: a timeline of some steps, a small table, and the same results as without."""

import gzip
import json
import re
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.autograd.profiler_util import DeviceType, FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from pipeline.runtime.distributed import World
from pipeline.runtime.run_dir import create_run, existing_run
from pipeline.train import loop
from pipeline.train.profiling import OPERATIONS, Profiler, table


def trained(root, name, capsys, **settings):
    cfg = tiny.config(root, name=name, **settings)
    tiny.prepare(cfg)
    run = create_run(cfg)
    assert loop.train(cfg, run) == 0
    return run, capsys.readouterr().err


def spans(run):
    """Names of the steps on the timeline, in order."""
    with gzip.open(run.profile) as file:
        events = json.load(file)["traceEvents"]
    found = [e for e in events if re.fullmatch(r"step \d+", e.get("name", "")) and e["ph"] == "X"]
    assert any(e.get("name") == "aten::convolution_backward" for e in events)
    return [e["name"] for e in sorted(found, key=lambda e: e["ts"])]


def test_steps_are_recorded_and_nothing_else_changes(tmp_path, capsys):
    plain, said = trained(tmp_path, "plain", capsys, duration="13 steps")
    assert not plain.profile.exists() and "ms/step" not in said
    run, said = trained(tmp_path, "profiled", capsys, duration="13 steps", profile=2)
    assert spans(run) == ["step 11", "step 12"]
    assert tiny.fingerprint(run, 13) == tiny.fingerprint(plain, 13)
    rows = said.split("share\n")[1].splitlines()[:OPERATIONS]
    assert len(rows) == OPERATIONS and all(re.search(r"\s\d+\.\d\s+\d+\.\d{3}\s+\d+\.\d%$", row) for row in rows)
    assert list(run.profile.parent.iterdir()) == [run.profile]


def test_what_was_recorded_when_training_ends_is_written(tmp_path, capsys):
    run, _ = trained(tmp_path, "short", capsys, duration="12 steps", profile=50)
    assert spans(run) == ["step 11", "step 12"]


@pytest.mark.parametrize("steps", [4, 10])
def test_a_training_that_ends_before_the_first_recorded_step_says_so(tmp_path, capsys, steps):
    run, said = trained(tmp_path, f"none-{steps}", capsys, duration=f"{steps} steps", profile=2)
    assert not run.profile.exists() and "nothing was recorded. It begins after 10 steps of a start" in said
    assert f"ended after {steps}" in said


def failing(s):
    with Profiler(s) as profiler:
        for step in range(1, 13):
            profiler.step(step)
        raise KeyError


def test_an_error_leaves_no_recording_running(tmp_path):
    cfg = tiny.config(tmp_path, profile=3)
    run = create_run(cfg)
    with pytest.raises(KeyError):
        failing(SimpleNamespace(run=run, cfg=cfg, world=World(), device=torch.device("cpu")))
    assert not run.profile.exists()
    with profile(activities=[ProfilerActivity.CPU]) as again:  # torch records once at a time
        torch.ones(3).add(1)
    assert "aten::add" in table(again, steps=1, cuda=False)


def device_times(**microseconds):
    """Rows of a profile as torch makes them: operations on the host, the kernels on the device."""
    rows = []
    for key, time in microseconds.items():
        row = FunctionEventAvg()
        row.key, row.count = key, 2
        row.device_type = DeviceType.CUDA if key.startswith("kernel") else DeviceType.CPU
        row.self_device_time_total = time
        rows.append(row)
    return SimpleNamespace(key_averages=lambda: rows)


def test_a_gpus_time_is_told_by_operation_and_that_of_a_graph_by_kernel():
    eager = table(device_times(conv=3000, silu=1000, kernel_a=3000, kernel_b=1000), steps=2, cuda=True)
    assert [line.split()[0] for line in eager.splitlines()[1:]] == ["operation", "conv", "silu"]
    graph = table(device_times(fill=20, kernel_a=3000, kernel_b=980), steps=2, cuda=True)
    assert [line.split() for line in graph.splitlines()[1:]] == [
        ["kernel", "calls/step", "ms/step", "share"],
        ["kernel_a", "1.0", "1.500", "75.4%"],
        ["kernel_b", "1.0", "0.490", "24.6%"],
    ]


def test_it_may_be_asked_of_a_run_that_was_made_without(tmp_path):
    cfg = tiny.config(tmp_path)
    run = create_run(cfg)
    assert existing_run([str(run.path), "train.profile=5"])[1].train.profile == 5
    assert create_run(tiny.config(tmp_path, profile=5)) == run
