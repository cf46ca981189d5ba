"""A program with the pipeline's commands whose numbers are a known function of the settings: what sweeps search over.

    python -m toy train|sample|evaluate RUN_DIR [key=value ...]

Training counts steps and saves when it is asked to stop; its validation loss and the metric that evaluation finds are
functions of the learning rate and the batch, with one best place.
"""

import math
import os
import sys
import time
from pathlib import Path

from PIL import Image

from pipeline.config.load import config_from
from pipeline.config.paths import sample_set_name
from pipeline.config.schema import Config
from pipeline.runtime.errors import NonFiniteError
from pipeline.runtime.files import append_line, read_json, write_json
from pipeline.runtime.run_dir import COMMIT, FINISHED, RunDir
from pipeline.runtime.stopping import Stop

BEST_LR, BEST_BATCH = 1e-3, 64
STEPS = 10


def metric(cfg: Config) -> float:
    """Best where the learning rate and the batch are; a seed moves it a little. A guidance of 1 is best."""
    rate = math.log10(cfg.train.optim.lr / BEST_LR) ** 2
    batch = math.log2(cfg.train.global_batch / BEST_BATCH) ** 2
    guidance = (cfg.sample.sampler.guidance.scale - 1.0) ** 2
    return 1.0 + rate + 0.3 * batch + guidance + 0.01 * (cfg.seed % 7)


def train(cfg: Config, run: RunDir) -> int:
    """Steps of TOY_PACE seconds; the loss falls to the metric. At step TOY_HOLD it waits to be asked to stop."""
    if cfg.train.optim.lr >= 1.0:
        raise NonFiniteError("the loss was not finite 5 times in a row")
    state, batch = run.path / "state.json", cfg.train.global_batch
    step = read_json(state)["step"] if state.exists() else 0
    append_line(run.starts, {"time": time.time(), "step": step, "plan": {"total_steps": STEPS}})
    with Stop() as stop:
        while step < STEPS:
            time.sleep(float(os.environ.get("TOY_PACE", "0.05")))
            step += 1
            with (run.path / "steps.txt").open("a") as file:
                file.write(f"{step}\n")
            loss = metric(cfg) + 5.0 * 0.5**step
            append_line(run.metrics, {"step": step, "images": step * batch, "loss": loss})
            append_line(run.metrics, {"step": step, "valid/loss": loss})
            while os.environ.get("TOY_HOLD") == str(step) and not stop.asked:
                time.sleep(0.02)
            asked = stop.asked  # once: a signal between two looks would end it without its state
            if asked or step == STEPS:
                write_json(state, {"step": step})
            write_json(run.checkpoint(step) / COMMIT, {"step": step})
            if asked and step < STEPS:
                return stop.hand_over()
    write_json(run.checkpoints / FINISHED, {"step": STEPS})
    return 0


def sample(cfg: Config, run: RunDir, *, step: int) -> int:
    """A set that says how large it is."""
    folder = run.samples(step) / sample_set_name(cfg)
    shade = round(max(0.0, 255 - 40 * metric(cfg)))
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96, 48), (shade, 80, 255 - shade)).save(folder / "grid.png")
    write_json(folder / "manifest.json", {"count": cfg.sample.count, "sha256": "0"})
    return 0


def evaluate(cfg: Config, run: RunDir, *, step: int) -> int:
    """The metric; far from the end of training it is worse."""
    chosen = cfg.evaluate.samples or f"step-{step:09d}/{sample_set_name(cfg)}"
    at = int(chosen.split("/")[0].removeprefix("step-"))
    found = {"fd-domain": metric(cfg) + 5.0 * 0.5**at, "accuracy-domain": 1 / metric(cfg)}
    result = {"settings": cfg.evaluate.model_dump(mode="json"), "step": at, "metrics": found}
    result |= {"samples": {"sha256": "0", "count": cfg.sample.count, "set": chosen, "made_from": {}}}
    write_json(run.results / f"{at:09d}-{chosen.split('/')[1]}.json", result)
    return 0


def main(argv: list[str]) -> int:
    """Do what the first argument says."""
    kind, rest = argv[0], argv[1:]
    step = None
    if "--step" in rest:
        at = rest.index("--step")
        step, rest = int(rest[at + 1]), rest[:at] + rest[at + 2 :]
    cfg, run = config_from(rest), RunDir(Path(rest[0]))
    if kind == "train":
        return train(cfg, run)
    step = step if step is not None else run.latest_step() or 0
    return {"sample": sample, "evaluate": evaluate}[kind](cfg, run, step=step)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NonFiniteError as problem:
        print(f"not finite: {problem}", file=sys.stderr)
        sys.exit(76)
