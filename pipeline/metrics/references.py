"""Reference statistics on disk: moments and features of a split, by extractor, with what they were made from.

    reference/<extractor key>/train.safetensors   moments and features of each output
    reference/<extractor key>/train.json          written last: protocol, count, the images' hash

A reference is read only for the very images and the very protocol that the caller has in hand.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline.metrics.extraction import Work, all_moments, blocks_of
from pipeline.metrics.features import Extractor
from pipeline.metrics.moments import Moments
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, read_json, sha256_file, write_json

CLASS_OUTPUTS = ("logits", "attributes")  # not compared as Gaussians: answers, and not features


@dataclass(frozen=True)
class Reference:
    """One split's statistics in one extractor's features. Features are read when they are asked for."""

    path: Path
    record: dict[str, Any]

    @property
    def split(self) -> str:
        """train, valid, ..."""
        return str(self.record["split"])

    def moments(self, output: str) -> Moments:
        """Moments of all images of the split."""
        with safe_open(self.path, "numpy") as file:
            mean, scatter = file.get_tensor(f"{output}.mean"), file.get_tensor(f"{output}.scatter")
        return Moments(self.record["count"], mean, scatter)

    def features(self, output: str) -> npt.NDArray[np.float32]:
        """Features [M, D] of the images with the numbers `indices()`."""
        with safe_open(self.path, "numpy") as file:
            return np.asarray(file.get_tensor(f"{output}.features"))

    def indices(self) -> npt.NDArray[np.int64]:
        """Numbers of the images whose features were kept: all, or a random subset that a seed fixes."""
        with safe_open(self.path, "numpy") as file:
            return np.asarray(file.get_tensor("indices"))


def reference_path(directory: Path, extractor: Extractor, split: str) -> Path:
    """Where the statistics of a split stand."""
    return directory / extractor.key / f"{split}.safetensors"


def save_reference(
    path: Path, work: Work, extractor: Extractor, *, split: str, images: str, keep: int, seed: int
) -> None:
    """Gather the finished blocks of `work` into a reference. `images`: sha256 of the shards; `keep`: most features."""
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(work.count)[:keep]).astype(np.int64)
    arrays: dict[str, npt.NDArray[Any]] = {"indices": kept}
    for output in extractor.outputs:
        if output not in CLASS_OUTPUTS:
            total = all_moments(work, output)
            arrays[f"{output}.mean"], arrays[f"{output}.scatter"] = total.mean, total.scatter
        arrays[f"{output}.features"] = _picked(work, output, kept)
    with atomic_path(path) as partial:
        save_file(arrays, partial)
    record = {
        "split": split,
        "count": work.count,
        "features": len(kept),
        "images": images,
        "extractor": extractor.name,
        "protocol": dict(extractor.protocol),
        "sha256": sha256_file(path),
    }
    write_json(path.with_suffix(".json"), record)


def _picked(work: Work, output: str, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Rows of the numbers `kept` (ascending), block after block: never all features at once."""
    parts, start = [], 0
    for block in blocks_of(work, output):
        inside = kept[(kept >= start) & (kept < start + len(block))] - start
        parts.append(block[inside])
        start += len(block)
    return np.concatenate(parts)


def open_reference(path: Path, extractor: Extractor, *, images: str) -> Reference:
    """The reference at `path`, if it is of these images and this protocol.

    Raises:
        Incomplete: it was not made yet.
        UserError: it is of other images or another protocol: comparing with it would be a number of nothing.
    """
    if not path.with_suffix(".json").exists() or not path.exists():
        raise Incomplete(f"{path} is not finished. Run `mudi prepare reference` with the same overrides first.")
    record = read_json(path.with_suffix(".json"))
    for name, found, expected in (
        ("images", record["images"], images),
        ("protocol", record["protocol"], dict(extractor.protocol)),
    ):
        if found != expected:
            raise UserError(
                f"{path} is a reference of other {name}: found {found}, expected {expected}. "
                f"Delete {path.parent} and run `mudi prepare reference` for this data set."
            )
    return Reference(path, record)
