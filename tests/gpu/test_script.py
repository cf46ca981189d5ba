"""benchmarks/gpu.py runs whole on a CPU, at sizes that measure nothing; and what it stands on holds."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from on_gpu.report import Clock, Report, TimeUp, alarm, guarded, interleaved  # noqa: E402


@pytest.mark.timeout(1200)
def test_every_part_runs_on_a_cpu(tmp_path):
    """The minutes are a limit that the tiny sizes stay far below, so a busy machine does not decide."""
    out = tmp_path / "out"
    argv = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--minutes", "18", "--out", str(out)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads((out / "results.json").read_text())
    assert found["header"]["torch"] and "failures" not in found
    assert {row["ok"] for row in found["checks"]} == {True, None}
    assert {row["note"] for row in found["checks"] if row["ok"] is None} == {"needs CUDA"}
    assert all(row["ours"] > 0 and row["diffusers"] > 0 and row["bare"] > 0 for row in found["steps"])
    assert [row["mode"] for row in found["games"]] == ["eager"] and found["games"][0]["ours"] > 0
    assert {(row["precision"], row["guided"]) for row in found["sampling"]} >= {("bf16", False), ("fp32", True)}
    assert {row["save"] for row in found["saves"]} == {"sync", "async"}
    assert 0 < found["startup"]["first step done"] <= found["startup"]["end"]
    assert found["flowers"]["finished"] and found["flowers"]["samples"] == 8
    assert "fd-domain" in found["flowers"]["metrics"]
    kept = {"log.txt", "profile.txt", "flowers_loss.json", "flowers_result.json", "flowers_grid.jpg"}
    assert kept <= {path.name for path in out.iterdir()}
    assert max(map(len, done.stdout.splitlines()[1:])) <= 120


def test_a_failure_is_kept_with_its_traceback_and_the_rest_goes_on(tmp_path):
    report = Report(tmp_path)
    with guarded(report, "this check"):
        raise ValueError("seven\nand more")
    assert report.data["failures"] == [{"name": "this check", "error": "ValueError: seven"}]
    assert json.loads((tmp_path / "results.json").read_text()) == report.data
    assert 'raise ValueError("seven' in (tmp_path / "log.txt").read_text()


def test_the_time_of_a_part_is_no_failure_of_one_check(tmp_path):
    report = Report(tmp_path)
    report.add("steps", {"ours": 1})
    with pytest.raises(TimeUp), alarm(0.05), guarded(report, "long"):
        time.sleep(60)
    assert "failures" not in report.data
    assert json.loads((tmp_path / "results.json").read_text()) == {"steps": [{"ours": 1}]}


def test_sides_take_turns_and_end_early():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = interleaved(sides, device="cpu", rounds=9, least=0.0, clock=Clock(time.monotonic() - 1))
    assert "".join(calls) == "ab" + "abab"  # once each before, then two rounds although the time is over
    assert times.keys() == {"a", "b"}
