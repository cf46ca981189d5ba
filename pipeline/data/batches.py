"""What each optimiser step sees: a function of (seed, step), cut for this rank, read ahead by threads.

Visit number v = step * global_batch + i, for image i of the global batch, decides everything: which sample, mirrored or
not, its jitter, and elsewhere its noise. Of a step's visits, rank r of R has the r-th of R equal runs. Nothing depends
on R, on the micro-batch or on the number of threads; the position of a run is its step alone.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.schema_augment import AugmentConfig
from pipeline.data.augment import augment, flipped
from pipeline.data.order import samples_of
from pipeline.data.reader import Reader
from pipeline.runtime.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Integers = npt.NDArray[np.int64]

_UNCHANGED = AugmentConfig()


@dataclass(frozen=True)
class Batch:
    """Some visits of one step.

    images: float32 [B, C, H, W], pixels in [-1, 1] or latents as stored; labels: int64 [B], -1 for none; attributes:
    int8 [B, A] or None; visits: int64 [B], the image numbers; indices: int64 [B], the samples' places in the data.
    """

    images: Tensor
    labels: Tensor
    attributes: Tensor | None
    visits: Tensor
    indices: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "Batch":
        """The same on a device, with images of `dtype`. Copies from pinned memory do not wait."""
        return Batch(
            images=self.images.to(device, dtype, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            attributes=None if self.attributes is None else self.attributes.to(device, non_blocking=True),
            visits=self.visits.to(device, non_blocking=True),
            indices=self.indices.to(device, non_blocking=True),
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
    workers: int = 0,
) -> Iterator[list[Batch]]:
    """This rank's micro-batches of every step from `start_step` on, without end.

    `workers` threads read ahead; closing the iterator stops them. Raises `UserError` where the global batch does not
    divide over the ranks, a rank's part not into micro-batches, or mirrored latents are asked for and were not encoded.
    """
    share = _share(global_batch, world_size, micro_batch=micro_batch)
    _check_data(reader, flip=flip, augmentation=augmentation)

    def load(first: int) -> Batch:
        visits = np.arange(first, first + micro_batch, dtype=np.int64)
        numbers = torch.from_numpy(visits)
        mirrored = flipped(numbers, seed=seed).numpy() if flip else np.zeros(micro_batch, dtype=np.bool_)
        images = _images(reader, samples := samples_of(visits, seed=seed, size=reader.count), mirrored)
        if augmentation.active:
            images = augment(images, numbers, seed=seed, cfg=augmentation)
        return _batch(reader, images, visits=numbers, samples=samples)

    starts = (step * global_batch + rank * share for step in itertools.count(start_step))
    micro_starts = (start + part for start in starts for part in range(0, share, micro_batch))
    return _grouped(_ahead(load, micro_starts, workers=workers), share // micro_batch)


def validation_batches(
    reader: Reader, *, count: int, rank: int = 0, world_size: int = 1, batch: int = 64
) -> Iterator[Batch]:
    """This rank's part of one fixed pass over `count` samples, spread evenly over the data and in its order.

    `visits` are the places 0 ... count - 1 in the pass. Ranks have equal parts but for one sample, so sums are to be
    added up after the last batch. Nothing is mirrored or changed.
    """
    first, end = (part * count // world_size for part in (rank, rank + 1))
    for start in range(first, end, batch):
        places = np.arange(start, min(start + batch, end), dtype=np.int64)
        samples = places * reader.count // count
        images = _images(reader, samples, np.zeros(len(places), dtype=np.bool_))
        yield _batch(reader, images, visits=torch.from_numpy(places), samples=samples)


def _images(reader: Reader, samples: Integers, mirrored: npt.NDArray[np.bool_]) -> Tensor:
    """Samples as float32 [B, C, H, W]; those that are `mirrored` [B] left to right."""
    values = reader.read(samples)
    if reader.manifest.kind == "images":
        # In numpy: torch would start threads of its own in every reading thread.
        planes = np.empty((len(values), *reader.manifest.shape), dtype=np.float32)
        for plane, image, mirror in zip(planes, values, mirrored.tolist(), strict=True):
            plane[...] = (image[:, ::-1] if mirror else image).transpose(2, 0, 1)
        planes -= np.float32(127.5)
        planes /= np.float32(127.5)
        return torch.from_numpy(planes)
    if reader.has_mirrored:
        plain, other = np.split(values, 2, axis=1)
        values = np.where(mirrored[:, None, None, None], other, plain)
    return torch.from_numpy(values)


def _batch(reader: Reader, images: Tensor, *, visits: Tensor, samples: Integers) -> Batch:
    attributes = reader.attributes(samples)
    return Batch(
        images=images.pin_memory() if torch.cuda.is_available() else images,
        labels=torch.from_numpy(reader.labels(samples)),
        attributes=None if attributes is None else torch.from_numpy(attributes),
        visits=visits,
        indices=torch.from_numpy(samples),
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
