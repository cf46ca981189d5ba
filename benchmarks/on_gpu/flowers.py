"""A real training by the commands that a user types: prepare, train, sample, evaluate, in the time that is left."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checks
import numpy as np
from on_gpu.report import Clock, Report
from PIL import Image

from pipeline.runtime.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
NETWORK, SIZE, BATCH = "unet_base", 64, 256  # the row of part b whose speed decides how long the training is
STARTUP_SECONDS = {"graph": 20.0, "compiled": 80.0}  # before the first step, and for the end
CALLS = 35  # of 18 steps of heun; part c measures 50
LEAST_SAMPLES, MOST_SAMPLES = 2048, 8192


@dataclass
class Job:
    """The commands of one training, with their settings and their time."""

    report: Report
    clock: Clock
    device: str
    root: Path
    overrides: list[str]
    settings: list[str]

    def run(self, *argv: str, limit: float, may_stop: bool = False) -> float:
        """Run `python -m ...`; seconds. Beyond `limit` it is asked to stop: an error, or the end where it may."""
        env = {**os.environ, **({} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})}
        log, start = self.root / f"{argv[0]}-{argv[1]}.log", time.monotonic()
        with log.open("a") as output:
            process = subprocess.Popen([sys.executable, "-m", *argv], cwd=ROOT, env=env, stdout=output, stderr=output)
            stopped = False
            try:
                process.wait(max(limit, 1.0))
            except subprocess.TimeoutExpired:
                stopped = True
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        self.report.log(f"--- {' '.join(argv)}\n{log.read_text()[-4000:]}")
        if stopped and not may_stop:
            raise TimeoutError(f"{' '.join(argv[:2])} took longer than {limit:.0f} s")
        if process.returncode and not stopped:
            last = log.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"{' '.join(argv[:2])} ended with code {process.returncode}: {' '.join(last)}")
        return time.monotonic() - start


def run(report: Report, clock: Clock, context: checks.CheckContext, settings: list[str], *, rate: float | None) -> None:
    """Train, and keep the curve, the pictures and the scores in the folder of results. `settings` come last.

    `rate`: images a second that the length of the training is planned with; None: as measured before, or tried.
    """
    if context.images is None and context.device == "cuda":
        report.say("no images: give --images")
        return
    images = context.images.resolve() if context.images else generated(context.root / "few.tar")
    overrides = base_overrides(images, context.root, context.weights, device=context.device)
    job = Job(report, clock, context.device, context.root, overrides, settings)
    found: dict[str, Any] = {
        "prepare_seconds": job.run("data_prep", "all", *job.overrides, *settings, limit=clock.left() / 2)
    }
    report.put("flowers", found)
    mode, rate = ("graph", rate) if rate else speed(job)
    overrides = [*job.overrides, *training_overrides(job, mode, rate), *settings]
    found |= {"overrides": overrides, "expected_rate": rate, "mode": mode}
    limit = clock.left() * 0.72 if context.device == "cuda" else clock.left()
    found["train_seconds"] = job.run("pipeline", "train", *overrides, limit=limit, may_stop=True)
    run_dir = RunDir(context.root / "runs" / "flowers64")
    curve = keep_curve(report.out / "flowers_loss.json", run_dir)
    found |= {"steps": run_dir.latest_step(), "finished": run_dir.finished(), **curve}
    report.put("flowers", found)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in curve.items())
    report.say(f"trained {mode}, {found['steps']} steps in {found['train_seconds']:.0f} s: {shown}")
    found |= sample(job, run_dir)
    found |= evaluate(job, run_dir)
    report.put("flowers", found)


def base_overrides(images: Path, root: Path, weights: Path | None, *, device: str) -> list[str]:
    """What data, network, and evaluation are."""
    cuda = device == "cuda"
    overrides = ["data=folder", f"model={NETWORK if cuda else 'unet_tiny'}", "name=flowers64"]
    overrides += [f"data_dir={root / 'data'}", f"runs_dir={root / 'runs'}", "data.name=flowers64", "data.encoding=raw"]
    overrides += [f"data.source.path={images}", f"data.image_size={SIZE if cuda else 16}", "data.split.valid=0.05"]
    labels = label_overrides(images)
    overrides += labels or ["model.condition=none"]
    path = checks.inception_weights(weights)
    if path is not None and cuda:
        output = 768 if path.suffix == ".npz" else 2048
        overrides += [f"evaluate.inception.weights={path.resolve()}", f"evaluate.inception.features=['{output}']"]
        return [*overrides, "evaluate.domain.enabled=false"]
    few = [] if cuda else ["evaluate.domain.width=8", "evaluate.domain.features=8", "evaluate.kid_subset_size=4"]
    return [*overrides, f"evaluate.domain.max_images={15_000 if cuda else 32}", *few]


def label_overrides(images: Path) -> list[str]:
    """Settings for labels.csv inside a tar or folder, whatever its column of labels is called; [] without one."""
    if images.is_dir():
        text = (images / "labels.csv").read_text() if (images / "labels.csv").is_file() else ""
    else:
        with tarfile.open(images) as tar:
            member = next((m for m in tar.getmembers() if Path(m.name).name == "labels.csv"), None)
            file = tar.extractfile(member) if member else None
            text = file.read().decode("utf-8-sig") if file else ""
    columns = next(csv.reader(io.StringIO(text)), [])
    label = next((c for c in columns if c.lower().startswith(("label", "class"))), None)
    return ["data.source.table=labels.csv", f"data.source.label_column={label}"] if label else []


def speed(job: Job) -> tuple[str, float]:
    """How to train, and images a second: of the row that promises most in the time there is, or of a short trial."""
    if job.device == "cpu":
        return "graph", 8.0
    rows = [
        r for r in job.report.data.get("steps", []) if (r["network"], r["batch"]) == (NETWORK, BATCH) and "ours" in r
    ]
    time_there = job.clock.left() * 0.7
    asked = {"train.compile=true": "compiled", "train.compile=false": "graph"}
    modes = {asked[override] for override in job.settings if override in asked} or {"graph", "compiled"}
    if rows := [row for row in rows if row["mode"] in modes]:
        best = max(rows, key=lambda r: r["ours"] * (time_there - STARTUP_SECONDS[r["mode"]]))
        return best["mode"], best["ours"]
    trial = ["name=trial", "train.duration=60 steps", "train.log_every=20 steps", "train.precision=bf16"]
    trial += [f"train.global_batch={BATCH}", f"train.workers={min(os.cpu_count() or 1, 8)}", *job.settings]
    overrides = [override for override in job.overrides if not override.startswith("name=")]
    job.run("pipeline", "train", *overrides, *trial, limit=150)
    rows = [json.loads(line) for line in RunDir(job.root / "runs" / "trial").metrics.read_text().splitlines()]
    mode = "compiled" if modes == {"compiled"} else "graph"
    return mode, max(row["speed/images_per_second"] for row in rows if "loss" in row)


def training_overrides(job: Job, mode: str, rate: float) -> list[str]:
    """A recipe as long as the time allows: 70 % of what is left, less the start; a tenth in reserve."""
    if job.device == "cpu":
        overrides = ["train.duration=6 steps", "train.global_batch=8", "train.checkpoint_every=3 steps"]
        return [*overrides, "train.log_every=1 steps", "train.ema.half_life=16 images", "train.workers=1"]
    kimg = max(rate * (job.clock.left() * 0.7 - STARTUP_SECONDS[mode]) * 0.9 / 1000, 20.0)
    job.report.say(f"training for {kimg:.0f} kimg: {rate:.0f} images per second are expected ({mode})")
    return [
        f"train.duration={kimg:.0f} kimg",
        f"train.global_batch={BATCH}",
        "train.precision=bf16",
        f"train.compile={str(mode == 'compiled').lower()}",
        "train.flip=true",
        "train.optim.lr=5e-4",
        "train.optim.schedule=cosine",
        f"train.optim.warmup={kimg / 20:.0f} kimg",
        f"train.ema.half_life={max(kimg / 15, 1):.0f} kimg",
        "train.log_every=10 steps",
        f"train.validate_every={max(kimg / 8, 1):.0f} kimg",
        f"train.checkpoint_every={max(kimg / 3, 1):.0f} kimg",
        f"train.workers={min(os.cpu_count() or 1, 8)}",
    ]


def keep_curve(path: Path, run_dir: RunDir) -> dict[str, float]:
    """Losses, validation and speed as json; the few numbers that sum it up."""
    rows = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    keys = ("step", "images", "loss", "grad_norm", "lr", "valid/loss", "speed/images_per_second", "skipped")
    kept = [{k: row[k] for k in keys if k in row} for row in rows if "loss" in row or "valid/loss" in row]
    path.write_text(json.dumps(kept))
    losses = [row["loss"] for row in kept if "loss" in row]
    speeds = sorted(row["speed/images_per_second"] for row in kept if "loss" in row)
    tenth = max(len(losses) // 10, 1)
    found = {"first_loss": sum(losses[:tenth]) / tenth, "last_loss": sum(losses[-tenth:]) / tenth}
    valid = [row["valid/loss"] for row in kept if "valid/loss" in row]
    return found | {"images_per_second": speeds[len(speeds) // 2]} | ({"valid_loss": valid[-1]} if valid else {})


def sample(job: Job, run_dir: RunDir) -> dict[str, Any]:
    """As many samples as half of the time that is left allows, and their grid."""
    measured = [r["ours"] for r in job.report.data.get("sampling", []) if r["precision"] == "bf16" and not r["guided"]]
    rate = measured[0] * 50 / CALLS if measured else 0.0
    time_there = job.clock.left() * 0.5
    count = int(min(max(rate * (time_there - 15), LEAST_SAMPLES), MOST_SAMPLES)) // 256 * 256
    count, batch = (count, 256) if job.device == "cuda" else (8, 8)
    overrides = [
        str(run_dir.path),
        f"sample.count={count}",
        f"sample.batch={batch}",
        f"sample.images_per_shard={batch}",
    ]
    overrides += ["sample.sampler.kind=heun", f"sample.sampler.steps={18 if job.device == 'cuda' else 2}"]
    limit = job.clock.left() * 0.6
    spent = job.run("pipeline", "sample", *overrides, limit=limit, may_stop=True)
    if not any(run_dir.path.glob("samples/*/*/manifest.json")):
        job.run("pipeline", "sample", *overrides, "--partial", limit=60)
    grid = next(run_dir.path.glob("samples/*/*/grid.png"), None)
    if grid is None:
        raise TimeoutError(f"no shard of {batch} samples was done in {spent:.0f} s")
    for name in ("grid", "strip"):
        if (picture := grid.with_name(f"{name}.png")).is_file():
            small_jpeg(picture, job.report.out / f"flowers_{name}.jpg")
    job.report.say(f"sampled in {spent:.0f} s with start-up: {count} images asked")
    return {"samples_asked": count, "sample_seconds": spent}


def small_jpeg(source: Path, target: Path, *, most: int = 2_000_000) -> None:
    """A picture as JPEG of at most `most` bytes."""
    with Image.open(source) as image:
        picture = image.convert("RGB")
    for quality in (92, 85, 75, 60, 40):
        picture.save(target, quality=quality)
        if target.stat().st_size <= most:
            return
    picture.thumbnail((1600, 1600))
    picture.save(target, quality=75)


def evaluate(job: Job, run_dir: RunDir) -> dict[str, Any]:
    """The metrics, and the whole result file beside the others."""
    spent = job.run("pipeline", "evaluate", str(run_dir.path), limit=job.clock.left() - 2)
    result = json.loads(next(run_dir.results.glob("*.json")).read_text())
    (job.report.out / "flowers_result.json").write_text(json.dumps(result))
    metrics = {name: value for name, value in result["metrics"].items() if isinstance(value, int | float)}
    job.report.say(f"evaluated {result['samples']['count']} samples in {spent:.0f} s with start-up")
    first = sorted(metrics, key=lambda name: (not name.startswith(("fid", "fd")), name))
    job.report.table(("metric", "value"), [[name, float(metrics[name])] for name in first[:14]])
    return {"evaluate_seconds": spent, "samples": result["samples"]["count"], "metrics": metrics}


def generated(path: Path) -> Path:
    """A tar of a few images with labels.csv, to try the way where there are none."""
    rng, rows = np.random.default_rng(0), ["file,label,split"]
    with tarfile.open(path, "w") as tar:

        def put(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for number in range(48):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
            put(f"{number:03d}.png", buffer.getvalue())
            rows.append(f"{number:03d}.png,{number % 3},train")
        put("labels.csv", "\n".join(rows).encode())
    return path
