"""Features of many images, in pieces that survive a kill and that several processes share without talking.

Images are cut into blocks by number. Each block's features are one file, written at once; a block that has its file is
not computed again. Any process may compute any block, so it does not matter how many there are or which was killed.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.metrics.features import Extractor
from pipeline.metrics.moments import Moments, merged, moments
from pipeline.runtime.distributed import own_device
from pipeline.runtime.files import atomic_path
from pipeline.runtime.parts import WHOLE
from pipeline.runtime.progress import progress

Read = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """`count` images in blocks of `block`, `batch` through the network at once; the files stand in `directory`."""

    directory: Path
    count: int
    block: int
    batch: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.count // self.block)

    def images(self, number: int) -> npt.NDArray[np.int64]:
        """Numbers of the images of one block."""
        return np.arange(number * self.block, min((number + 1) * self.block, self.count), dtype=np.int64)

    def path(self, number: int) -> Path:
        """The file of one block."""
        return self.directory / f"{number:06d}.safetensors"

    def missing(self) -> list[int]:
        """Blocks that have no file yet."""
        return [number for number in range(self.blocks) if not self.path(number).exists()]


def blocks_to_do(work: Work, *, part: tuple[int, int], label: str) -> Iterator[tuple[Path, npt.NDArray[np.int64]]]:
    """File and image numbers of each missing block k, k + n, k + 2n, ... of part (k, n). `label`: of the progress."""
    mine = range(part[0], work.blocks, part[1])
    missing = [number for number in mine if not work.path(number).exists()]
    total, to_do = (sum(len(work.images(number)) for number in numbers) for numbers in (mine, missing))
    if not missing:
        if total:
            print(f"{label}: all {total} are there", file=sys.stderr, flush=True)
        return
    with progress(label, total, done=total - to_do) as tick:
        for number in missing:
            if not work.path(number).exists():  # another process may have made it meanwhile
                yield work.path(number), work.images(number)
            tick(len(work.images(number)))


def extract(
    work: Work,
    read: Read,
    extractor: Extractor,
    *,
    of: str,
    part: tuple[int, int] = WHOLE,
    device: str | None = None,
) -> None:
    """Compute the missing blocks k, k + n, k + 2n, ... of part (k, n). `read(indices)` gives uint8 [B, H, W, C].

    Args:
        of: what the images are called while this runs.
        device: the process's own by default.
    """
    device = device or default_device()
    for path, indices in blocks_to_do(work, part=part, label=f"{extractor.name} features of {of}"):
        save_features(path, features_of(indices, read, extractor, batch=work.batch, device=device))


@torch.inference_mode()
def features_of(
    indices: npt.NDArray[np.int64], read: Read, extractor: Extractor, *, batch: int, device: str
) -> dict[str, torch.Tensor]:
    """Features [N, D] float32 on the CPU for each output of the extractor, of the images with these numbers."""
    parts: list[dict[str, torch.Tensor]] = []
    # A GPU's default of ten-bit mantissas in convolutions would change features in the third place.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for start in range(0, len(indices), batch):
            pixels = torch.from_numpy(np.array(read(indices[start : start + batch]))).to(device)
            found = extractor.run(pixels.permute(0, 3, 1, 2))
            parts.append({output: found[output].float().cpu() for output in extractor.outputs})
    return {output: torch.cat([p[output] for p in parts]).contiguous() for output in extractor.outputs}


def save_features(path: Path, features: dict[str, torch.Tensor]) -> None:
    """One block's file."""
    with atomic_path(path) as partial:
        save_file(features, partial)


def blocks_of(work: Work, output: str) -> Iterator[Floats]:
    """Features [B, D] block after block, in the order of the images."""
    for number in range(work.blocks):
        with safe_open(work.path(number), "numpy") as file:
            yield file.get_tensor(output)


def all_features(work: Work, output: str) -> Floats:
    """Features [N, D] of all images."""
    return np.concatenate(list(blocks_of(work, output)))


def first_features(work: Work, output: str, count: int) -> Floats:
    """Features [N, D] of the first images, at most so many; no more blocks are read than hold them."""
    parts = itertools.islice(blocks_of(work, output), -(-count // work.block))
    return np.concatenate(list(parts))[:count]


def all_moments(work: Work, output: str) -> Moments:
    """Moments of all images; memory does not grow with their number."""
    return merged(moments(block) for block in blocks_of(work, output))


def grouped_moments(work: Work, output: str, groups: int) -> list[Moments]:
    """Moments of `groups` consecutive parts of equal length, some empty where there are fewer images."""
    edges = [group * work.count // groups for group in range(groups + 1)]
    parts: list[list[Moments]] = [[] for _ in range(groups)]
    start = 0
    for block in blocks_of(work, output):
        for part, (first, last) in zip(parts, itertools.pairwise(edges), strict=True):
            rows = block[max(first - start, 0) : max(last - start, 0)]
            if len(rows) or not part:
                part[:] = [merged([*part, moments(rows)])]
        start += len(block)
    return [part[0] for part in parts]


def default_device() -> str:
    """The GPU of this process among the tasks of its job where there is one, else the CPU."""
    return str(own_device())
