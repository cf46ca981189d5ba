"""What follows from a config and the size of the data: durations in steps, the share of each rank."""

from dataclasses import dataclass

from pipeline.config.durations import to_images, to_steps
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Durations in optimiser steps (None: never), and how a global batch is divided."""

    total_steps: int
    warmup_steps: int
    log_every: int
    checkpoint_every: int
    keep_every: int | None
    validate_every: int | None
    metric_every: int | None
    preview_every: int | None
    patience: int | None
    half_life_images: int | None
    micro_batch: int  # images on one rank at once
    accumulate: int  # micro-batches of a rank in one step

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after step `step`, also one that is to be kept and lies between others."""
        return due(step, self.checkpoint_every) or due(step, self.keep_every)

    def pauses_after(self, step: int) -> bool:
        """Whether something looks at the weights after step `step`: validation, a metric, a preview, a checkpoint."""
        return self.saves_after(step) or any(
            due(step, every) for every in (self.validate_every, self.metric_every, self.preview_every)
        )


def plan_for(cfg: Config, *, train_images: int, world_size: int) -> Plan:
    """Derive the plan. The recipe never changes with `world_size`, only who does which part of it.

    Raises:
        UserError: where the global batch does not divide, or exceeds the training split.
    """
    train, batch = cfg.train, cfg.train.global_batch
    if batch % world_size:
        near = [n for n in range(1, batch + 1) if batch % n == 0]
        raise UserError(
            f"train.global_batch: found {batch}, which does not divide over {world_size} ranks. Use a number of ranks "
            f"among {near}, or a multiple of {world_size} as the batch (that changes the recipe)."
        )
    if batch > train_images:
        raise UserError(
            f"train.global_batch: found {batch}, but the training split has {train_images} images. "
            "Use a smaller batch or more images."
        )

    def steps(text: str | None) -> int | None:
        return None if text is None else to_steps(text, batch=batch, train_images=train_images)

    def every(text: str | None) -> int | None:
        return None if text is None else max(steps(text) or 0, 1)  # a share of an epoch may be less than an image

    local = batch // world_size
    # The largest divisor of this rank's part that fits: a recipe may ask for less than the hardware divides evenly.
    micro = max(d for d in range(1, local + 1) if local % d == 0 and d <= (train.micro_batch or local))
    for problem in cfg.model.micro_batch_problems(micro):
        raise UserError(problem)
    half_life = train.ema.half_life
    return Plan(
        total_steps=max(steps(train.duration) or 0, 1),
        warmup_steps=steps(train.optim.warmup) or 0,
        log_every=steps(train.log_every) or 1,
        checkpoint_every=steps(train.checkpoint_every) or 1,
        keep_every=every(train.keep_every),
        validate_every=every(train.validate_every),
        metric_every=every(train.metric_every),
        preview_every=every(train.preview_every),
        patience=steps(train.early_stop.patience if train.early_stop else None),
        half_life_images=(None if half_life is None else to_images(half_life, batch=batch, train_images=train_images)),
        micro_batch=micro,
        accumulate=local // micro,
    )


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every `every` steps happens after step `step`."""
    return every is not None and step % every == 0
