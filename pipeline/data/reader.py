"""Samples by number, in any order, from a shard directory.

Records are fetched with `pread` rather than a memory map: the call works without Python's lock, so threads that read
ahead do not hold up training on a slow file system, and a file that was cut is an error with a name instead of SIGBUS.
"""

import errno
import math
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.shards import BLOCK, Manifest, ShardDirectory
from pipeline.runtime.errors import Incomplete, UserError

Integers = npt.NDArray[np.int64]


class Reader:
    """Random access to the samples of a finished shard directory. Any number of threads may read at once."""

    def __init__(self, shards: ShardDirectory, *, keep_bytes: float = 0) -> None:
        """`keep_bytes`: decoded images stay in memory, after they were first read, where all of them fit into that."""
        self._shards = shards
        self._layout = shards.manifest.layout
        self._kept: npt.NDArray[np.uint8] | None = None  # decoded images, of which `_known` [count] were read
        if self._layout.encoding not in ("raw", "latent") and self.count * math.prod(self._layout.shape) <= keep_bytes:
            self._kept = np.empty((self.count, *self._layout.array_shape), dtype=np.uint8)
            self._known = np.zeros(self.count, dtype=bool)
        self._files: dict[int, int] = {}  # shard number -> file descriptor
        self._opening = threading.Lock()
        self._closer = weakref.finalize(self, _close, self._files)

    @property
    def path(self) -> Path:
        """The directory."""
        return self._shards.path

    @property
    def manifest(self) -> Manifest:
        """What the directory says of itself."""
        return self._shards.manifest

    @property
    def count(self) -> int:
        """Samples in the directory."""
        return self.manifest.count

    @property
    def has_mirrored(self) -> bool:
        """Whether each latent is stored twice along its channels: of the image, then of the mirrored image."""
        return bool(self.manifest.made_from.get("mirrored", False))

    def read(self, indices: Integers) -> npt.NDArray[Any]:
        """The samples at `indices` [B], in the order asked for.

        Images: uint8 [B, H, W, C]. Latents, as they are stored (channels of means, then of deviations): float32
        [B, C, H, W]. Raises `Incomplete` naming shard and key of a sample that is cut, does not decode or has another
        shape. Bare arrays carry no checksum of their own: `verify_shards` finds a turned bit in them.
        """
        rows = self._shards.index[indices]
        if self._layout.encoding == "latent":
            stored = np.dtype("<u2") if self._layout.dtype == "bfloat16" else np.dtype(self._layout.dtype)
            return _float32(self._gather(rows, stored), self._layout.dtype)
        if self._layout.encoding == "raw":
            return self._gather(rows, np.dtype(np.uint8))
        if self._kept is None:
            return self._images(rows)
        missing = indices[~self._known[indices]]
        if missing.size:  # two threads may decode one image at once: the same bytes
            self._kept[missing] = self._images(self._shards.index[missing])
            self._known[missing] = True
        return self._kept[indices]

    def labels(self, indices: Integers) -> Integers:
        """Class positions [B], -1 where there is none."""
        return self._shards.index["label"][indices].astype(np.int64)

    def attributes(self, indices: Integers) -> npt.NDArray[np.int8] | None:
        """int8 [B, A] of 0, 1 and -1 (unknown); None where samples have no attributes."""
        return None if self._shards.attributes is None else np.asarray(self._shards.attributes[indices])

    def close(self) -> None:
        """Close the files. Needless where the reader goes out of scope."""
        self._closer()

    def _images(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        images = np.empty((len(rows), *self._layout.array_shape), dtype=np.uint8)
        for image, row in zip(images, rows, strict=True):
            image[...] = self._decoded(row)
        return images

    def _gather(self, rows: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Bare arrays of one size, read straight to where they belong."""
        arrays = np.empty((len(rows), *self._layout.array_shape), dtype=dtype)
        size = arrays[:1].nbytes
        wrong = np.flatnonzero(rows["size"] != size)
        if wrong.size:
            raise self._damaged(rows[wrong[0]], f"its record has {rows['size'][wrong[0]]} bytes, expected {size}")
        target = arrays.reshape(-1).view(np.uint8).data
        files = {shard: self._file(shard) for shard in set(rows["shard"].tolist())}
        where = zip(rows["shard"].tolist(), rows["offset"].tolist(), strict=True)
        for number, (shard, offset) in enumerate(where):
            got = os.preadv(files[shard], [target[number * size : (number + 1) * size]], offset)
            if got != size:
                raise self._damaged(rows[number], f"its shard ends {size - got} bytes early")
        return arrays

    def _decoded(self, row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        data = os.pread(self._file(int(row["shard"])), int(row["size"]), int(row["offset"]))
        if len(data) != row["size"]:
            raise self._damaged(row, f"its shard ends {int(row['size']) - len(data)} bytes early")
        try:
            return self._layout.decode(data)
        except Exception as error:  # damaged bytes make decoders raise all sorts: the name is what matters
            raise self._damaged(row, str(error) or type(error).__name__) from error

    def _file(self, number: int) -> int:
        """The shard's file descriptor, opened when it is first asked for."""
        handle = self._files.get(number)
        if handle is not None:
            return handle
        with self._opening:
            if number not in self._files:
                self._files[number] = self._open(number)
            return self._files[number]

    def _open(self, number: int) -> int:
        try:
            return os.open(self._shards.shard_path(number), os.O_RDONLY)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise UserError(
                f"{self._shards.path}: this process may open no more than {len(self._files)} files, the directory has "
                f"{len(self.manifest.shards)} shards. Raise the limit (ulimit -n) or data.images_per_shard."
            ) from error

    def _damaged(self, row: npt.NDArray[Any], reason: str) -> Incomplete:
        path = self._shards.shard_path(int(row["shard"]))
        # Data starts at a tar block, or after the npy header that does; the member's own header is the block before.
        header = os.pread(self._file(int(row["shard"])), BLOCK, int(row["offset"]) // BLOCK * BLOCK - BLOCK)
        key = header[:100].rstrip(b"\0").decode(errors="replace") or "unknown"
        return Incomplete(
            f"{path}, sample '{key}': {reason}. Delete {self._shards.path}/manifest.json and shard again."
        )


def _float32(arrays: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """bfloat16, which numpy does not have, is stored as the upper half of a float32."""
    if dtype == "bfloat16":
        return (arrays.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return arrays.astype(np.float32, copy=False)


def _close(files: dict[int, int]) -> None:
    while files:
        os.close(files.popitem()[1])
