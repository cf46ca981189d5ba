"""What each optimiser step sees: a function of (seed, step), cut for this rank, read ahead by threads.

The sample index step * global_batch + i, of image i of the global batch, decides everything: which image, mirrored or
not, its jitter, and elsewhere its noise. Of a step's indices, rank r of R has the r-th of R equal runs. Nothing depends
on R, on the micro-batch or on the number of threads; the position of a run is its step alone.

Threads read bytes and draw the few numbers that belong to a whole image. Batches travel to the device as bytes, a
quarter of float32, and are normalised, mirrored and jittered there.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.schema import AugmentConfig
from pipeline.data.augment import augment, augment_draws, flipped
from pipeline.data.order import images_of
from pipeline.data.reader import Reader
from pipeline.runtime.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Integers = npt.NDArray[np.int64]
Draws = Callable[[Tensor], dict[str, Tensor]]
"""Image numbers [B] on the CPU -> random numbers of each image by name, [B, ...]: see `Objective.draws`."""

MOST_WORKERS = 8  # reading threads of one rank where `train.workers` does not say
_UNCHANGED = AugmentConfig()


@dataclass(frozen=True)
class Batch:
    """Some images of one step, on the device that trains.

    images: float [B, C, H, W], pixels in [-1, 1] or latents as stored; labels: int64 [B], -1 for none; attributes:
    int8 [B, A] or None; sample_indices: int64 [B]; newest: the largest of them, known to the host; draws: random
    numbers of whole images that were drawn while loading, by name, [B, ...].
    """

    images: Tensor
    labels: Tensor
    attributes: Tensor | None
    sample_indices: Tensor
    newest: int = 0
    draws: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedBatch:
    """The same as it was read, on the host: pinned memory where there is a GPU.

    images: uint8 [B, H, W, C], or float32 latents [B, C, H, W]; mirrored: bool [B], images to be mirrored left to right
    on the device, or None; jitter: the draws of `augmentation`, [B, 8], or None; indices: int64 [B], the samples'
    places in the data.
    """

    images: Tensor
    labels: Tensor
    attributes: Tensor | None
    sample_indices: Tensor
    indices: Tensor
    mirrored: Tensor | None = None
    jitter: Tensor | None = None
    augmentation: AugmentConfig = _UNCHANGED
    draws: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """The batch as networks see it, with images of `dtype`. Copies from pinned memory do not wait."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        images = moved(self.images)
        if images.dtype == torch.uint8:
            images = ((images.permute(0, 3, 1, 2).to(torch.float32) - 127.5) / 127.5).contiguous()
            if self.mirrored is not None:
                images = torch.where(moved(self.mirrored)[:, None, None, None], images.flip(3), images)
            if self.jitter is not None:
                images = augment(images, moved(self.jitter), cfg=self.augmentation)
        return Batch(
            images=images.to(dtype),
            labels=moved(self.labels),
            attributes=None if self.attributes is None else moved(self.attributes),
            sample_indices=moved(self.sample_indices),
            newest=int(self.sample_indices[-1]),
            draws={name: moved(values) for name, values in self.draws.items()},
        )

    def pinned(self) -> "LoadedBatch":
        """The same in pinned memory, which torch keeps and uses again: copies from it to a GPU do not wait."""

        def pinned(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.pin_memory()

        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            sample_indices=self.sample_indices.pin_memory(),
            attributes=pinned(self.attributes),
            mirrored=pinned(self.mirrored),
            jitter=pinned(self.jitter),
            draws={name: values.pin_memory() for name, values in self.draws.items()},
        )


