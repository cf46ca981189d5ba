"""Trackers beside TensorBoard, by Accelerate's interface. None is imported unless `train.trackers` names it."""

import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator

from pipeline.config.schema import Config
from pipeline.runtime.files import content_hash, read_lines
from pipeline.runtime.run_dir import RunDir

PROJECT = "mudi"


class Trackers:
    """The trackers of a run, on rank 0. One that fails is named and left out from then on: training goes on."""

    def __init__(self, cfg: Config, run: RunDir, accelerator: Accelerator) -> None:
        """Open them. A run that is started again goes on in the same wandb run; other trackers begin a new one."""
        if "SLURM_JOB_ID" in os.environ:  # compute nodes seldom reach the internet; `wandb sync` sends it later
            os.environ.setdefault("WANDB_MODE", "offline")
        settings = cfg.model_dump(mode="json")
        wandb = {"name": run.path.name, "id": run_id(run), "resume": "allow", "dir": str(run.path)}
        accelerator.init_trackers(PROJECT, config=_flat(settings), init_kwargs={"wandb": wandb})
        self._open = list(accelerator.trackers)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step."""
        self._each("log", values, step=step)

    def picture(self, step: int, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """An image [H, W, C], for the trackers that take images."""
        self._each("log_images", {name: pixels[None]}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._each("finish")
        self._open = []

    def _each(self, method: str, *values: Any, **options: Any) -> None:
        for tracker in list(self._open):
            if not hasattr(tracker, method):
                continue
            try:
                getattr(tracker, method)(*values, **options)
            except Exception as error:  # of a service, a network, a library: none of them is worth the training
                self._open.remove(tracker)
                print(f"train.trackers: {tracker.name} failed and is left out from now on: {error}", file=sys.stderr)


def run_id(run: RunDir) -> str:
    """The name of a run and the moment it first began: the same at every start, another for another run."""
    starts = read_lines(run.starts)
    return f"{run.path.name}-{content_hash(starts[0]['time'] if starts else str(run.path))[:8]}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names; what is no number, text or truth value as text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
