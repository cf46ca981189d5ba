"""In-loop evaluation: validation loss, a small fixed preview, and metrics of a few samples. Every rank does its part.

Validation draws its noise by the image's place, so that two checkpoints meet the same noise. The samples of in-loop
metrics have fixed seeds, cut into blocks: rank r does every n-th block, and one sum gathers them. A block is computed
in the same way on any rank, so the numbers do not depend on how many ranks there are.
"""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.config.registry import better
from pipeline.config.schema_metrics import ATTRIBUTE_ACCURACY, CLASS_ACCURACY, DOMAIN_DISTANCE
from pipeline.data.batches import validation_batches
from pipeline.data.pictures import tile, to_uint8
from pipeline.objectives.objective import Networks, Reconstructs
from pipeline.runtime import distributed
from pipeline.runtime.errors import UserError
from pipeline.runtime.numerics import own_precision
from pipeline.runtime.sharding import whole
from pipeline.train.setup import Session

PREVIEW_IMAGES = 64
RECONSTRUCTED_IMAGES = 32


@torch.no_grad()
def validate(s: Session) -> dict[str, float]:
    """Means over `train.validate_images` images spread over the validation split, as "valid/<name>"; {} without one.

    Draws are keyed by the image's place, so two checkpoints meet the same noise.
    """
    if s.valid_data is None:
        return {}
    sums: dict[str, Tensor] = {}
    count = min(s.cfg.train.validate_images, s.valid_data.count)
    divided = count >= s.world.size  # fewer images than ranks: every rank does them all
    part = {"rank": s.world.rank, "world_size": s.world.size} if divided else {}
    with ema_weights(s) as networks:
        for batch in validation_batches(s.valid_data, count=count, batch=s.plan.micro_batch, **part):
            for name, value in s.objective.validate(networks, batch.to(s.device, s.dtype)).items():
                sums[name] = sums[name] + value.double().sum() if name in sums else value.double().sum()
    if not sums:
        return {}
    mine = torch.stack(list(sums.values()))
    totals = distributed.total(mine) if divided else mine
    return {f"valid/{name}": value / count for name, value in zip(sums, totals.tolist(), strict=True)}


def note_best(s: Session, values: dict[str, float], *, kind: str = "valid") -> bool:
    """Note the best value of the early-stopping metric, and its step, in the progress. A metric knows its direction.

    Returns whether this step is the best so far: its checkpoint is kept.

    `kind`: what stands before the slash in the names of `values`; a metric of another kind is looked at elsewhere.
    """
    rule, done = s.cfg.train.early_stop, s.state.progress
    if rule is None or not rule.metric.startswith(f"{kind}/"):
        return False
    if rule.metric not in values:
        known = ", ".join(values) or "none: the data has no validation split"
        raise UserError(f"train.early_stop.metric: found '{rule.metric}', expected one of those measured: {known}.")
    if done.best is not None and not better(rule.metric, values[rule.metric], done.best):
        return False
    done.best, done.best_step = values[rule.metric], done.step
    return True


def preview(s: Session) -> tuple[str, npt.NDArray[np.uint8]]:
    """A small fixed picture [H, W, C] of what has been learned, and what to call it."""
    if isinstance(s.objective, Reconstructs):
        return "reconstructions", _reconstructions(s, s.objective)
    return "samples", _samples(s)


@torch.no_grad()
def _reconstructions(s: Session, objective: Reconstructs) -> npt.NDArray[np.uint8]:
    """A picture of images of the validation split, or of the training split where there is none, each beside what is
    made of it by the EMA weights; [H, W, C]."""
    reader = s.valid_data or s.train_data
    count = min(RECONSTRUCTED_IMAGES, reader.count)
    (batch,) = validation_batches(reader, count=count, batch=count)  # few images: every rank does them all
    with ema_weights(s) as networks:
        shown = torch.stack(objective.reconstructions(networks, batch.to(s.device, s.dtype)), dim=1)
    return tile(to_uint8(shown.flatten(0, 1)), columns=4 * shown.shape[1])


@torch.no_grad()
def _samples(s: Session) -> npt.NDArray[np.uint8]:
    """A picture of samples of fixed seeds from the EMA weights; classes in turn, attributes of training images."""
    seeds = torch.arange(PREVIEW_IMAGES)
    classes = len(s.train_data.manifest.classes)
    labels = seeds % classes if classes else torch.full_like(seeds, -1)
    mine = preview_part(s.world.rank, s.world.size)
    device = s.device
    sampler = s.cfg.sample.sampler.alone
    rows = s.train_data.attributes(seeds.numpy() % s.train_data.count)
    attributes = None if rows is None else torch.from_numpy(rows[mine]).to(device)
    with ema_weights(s) as networks:
        numbers, shown = seeds[mine].to(device), labels[mine].to(device)
        part = s.objective.generate(networks, numbers, shown, attributes=attributes, sampler=sampler)
    images = torch.zeros(PREVIEW_IMAGES, *part.shape[1:])
    if s.world.rank < PREVIEW_IMAGES:
        images[mine] = part.float().cpu()
    return tile(to_uint8(distributed.total(images)), columns=8)


