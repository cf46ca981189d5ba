"""On a real Slurm: chains of jobs where none may be queued again, and jobs inside an allocation that is held."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from launching import (
    HERE,
    LIMIT,
    ended,
    kept_steps,
    logs,
    profile,
    real,
    result,
    slurm_cli,
    stand_in,
    states,
    wait_for,
)
from launching import uninterrupted as whole

from pipeline.runtime.files import read_lines
from slurm import cancel, ledger
from slurm.progress import ProgressTable
from slurm.rank import ATTEMPTS, attempts
from slurm.submit import run_here, submit_graph

pytestmark = pytest.mark.cluster
CALM = {"exclude": "node2,node4"}  # where faults.py takes nodes away


@pytest.fixture(autouse=True)
def _on_the_cluster(cluster):
    """All of these need it."""


@pytest.fixture
def allocation(monkeypatch):
    """Two processes on one node, held as by salloc."""
    argv = ["salloc", "--no-shell", "--nodes=1", "--ntasks=2", "--mem=2G", "--time=30", "--exclude=node2,node4"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True)
    job = said.stderr.split("job allocation ")[1].split()[0]
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    yield job
    subprocess.run(["scancel", job], check=True)


def wait_until(good) -> None:
    """Until it is so, for LIMIT seconds at most."""
    end = time.monotonic() + LIMIT
    while not good():
        assert time.monotonic() < end
        time.sleep(0.1)


def chained(root: Path, options: str):
    """A training of three starts that may not be queued again, and what samples from it."""
    cluster = profile("testbed", requeue=False, options=CALM, retry={"error": 0}, train={"starts": 3})
    return stand_in(root, cluster, only=("train", "sample"), options={"train": options})


def test_where_nothing_is_queued_again_the_next_job_of_a_chain_goes_on(tmp_path):
    launch = chained(tmp_path, "--hold")
    submit_graph(launch)
    known = ledger.submissions(launch.run)["train"]
    first, second = known.earlier
    now = wait_for(launch, lambda now: now["train"].status == "running" and launch.run.starts.exists())
    assert now["train"].message == "2 more starts in the queue" and now["train"].active
    assert submit_graph(launch)["train"].status == "running"  # and is left alone
    subprocess.run(["scancel", "--signal=USR2", first], check=True)
    wait_for(launch, lambda now: all(state.status == "complete" for state in now.values()))
    assert result(launch) == whole(4) and kept_steps(launch) == [1, 2, 3, 4]
    started = {row["id"] for row in read_lines(known.record / ATTEMPTS) if row["event"] == "start"}
    assert {first, second} <= started and len(read_lines(launch.run.starts)) >= 2


def test_a_chain_ends_where_a_failure_comes_again_and_is_cancelled_whole(tmp_path):
    failing, held = chained(tmp_path / "failing", "--fail non_finite"), chained(tmp_path / "held", "--stall")
    for launch in (failing, held):
        submit_graph(launch)
    known = ledger.submissions(failing.run)["train"]
    wait_for(failing, ended)
    starts = [row for row in attempts(known.record, (*known.earlier, *known.ids)) if row["event"] == "start"]
    assert len(starts) == 1, logs(failing)
    assert "the next job" not in logs(failing) and "a reason that comes again" in logs(failing)
    wait_for(held, lambda now: now["train"].status == "running" and held.run.starts.exists())
    cancel.cancel([held])
    now = wait_for(held, ended)
    assert now["train"].status == "cancelled"


def test_a_graph_runs_in_the_allocation_that_is_held(tmp_path, allocation):
    cluster = profile("here", prepare={"tasks": 1}, train={"tasks": 2, "nodes": 1})
    launch = real(tmp_path, cluster, name="inside")
    tiny.prepare(launch.cfg)
    (job,) = (job for job in launch.jobs if job.name == "train")
    launch = dataclasses.replace(launch, jobs=(dataclasses.replace(job, after=()),))
    code = run_here(launch, ProgressTable(["train"], title="test"))
    assert code == 0, logs(launch)
    assert states(launch)["train"].status == "complete"
    assert json.loads(launch.run.starts.read_text().splitlines()[0])["world_size"] == 2
    rows = read_lines(launch.run.jobs / "train" / ATTEMPTS)
    assert sorted(row["rank"] for row in rows if row["event"] == "start") == [0, 1]
    steps = subprocess.run(
        ["sacct", "-nP", "-j", allocation, "-o", "JobID"], capture_output=True, text=True, check=True
    )
    assert f"{allocation}.0" in steps.stdout


@pytest.mark.usefixtures("allocation")
def test_what_runs_in_an_allocation_is_told_to_end(tmp_path):
    script = f"""
