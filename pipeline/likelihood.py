"""The likelihood job: a bound on the bits per dimension that a DDPM needs for held-out images.

A sum over all T timesteps, so T calls of the network an image (Ho et al. 2020, equation 5). Each image's noise is a
function of its place in the split: no number depends on batches or processes. The tasks of a job share the images in
blocks; killed and started again, the job goes on with the blocks that are missing.
"""

import math
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline import checkpoint
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.config.schema_objectives import objective_kind
from pipeline.data.batches import validation_batches
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.inference import autocast, loaded_objective
from pipeline.metrics.extraction import default_device
from pipeline.metrics.provenance import versions
from pipeline.objectives.denoising import Denoising
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import atomic_path, content_hash, read_json, write_json
from pipeline.runtime.parts import WHOLE, this_world
from pipeline.runtime.progress import progress
from pipeline.runtime.run_dir import COMMIT, RunDir, Step, existing_run, step_name, step_of

BLOCK = 64  # images of one restartable piece of work
Bits = npt.NDArray[np.float64]


def main(overrides: list[str], *, split: str = "valid", images: int | None = None, step: Step = None) -> None:
    """`mudi likelihood`."""
    run, cfg = existing_run(overrides)
    path = likelihood(cfg, run, split=split, images=images, step=step)
    if path is not None:
        found = read_json(path)
        print(f"{found['bits_per_dimension']:.4f} +- {found['standard_error']:.4f} bits per dimension\n{path}")


def likelihood(
    cfg: Config, run: RunDir, *, split: str = "valid", images: int | None = None, step: Step = None
) -> Path | None:
    """Do this process's blocks; whoever finds all of them writes the result. Its path, or None where others work on.

    Raises:
        UserError: for a model without discrete timesteps or of latents, or a split that is not there.
    """
    _check(cfg)
    found = step_of(checkpoint.step_to_read(run, cfg.sample.step if step is None else step).name) or 0
    shards = data_directory(cfg) / "shards"
    if not (shards / split).is_dir():
        known = ", ".join(sorted(p.name for p in shards.glob("*") if p.is_dir()))
        raise UserError(f"--split: found '{split}', expected one of those in {shards}: {known or 'there is none'}.")
    reader = Reader(open_shards(shards / split))
    count = min(images or reader.count, reader.count)
    decides = _decides(cfg, run, reader, count=count, step=found)
    key = content_hash(decides)
    path = run.results / "likelihood" / f"{step_name(found)}-{split}-{key[:6]}.json"
    work = path.with_name(f".work-{key[:16]}")
    if not path.is_file():
        blocks = _blocks(cfg, run, reader, count=count, step=found, work=work)
        if blocks is None:
            return path if path.is_file() else None
        write_json(path, {**_summary(blocks), "split": split, "step": found, **decides, "versions": versions()})
        shutil.rmtree(work, ignore_errors=True)
    return path


def _check(cfg: Config) -> None:
    levels = cfg.diffusion.levels
    if cfg.latents is not None:
        raise UserError("latents: this model codes latents, whose bits are not those of the images. None are counted.")
    if not objective_kind(cfg).diffusion:
        raise UserError(f"model.kind: found {cfg.model.kind}, expected a diffusion model, such as unet.")
    if levels.kind != "ddpm":
        raise UserError(
            f"diffusion.levels.kind: found {levels.kind}, expected ddpm: the bound is a sum over discrete timesteps. "
            "Train with diffusion.levels.kind=ddpm (and diffusion.learned_variance=true for a good one)."
        )


def _variance(cfg: Config) -> Literal["small", "large", "learned"]:
    return "learned" if cfg.diffusion.learned_variance else cfg.sample.sampler.variance


def _decides(cfg: Config, run: RunDir, reader: Reader, *, count: int, step: int) -> dict[str, Any]:
    """What decides every number."""
    return {
        "images": count,
        "data": reader.manifest.sha256,
        "checkpoint": read_json(run.checkpoint(step) / COMMIT)["files"],
        "weights": cfg.sample.weights,
        "variance": _variance(cfg),
        "clip": cfg.sample.sampler.clip,
        "seed": cfg.seed,
    }


@torch.inference_mode()
def _blocks(cfg: Config, run: RunDir, reader: Reader, *, count: int, step: int, work: Path) -> Bits | None:
    """Bits per dimension [images, T + 1] by timestep, the prior's last; None while other processes work on blocks."""
    number = -(-count // BLOCK)
    part = WHOLE.for_task(this_world())
    mine = [k for k in range(number) if part.has(k) and not (work / f"{k}.npy").is_file()]
    if mine:
        device = torch.device(default_device())
        objective = loaded_objective(cfg, run, reader.manifest, step=step, device=device)
        if not isinstance(objective, Denoising):
            raise TypeError(f"{cfg.model.kind} is no diffusion model")
        with progress("likelihood", number, done=number - len(mine)) as tick:
            for k in mine:
                rows = []
                for batch in validation_batches(reader, count=count, rank=k, world_size=number, batch=cfg.sample.batch):
                    with autocast(cfg, device):
                        bound = objective.bound(
                            objective.networks,
                            batch.to(device),
                            variance=_variance(cfg),
                            clip=cfg.sample.sampler.clip,
                        )
                    rows.append(torch.cat([bound.terms, bound.prior[:, None]], dim=1).double().cpu().numpy())
                with atomic_path(work / f"{k}.npy") as partial, partial.open("wb") as file:
                    np.save(file, np.concatenate(rows))
                tick(1)
    try:
        return np.concatenate([np.load(work / f"{k}.npy") for k in range(number)])
    except FileNotFoundError:  # not made yet, or removed by the process that has just written the result
        print(f"{work}: other processes make the rest", file=sys.stderr)
        return None


def _summary(bits: Bits) -> dict[str, Any]:
    """Means over the images, and where the bits go: the prior, the steps, the last one's grey levels."""
    totals, steps = bits.sum(axis=1), bits.mean(axis=0)
    error = totals.std(ddof=1) / math.sqrt(len(totals)) if len(totals) > 1 else 0.0
    return {
        "bits_per_dimension": float(totals.mean()),
        "standard_error": float(error),
        "prior": float(steps[-1]),
        "steps": float(steps[1:-1].sum()),
        "decoder": float(steps[0]),
        "by_timestep": steps[:-1].tolist(),
    }
