"""How long training stands still for a checkpoint, and how long a start takes to the first step."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checks
from on_gpu import adapter
from on_gpu.report import Clock, Report, guarded, release
from on_gpu.steps import model_settings

from pipeline.models.build import count_parameters
from pipeline.runtime.run_dir import create_run

ROOT = Path(__file__).resolve().parents[2]


def run(report: Report, clock: Clock, context: checks.CheckContext) -> None:
    """Print stalls and start-up."""
    root, device = context.root, context.device
    cuda = device == "cuda"
    networks = {"25 M": model_settings("unet_base"), "100 M": {**model_settings("unet_base"), "width": 128}}
    if not cuda:
        networks = {"tiny": model_settings("unet_tiny")}
    with guarded(report, "start-up"):
        found = startup(root, device=device, limit=max(clock.left(), 20.0))
        report.put("startup", found)
        report.say("seconds from the command to: " + ", ".join(f"{k} {v:.1f}" for k, v in found.items()))
    rows: list[dict[str, Any]] = []
    try:
        for name, model in networks.items():
            for background in (False, True):
                if rows and clock.left() < 5:
                    continue
                with guarded(report, f"checkpoint of {name}"):
                    row = stall(root, name, model, background=background, device=device, size=64 if cuda else 16)
                    rows.append(row)
                    report.add("saves", row)
                release()
    finally:
        report.say("training stands still for a checkpoint (weights, EMA, two moments)")
        report.table(
            ("network", "M", "MiB", "save", "stall s", "worst s"),
            [[r["network"], r["parameters"], r["mib"], r["save"], r["stall"], r["worst"]] for r in rows],
        )


def stall(root: Path, name: str, model: dict[str, Any], *, background: bool, device: str, size: int) -> dict[str, Any]:
    """Seconds of three saves, a step between them; the first takes new memory and is left out."""
    settings = {"precision": "bf16", "async_save": background}
    kind = "async" if background else "sync"
    cfg = adapter.config(root, name=f"save-{name[:3].strip()}-{kind}", model=model, size=size, batch=8, **settings)
    adapter.prepare(cfg, count=64)
    times = []
    with adapter.open_session(cfg, device) as s:
        data = adapter.feed(s)
        for _ in range(3):
            adapter.step(s, data)
            times.append(adapter.save_stall(s))
        parameters = count_parameters(adapter.network(s))
        data.close()  # type: ignore[attr-defined]
    newest = cfg.runs_dir / cfg.name / "checkpoints"
    mib = max(sum(f.stat().st_size for f in p.iterdir()) for p in newest.glob("step-*")) / 2**20
    return {
        "network": name,
        "parameters": parameters / 1e6,
        "mib": mib,
        "save": kind,
        "stall": statistics.median(times[1:]),
        "worst": max(times),
    }


def startup(root: Path, *, device: str, limit: float) -> dict[str, float]:
    """Wall time of `python -m pipeline train` to its first step and to its end, which saves twice."""
    cuda = device == "cuda"
    model = model_settings("unet_base" if cuda else "unet_tiny")
    size, batch = (64, 64) if cuda else (16, 4)
    cfg = adapter.config(
        root, name="startup", model=model, size=size, batch=batch, precision="bf16", duration="2 steps"
    )
    adapter.prepare(cfg, count=64)
    run = create_run(cfg)
    env = {**os.environ, **({} if cuda else {"CUDA_VISIBLE_DEVICES": ""})}
    argv = [sys.executable, "-m", "pipeline", "train", str(run.path)]
    start = time.time()
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"training ended with code {done.returncode}: {done.stderr[-500:]}")
    end = time.time()
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    first = next(row["time"] for row in rows if "loss" in row)
    begun = json.loads(run.starts.read_text().splitlines()[0])["time"]
    return {"networks built": begun - start, "first step done": first - start, "end": end - start}