import sys
from pathlib import Path
from launching import profile, stand_in
from slurm.progress import ProgressTable
from slurm.submit import run_here
cluster = profile("here", train={{"tasks": 1, "nodes": 1}})
launch = stand_in(Path({str(tmp_path)!r}), cluster, only=("train",), options={{"train": "--stall"}})
sys.exit(run_here(launch, ProgressTable(["train"], title="test")))
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE, HERE.parent)))}
    process = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.PIPE, text=True)
    starts = tmp_path / "runs" / "run" / "starts.jsonl"
    wait_until(lambda: starts.exists() or process.poll() is not None)
    process.send_signal(2)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "cancelled" in said, said
    rows = read_lines(tmp_path / "runs" / "run" / "jobs" / "train" / ATTEMPTS)
    assert [row["event"] for row in rows] == ["start", "terminated", "end"] and rows[-1]["code"] == 143, rows


def test_no_allocation_and_no_parents_are_said(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    overrides = ["experiment=glyphs16", f"runs_dir={tmp_path}/runs", f"data_dir={tmp_path}/data"]
    done = slurm_cli("submit", *overrides, "cluster=here")
    assert done.returncode == 2 and "salloc" in done.stderr, done.stderr
    done = slurm_cli("submit", *overrides, "cluster=testbed", "--only", "sample")
    assert done.returncode == 2 and "waits for what is not complete: train" in done.stderr, done.stderr
    assert "--until sample" in done.stderr


def test_several_experiments_are_submitted_together_as_far_as_is_asked(tmp_path):
    overrides = ["experiment=glyphs16,glyphs16_ddpm", "cluster=testbed", f"runs_dir={tmp_path}/runs"]
    overrides += [f"data_dir={tmp_path}/data", "+cluster.begin=now+900", "--until", "train"]
    done = slurm_cli("submit", *overrides)
    assert done.returncode == 0, done.stderr
    rows = {run: read_lines(tmp_path / "runs" / run / "jobs" / ledger.LEDGER) for run in ("glyphs16", "glyphs16_ddpm")}
    first, second = ({row["job"]: row["ids"] for row in found} for found in rows.values())
    assert first.keys() == second.keys() == {"prepare", "train"}
    assert first["prepare"] == second["prepare"] and first["train"] != second["train"]
    assert slurm_cli("cancel", str(tmp_path / "runs")).returncode == 0


def test_preflight_looks_at_every_kind_of_job_and_at_the_setup(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")  # no cell is wrapped
    overrides = [
        "cluster=testbed",
        f"runs_dir={tmp_path}",
        f"data_dir={tmp_path}",
        "cluster.internet_probe=127.0.0.1:9",
    ]
    overrides += [
        "cluster.internet=false",
        "+cluster.sample.partition=nowhere",
        "cluster.setup=['echo a','cat /nowhere']",
    ]
    done = slurm_cli("preflight", *overrides, "++cluster.options.exclude=node2\\,node4")
    said = " ".join(done.stdout.replace("│", " ").split())
    assert done.returncode == 1, said + done.stderr
    assert "NO job sample sbatch: error: invalid partition specified: nowhere" in said, said
    assert "ok job train could start 20" in said and "ok job evaluate" in said
    assert "NO setup lines failed: cat /nowhere" in said
    assert "ok accounting kept" in said and "ok group rights" in said and "ok limits of the site" in said
