"""CIFAR-10, from its python or its binary version (Krizhevsky 2009)."""

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.archives import choose, members, read_bytes, unpacked
from data_prep.items import Item, Listing
from pipeline.config.schema_sources import CifarSource
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import atomic_path

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_PLANES = 3 * 32 * 32
_ROW = 1 + _PLANES  # the binary version's: a label, then red, green and blue planes
_SAFE = {"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer", "scalar"}


def listing(source: CifarSource, directory: Path, folder: Path) -> Listing:
    """50,000 train and 10,000 test images. Both versions become rows of the binary form beside the listing."""
    read = _reader(batches(source, folder), directory)
    counts: dict[str, int] = {}
    with atomic_path(directory / "cifar10.bin") as partial, partial.open("wb") as file:
        for batch in BATCHES:
            rows = _rows(read(batch), batch)
            counts[batch] = len(rows) // _ROW
            file.write(rows)
    for packed in directory.glob("*.tar"):
        packed.unlink()  # its rows are written out in full
    return Listing(_items(directory / "cifar10.bin", counts), CLASSES, made_from={"batches": counts})


def batches(source: CifarSource, folder: Path) -> Path:
    """The archive or folder of batches, or the first of them."""
    del source
    names = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-batches-py")
    return choose(folder, (*names, "data_batch_1", "data_batch_1.bin"), what="CIFAR-10 archive or folder of batches")


def _items(path: Path, counts: dict[str, int]) -> Iterator[Item]:
    labels = np.fromfile(path, dtype=np.uint8).reshape(-1, _ROW)[:, 0].tolist()
    row = 0
    for batch, count in counts.items():
        split = "test" if batch == "test_batch" else "train"
        for number in range(count):
            at = ("array", path.name, row * _ROW + 1, [32, 32, 3], "chw")
            yield Item(f"{batch}/{number:05d}", at, label=labels[row], split=split)
            row += 1


def _reader(found: Path, directory: Path) -> Callable[[str], bytes]:
    """A function from a batch's name to its bytes."""
    if found.is_file() and found.suffix == ".gz":
        plain = unpacked(found, directory)
        inside = {Path(member.name).stem: member for member in members(plain, root=directory, rejected=[])}
        missing = [batch for batch in BATCHES if batch not in inside]
        if missing:
            raise Incomplete(f"{found} has no {missing[0]}. Is it CIFAR-10's archive? Delete it and fetch it again.")
        return lambda batch: read_bytes(inside[batch].at, directory)
    folder = found if found.is_dir() else found.parent
    return lambda batch: choose(folder, (batch, f"{batch}.bin"), what=batch).read_bytes()


def _rows(content: bytes, batch: str) -> bytes:
    """Rows of the binary form, from a batch of either version."""
    if len(content) % _ROW == 0 and content[:1] <= b"\x09" and not content.startswith(b"\x80"):
        return content
    values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    planes, labels = np.asarray(values[b"data"], dtype=np.uint8), np.asarray(values[b"labels"], dtype=np.uint8)
    if planes.ndim != 2 or planes.shape[1] != _PLANES or len(planes) != len(labels):
        raise Incomplete(f"{batch} has data {planes.shape} and {len(labels)} labels, expected [N, {_PLANES}] and N.")
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()


class _Unpickler(pickle.Unpickler):
    """Arrays of numpy and nothing else: a pickle that was tampered with could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _SAFE or module.split(".")[0] not in ("numpy", "_codecs"):
            raise Incomplete(
                f"the CIFAR-10 batch asks for {module}.{name}, which no official batch does. Get it again."
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
