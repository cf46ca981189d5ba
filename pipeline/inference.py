"""What every job that makes images needs: a trained objective, and what each seed is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.config.check import attributes_problems, classes_problems
from pipeline.config.schema import Config
from pipeline.data.shards import Manifest, ShardDirectory
from pipeline.objectives.build import build_objective
from pipeline.objectives.denoising import Denoising
from pipeline.objectives.latent_codec import remember
from pipeline.objectives.objective import Networks, Objective
from pipeline.runtime import distributed
from pipeline.runtime.cuda_graphs import GraphedNetwork
from pipeline.runtime.errors import UserError
from pipeline.runtime.numerics import set_numerics
from pipeline.runtime.random import Stream, uniform
from pipeline.runtime.run_dir import RunDir, open_run, step_of

Make = Callable[[Tensor, "Asked"], Tensor]


@dataclass(frozen=True)
class Asked:
    """What images are to show: labels int64 [B], -1 for none; attributes int8 [B, A], -1 for unknown, or None."""

    labels: Tensor
    attributes: Tensor | None = None

    def to(self, device: torch.device) -> "Asked":
        """The same on a device."""
        return Asked(self.labels.to(device), None if self.attributes is None else self.attributes.to(device))


def asked_for(cfg: Config, seeds: Tensor, train: ShardDirectory) -> Asked:
    """What each seed is asked for: a function of the seed."""
    return Asked(labels_for(cfg, seeds, train.manifest), attributes_for(cfg, seeds, train))


def labels_for(cfg: Config, seeds: Tensor, train: Manifest) -> Tensor:
    """The class asked for with each seed, [B] int64, -1 for none."""
    plan, classes = cfg.sample.classes, len(train.classes)
    if cfg.model.condition != "class" or not classes:
        return torch.full_like(seeds, -1)
    if plan == "uniform":
        return seeds % classes
    if plan == "training":
        shares = torch.tensor(train.class_counts, dtype=torch.float64).cumsum(0)
        drawn = uniform(cfg.seed, Stream.CLASSES, seeds, dtype=torch.float64) * shares[-1]
        return torch.searchsorted(shares, drawn, right=True).clamp(max=classes - 1)
    for problem in classes_problems(plan, train.classes):
        raise UserError(problem)
    numbers = [c if isinstance(c, int) else train.classes.index(c) for c in plan]
    return torch.tensor(numbers)[seeds % len(numbers)]


def places_taken_for_names(plan: Any, classes: Sequence[str]) -> str:
    """A sentence on the numbers of `sample.classes` that are also the name of another class; "" where there is none."""
    asked = [] if isinstance(plan, str) else [c for c in plan if isinstance(c, int)]
    hints = [f"{c} is the class called '{classes[c]}'" for c in asked if str(c) in classes and classes[c] != str(c)]
    if not hints:
        return ""
    return f'sample.classes: numbers are places, from 0 on: {", ".join(hints)}. Names are in quotes: ["{asked[0]}"].'


def attributes_for(cfg: Config, seeds: Tensor, train: ShardDirectory) -> Tensor | None:
    """The attributes asked for with each seed, [B, A] int8; None where it is not conditioned on any."""
    plan, names = cfg.sample.attributes, train.manifest.attributes
    if cfg.model.condition != "attributes" or train.attributes is None:
        return None
    if plan == "training":
        drawn = uniform(cfg.seed, Stream.CLASSES, seeds, dtype=torch.float64, draw=1) * len(train.attributes)
        return torch.from_numpy(np.asarray(train.attributes[drawn.long().numpy()]))
    for problem in attributes_problems(plan, names):
        raise UserError(problem)
    row = torch.tensor([plan.get(name, -1) for name in names], dtype=torch.int8)
    return row.expand(len(seeds), -1)


def loaded_objective(cfg: Config, run: RunDir, train: Manifest, *, step: int | None, device: torch.device) -> Objective:
    """The objective of a run with the weights that `cfg.sample.weights` names, for inference."""
    objective = build_objective(cfg, train)
    remember(run, train, write=False)
    for name in objective.ema_networks:
        tensors, found = checkpoint.load_weights(run, which=cfg.sample.weights, network=name, step=step)
        checkpoint.load_strictly(objective.networks[name], tensors, what=f"{cfg.sample.weights} of step {found}")
    for network in objective.networks.values():
        network.to(device).eval().requires_grad_(False)
    return objective


def guide_model(cfg: Config, train: Manifest, device: torch.device) -> Denoising | None:
    """The worse model that autoguidance leads away from: a run directory, or one of its checkpoints."""
    guidance = cfg.sample.sampler.guidance
    if guidance.kind != "autoguidance" or not guidance.active or guidance.guide_model is None:
        return None
    place = Path(guidance.guide_model)
    step = step_of(place.name)
    run, its = open_run(place if step is None else place.parent.parent)
    found = loaded_objective(its, run, train, step=step, device=device)
    if not isinstance(found, Denoising):
        raise UserError(f"sample.sampler.guidance.guide_model: {place} must be a diffusion model.")
    return found


def image_maker(cfg: Config, run: RunDir, train: Manifest, *, step: int) -> Make:
    """A function from seeds [B] and what they are asked for to images, with the wanted weights loaded."""
    set_numerics(tf32=cfg.train.precision == "tf32")
    device = distributed.own_device(gpus=cfg.cluster.sample.gpus, setting="cluster.sample.gpus")
    objective = loaded_objective(cfg, run, train, step=step, device=device)
    guide = guide_model(cfg, train, device)
    networks, of_guide = quick_networks(objective, device), {} if guide is None else quick_networks(guide, device)

    @torch.inference_mode()
    def make(seeds: Tensor, asked: Asked) -> Tensor:
        condition, seeds = asked.to(device), seeds.to(device)
        with autocast(cfg, device):
            led = None if guide is None else guide.denoise(of_guide, condition.labels, condition.attributes)
            return objective.generate(
                networks,
                seeds,
                condition.labels,
                attributes=condition.attributes,
                sampler=cfg.sample.sampler,
                guide=led,
            )

    return make


def quick_networks(objective: Objective, device: torch.device) -> Networks:
    """The networks to call: on a GPU, a sampler's many calls of a denoiser are replays of a CUDA graph."""
    if device.type != "cuda" or not isinstance(objective, Denoising):
        return objective.networks
    return {name: GraphedNetwork(network) for name, network in objective.networks.items()}


def autocast(cfg: Config, device: torch.device) -> torch.autocast:
    """The precision that the run was trained in; float32 where it was float32 or wider."""
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cfg.train.precision)
    return torch.autocast(device.type, dtype=narrow or torch.bfloat16, enabled=narrow is not None)