def batches(
    reader: Reader,
    *,
    seed: int,
    start_step: int,
    global_batch: int,
    rank: int,
    world_size: int,
    micro_batch: int,
    flip: bool = False,
    augmentation: AugmentConfig = _UNCHANGED,
    draws: Draws = lambda _: {},
    workers: int = 0,
) -> Iterator[list[LoadedBatch]]:
    """This rank's micro-batches of every step from `start_step` on, without end.

    `workers` threads read ahead; closing the iterator stops them. Raises `UserError` where the global batch does not
    divide over the ranks, a rank's part not into micro-batches, or mirrored latents are asked for and were not encoded.
    """
    share = _share(global_batch, world_size, micro_batch=micro_batch)
    _check_data(reader, flip=flip, augmentation=augmentation)

    def load(first: int) -> LoadedBatch:
        sample_indices = torch.arange(first, first + micro_batch)
        samples = images_of(sample_indices.numpy(), seed=seed, size=reader.count)
        loaded = _loaded(
            reader,
            samples,
            sample_indices=sample_indices,
            mirrored=flipped(sample_indices, seed=seed) if flip else None,
        )
        jitter = augment_draws(sample_indices, seed=seed) if augmentation.active else None
        loaded = replace(loaded, jitter=jitter, augmentation=augmentation, draws=draws(sample_indices))
        return loaded.pinned() if torch.cuda.is_available() else loaded

    starts = (step * global_batch + rank * share for step in itertools.count(start_step))
    micro_starts = (start + part for start in starts for part in range(0, share, micro_batch))
    return _grouped(_ahead(load, micro_starts, workers=workers), share // micro_batch)


def validation_batches(
    reader: Reader, *, count: int, rank: int = 0, world_size: int = 1, batch: int = 64
) -> Iterator[LoadedBatch]:
    """This rank's part of one fixed pass over `count` samples, spread evenly over the data and in its order.

    The sample indices are the places 0 ... count - 1. Ranks have equal parts but for one sample, so sums are to be
    added up after the last batch. Nothing is mirrored or changed.
    """
    first, end = (part * count // world_size for part in (rank, rank + 1))
    for start in range(first, end, batch):
        places = torch.arange(start, min(start + batch, end))
        yield _loaded(reader, places.numpy() * reader.count // count, sample_indices=places)


def reading_threads(asked: int | None, *, cpus: int, cuda: bool) -> int:
    """Threads that read ahead where `train.workers` is `asked`; None: one on a CPU, which is busy itself, and beside a
    GPU one for each of the rank's `cpus` but the one that trains."""
    if asked is not None:
        return asked
    return max(1, min(cpus - 1, MOST_WORKERS)) if cuda else 1


def _loaded(
    reader: Reader, samples: Integers, *, sample_indices: Tensor, mirrored: Tensor | None = None
) -> LoadedBatch:
    """Samples as they are stored. Of latents that were encoded twice, the half that `mirrored` [B] chooses."""
    values = reader.read(samples)
    if reader.has_mirrored:
        plain, other = np.split(values, 2, axis=1)
        values = plain if mirrored is None else np.where(mirrored.numpy()[:, None, None, None], other, plain)
    attributes = reader.attributes(samples)
    return LoadedBatch(
        images=torch.from_numpy(np.ascontiguousarray(values)),
        labels=torch.from_numpy(reader.labels(samples)),
        attributes=None if attributes is None else torch.from_numpy(attributes),
        sample_indices=sample_indices,
        indices=torch.from_numpy(samples),
        mirrored=mirrored if reader.manifest.kind == "images" else None,
    )


def _share(global_batch: int, world_size: int, *, micro_batch: int) -> int:
    """Images of one rank in one step."""
    if global_batch % world_size:
        below = global_batch // world_size * world_size
        batches = [number for number in (below, below + world_size) if number]
        ranks = [number for number in range(1, global_batch + 1) if global_batch % number == 0]
        raise UserError(
            f"train.global_batch: found {global_batch} on {world_size} ranks, expected a multiple of the ranks. "
            f"Use a batch of {' or '.join(map(str, batches))}, or one of {ranks} ranks."
        )
    share = global_batch // world_size
    if share % micro_batch:
        divisors = [number for number in range(1, share + 1) if share % number == 0]
        raise UserError(
            f"train.micro_batch: found {micro_batch}, expected a divisor of the {share} images that each of "
            f"{world_size} ranks has of train.global_batch={global_batch}: one of {divisors}."
        )
    return share


def _check_data(reader: Reader, *, flip: bool, augmentation: AugmentConfig) -> None:
    if not reader.count:
        raise UserError(f"{reader.path} has no samples: there is nothing to train on. Look at its rejected.jsonl.")
    if reader.manifest.kind == "images":
        return
    if flip and not reader.has_mirrored:
        raise UserError(
            f"train.flip: found true, but {reader.path} holds latents of unmirrored images alone. Encode both, or set "
            "train.flip=false."
        )
    if augmentation.active:
        raise UserError(
            f"train.augmentation: found {augmentation}, but {reader.path} holds latents, whose images are gone. Leave "
            "its settings at their defaults, or train on images."
        )


def _ahead(function: Callable[[Job], Result], jobs: Iterator[Job], *, workers: int) -> Generator[Result, None, None]:
    """`map(function, jobs)`, in order, with `workers` threads that are at most two jobs each ahead."""
    if not workers:
        yield from map(function, jobs)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    try:
        waiting = deque(pool.submit(function, job) for job in itertools.islice(jobs, 2 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, job) for job in itertools.islice(jobs, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _grouped(items: Generator[Result, None, None], size: int) -> Iterator[list[Result]]:
    with contextlib.closing(items):
        while group := list(itertools.islice(items, size)):
            yield group