def preview_part(rank: int, size: int) -> slice:
    """A rank's share of the preview's images: never none, as networks want a batch. Ranks beyond the number of images
    compute one that another rank counts."""
    return slice(rank % PREVIEW_IMAGES, None, size)


@contextlib.contextmanager
def ema_weights(s: Session) -> Iterator[dict[str, Callable[..., Tensor]]]:
    """The networks with their EMA weights, where there are any, without touching the training weights.

    A collective where they are sharded. Ranks may call the networks as often as they like, and unequally often.
    """
    networks: dict[str, Callable[..., Tensor]] = dict(s.objective.networks)
    for name, network in s.objective.networks.items():
        network.eval()
        weights = s.state.emas.get(f"ema.{name}")
        if name in s.hollow:  # sharded: every rank has the whole network for as long as this lasts
            sharded = network.state_dict() if weights is None else weights
            network, weights = s.hollow[name], {key: whole(tensor) for key, tensor in sharded.items()}
        networks[name] = _called_with(network, weights, s.dtype)
    try:
        yield networks
    finally:
        for name in s.objective.trained:
            s.objective.networks[name].train()


def _called_with(network: nn.Module, weights: dict[str, Tensor] | None, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The network with other weights, or its own. Samplers start from float32: a wider network takes that too."""

    def wide(value: object) -> object:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value

    def call(*args: object, **kwargs: object) -> Tensor:
        args = tuple(map(wide, args))
        result: Tensor = (
            network(*args, **kwargs) if weights is None else functional_call(network, weights, args, kwargs)
        )
        return result

    return call


BLOCK = 64  # seeds computed at once


class InLoopMetric:
    """FD and accuracies of a few samples. The reference is opened before the first step, so that a lack shows then."""

    def __init__(self, s: Session) -> None:
        """Raises `Incomplete`, with the command to run, where the reference was not prepared."""
        # These load scipy, which no other training needs.
        from pipeline.metrics.domain import LABELS
        from pipeline.metrics.frechet import Target
        from pipeline.metrics.moments import moments
        from pipeline.reference_set import open_domain

        self._moments = moments
        self._extractor, reference = open_domain(s.cfg, device=str(s.device))
        self._target = Target(reference.moments("features"))
        self._classes = s.cfg.model.condition == "class" and self._extractor.protocol["task"] == LABELS
        self._attributes = s.cfg.model.condition == "attributes" and "attributes" in self._extractor.outputs

    @torch.no_grad()
    def values(self, s: Session) -> dict[str, float]:
        """`in_loop/fd-domain` of `train.metric_images` samples of the EMA weights, and, where the model is
        conditioned on classes or attributes, `in_loop/accuracy-domain` or `-attributes`. A collective."""
        count = s.cfg.train.metric_images
        rows = torch.zeros(count, len(self._target.mean) + 2, dtype=torch.float64)
        with ema_weights(s) as networks:
            for first in range(s.world.rank * BLOCK, count, s.world.size * BLOCK):
                seeds = torch.arange(first, min(first + BLOCK, count))
                rows[first : first + len(seeds)] = self._block(s, networks, seeds)
        rows = distributed.total(rows)
        features, right, asked = rows[:, :-2].numpy(), rows[:, -2].sum(), rows[:, -1].sum()
        found = {f"in_loop/{DOMAIN_DISTANCE}": self._target.quick(self._moments(features))}
        if asked:
            found[f"in_loop/{CLASS_ACCURACY if self._classes else ATTRIBUTE_ACCURACY}"] = float(right / asked)
        return found

    def _block(self, s: Session, networks: Networks, seeds: Tensor) -> Tensor:
        """[B, D + 2]: features, right answers, questions asked."""
        labels, attributes = self._asked(s, seeds.numpy())
        device, sampler = s.device, s.cfg.sample.sampler.alone
        condition = None if attributes is None else attributes.to(device)
        images = s.objective.generate(
            networks, seeds.to(device), labels.to(device), attributes=condition, sampler=sampler
        )
        pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).to(device)
        with own_precision(pixels):
            found = {name: value.double().cpu() for name, value in self._extractor.run(pixels).items()}
        right, asked = torch.zeros(len(seeds)), torch.zeros(len(seeds))
        if self._classes:
            right, asked = (found["logits"].argmax(1) == labels) & (labels >= 0), labels >= 0
        elif self._attributes and attributes is not None:
            seen = (found["attributes"] > 0) == (attributes == 1)
            right, asked = (seen & (attributes >= 0)).sum(1), (attributes >= 0).sum(1)
        return torch.cat([found["features"], right.double()[:, None], asked.double()[:, None]], 1)

    def _asked(self, s: Session, seeds: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Classes in turn; attributes of training images."""
        classes = len(s.train_data.manifest.classes)
        numbers = torch.from_numpy(seeds)
        labels = numbers % classes if classes else torch.full_like(numbers, -1)
        rows = s.train_data.attributes(seeds % s.train_data.count)
        return labels, None if rows is None else torch.from_numpy(rows)
