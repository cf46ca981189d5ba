"""The shard format: tar files that any webdataset reader opens, and an index that gives random access.

A shard directory holds `000000.tar, 000001.tar, ...`, `index.npy`, `attributes.npy` where samples have attributes, and
`manifest.json`, which is written last: a directory without it is unfinished. Equal samples give equal bytes, whoever
writes them and when: tar metadata is fixed and sums are kept as integers. Torch-free.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.images import EXTENSIONS, decode
from pipeline.data.tar_bytes import BLOCK as BLOCK
from pipeline.data.tar_bytes import END, array_header, member
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import atomic_path, read_json, sha256_file, write_json, write_text

FORMAT = 1
BATCH = 16  # images that one step is done to before the next step: its code and tables stay in the cache
_BUFFER = 1 << 20  # bytes of a shard that are written at a time
_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
INDEX = np.dtype([("shard", "<u4"), ("size", "<u4"), ("offset", "<u8"), ("label", "<i4")])


@dataclass(frozen=True)
class Sample:
    """One row of a shard.

    `data`: what the index points at: an image file's bytes, or the bare bytes of an array (raw pixels, latents).
    `key`: unique, at most 80 characters, without dots. `label`: class position, None for none. `attributes`: 0, 1 or
    -1 (unknown) each. `meta`: more for the sample's json. `pixels`: the decoded image [H, W, C], if the caller has it.
    """

    key: str
    data: bytes
    extension: str
    label: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    attributes: tuple[int, ...] = ()
    pixels: npt.NDArray[Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Layout:
    """What every sample of a directory has in common. `shape` is [C, H, W]; `dtype` is that of a decoded value."""

    encoding: str  # raw, png, jpeg, latent
    shape: tuple[int, int, int]
    dtype: str = "uint8"

    @property
    def kind(self) -> str:
        """images or latents."""
        return "latents" if self.encoding == "latent" else "images"

    @property
    def extension(self) -> str:
        """Of the member that holds the image."""
        return EXTENSIONS.get(self.encoding, "npy")

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Of one decoded value: images are [H, W, C], latents [C, H, W]."""
        channels, height, width = self.shape
        return self.shape if self.encoding == "latent" else (height, width, channels)

    @property
    def stored(self) -> np.dtype[Any]:
        """How a bare array lies on the disk: bfloat16, which numpy has not, as its upper 16 bits of a float32."""
        return np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype)

    def decode(self, data: bytes | memoryview) -> npt.NDArray[Any]:
        """One value from the bytes that the index points at: [H, W, C] uint8, or a latent [C, H, W]."""
        if self.encoding == "latent":
            values = np.frombuffer(data, dtype=self.stored).reshape(self.shape)
            return (values.astype("<u4") << 16).view("<f4") if self.dtype == "bfloat16" else values
        return decode(data, self.encoding, self.shape)


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: rows (size, offset, label) per sample, and sums per channel (exact integers for images)."""

    name: str
    sha256: str
    bytes: int
    rows: list[tuple[int, int, int]]
    attributes: list[tuple[int, ...]]
    sums: list[float]
    squares: list[float]
    notes: list[dict[str, str]] = field(default_factory=list)  # the writer's own, found again after a restart

    @property
    def count(self) -> int:
        """Samples in the shard."""
        return len(self.rows)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. `mean` and `std` are per channel, of pixels in [-1, 1], or of the latents' values."""

    kind: str
    count: int
    shards: list[dict[str, Any]]  # name, sha256, bytes, count
    sha256: str  # over the shards' hashes
    encoding: str
    shape: tuple[int, int, int]
    dtype: str
    classes: list[str]
    attributes: list[str]
    class_counts: list[int]
    mean: list[float]
    std: list[float]
    protocol: dict[str, str]  # name, hash
    split: str
    made_from: dict[str, Any]
    format: int = FORMAT

    @classmethod
    def of_no_image(
        cls, shape: tuple[int, int, int], *, classes: Sequence[str], attributes: Sequence[str], protocol: dict[str, str]
    ) -> "Manifest":
        """What networks are built from where there is no data: images of `shape`, names of classes and attributes."""
        return cls(
            kind="images",
            count=0,
            shards=[],
            sha256="",
            encoding="png",
            shape=shape,
            dtype="uint8",
            classes=list(classes),
            attributes=list(attributes),
            class_counts=[1] * len(classes),
            mean=[],
            std=[],
            protocol=protocol,
            split="train",
            made_from={},
        )

    @property
    def layout(self) -> Layout:
        """Encoding, shape and dtype together."""
        return Layout(self.encoding, self.shape, self.dtype)


@dataclass(frozen=True)
class ShardDirectory:
    """A finished shard directory. `index`: INDEX [N], memory-mapped; `attributes`: int8 [N, A] or None."""

    path: Path
    manifest: Manifest
    index: npt.NDArray[Any]
    attributes: npt.NDArray[np.int8] | None

    def shard_path(self, number: int) -> Path:
        """The tar of a row's `shard`."""
        return self.path / str(self.manifest.shards[number]["name"])


def shard_name(number: int) -> str:
    """000012.tar"""
    return f"{number:06d}.tar"


class _Sums:
    """Sum and sum of squares per channel of what is added; exact integers for images, which are summed in batches."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.sums: list[float] = [0] * layout.shape[0]
        self.squares: list[float] = [0] * layout.shape[0]
        self._waiting: list[npt.NDArray[Any]] = []

    def add(self, values: npt.NDArray[Any]) -> None:
        self._waiting.append(values)
        if self.layout.kind == "latents" or len(self._waiting) == BATCH:
            self.finish()

    def finish(self) -> None:
        """Take in what waits."""
        if not self._waiting:
            return
        values = np.stack(self._waiting)
        self._waiting.clear()
        if self.layout.kind == "latents":
            wide = values.astype(np.float64)
            first, second = wide.sum(axis=(2, 3))[0], (wide**2).sum(axis=(2, 3))[0]
        else:
            number, height, width, channels = values.shape
            # Whole numbers: sums are exact in float32 up to 2**24, which 258 squares of 255 do not reach.
            exact = np.float32 if height <= 258 else np.float64
            rows: npt.NDArray[Any] = values.reshape(number, height, -1).astype(exact)
            ones = np.ones(height, exact)
            columns = (ones @ rows).astype(np.float64), (ones @ (rows * rows)).astype(np.float64)
            first, second = (part.reshape(number * width, channels).sum(0) for part in columns)
        self.sums = [a + b for a, b in zip(self.sums, first.tolist(), strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, second.tolist(), strict=True)]


def write_shard(
    path: Path, samples: Iterable[Sample], layout: Layout, *, notes: list[dict[str, str]] | None = None
) -> ShardRecord:
    """Write one tar, atomically, and beside it its record, which lets an interrupted writer go on (`read_record`).

    Members per sample: `{key}.{png|jpg|npy}`, then `{key}.json` with label, attributes and `meta`. Samples are taken
    one at a time; `notes` may be filled meanwhile. A key that comes twice, has a dot or is too long, raises ValueError
    and nothing is written.
    """
    header = array_header(layout.stored, layout.array_shape) if layout.extension == "npy" else b""
    rows: list[tuple[int, int, int]] = []
    attributes: list[tuple[int, ...]] = []
    sums, keys, digest, position = _Sums(layout), set[str](), hashlib.sha256(), 0
    with atomic_path(path) as partial, partial.open("wb", buffering=_BUFFER) as file:
        for sample in samples:
            _check_key(sample.key, keys)
            label = -1 if sample.label is None else sample.label
            rows.append((len(sample.data), position + BLOCK + len(header), label))
            attributes.append(sample.attributes)
            content = header + sample.data if header else sample.data
            piece = member(f"{sample.key}.{sample.extension}", content)
            piece += member(f"{sample.key}.json", _sample_json(sample))
            digest.update(piece)
            position += file.write(piece)
            sums.add(sample.pixels if sample.pixels is not None else layout.decode(sample.data))
        digest.update(END)
        position += file.write(END)
    sums.finish()
    written = path.name, digest.hexdigest(), position
    record = ShardRecord(*written, rows, attributes, sums.sums, sums.squares, notes or [])
    write_record(path, record)
    return record


def write_record(path: Path, record: ShardRecord) -> None:
    """Write the record of the shard at `path`, for `read_record`."""
    write_text(_record_path(path), json.dumps(asdict(record)))


def _check_key(key: str, keys: set[str]) -> None:
    if "." in key or not key or len(key.encode()) > 80 or key in keys:
        raise ValueError(f"sample key '{key}': keys are unique, have no dots and 1 to 80 bytes")
    keys.add(key)


def _sample_json(sample: Sample) -> bytes:
    """Label, attributes and the rest of what is known, as one line with sorted keys."""
    value: dict[str, Any] = {**sample.meta, "label": sample.label}
    if sample.attributes:
        value["attributes"] = list(sample.attributes)
    return _json(value).encode()


def _record_path(path: Path) -> Path:
    return path.with_suffix(".record.json")


def read_record(path: Path) -> ShardRecord | None:
    """The record of a shard that an earlier, interrupted writer finished at `path`; None where it has to be written."""
    try:
        value = read_json(_record_path(path))
    except Incomplete:  # none, a damaged one, or one that a process which finished the directory has just removed
        return None
    rows = [(row[0], row[1], row[2]) for row in value.pop("rows")]
    attributes = [tuple(row) for row in value.pop("attributes")]
    record = ShardRecord(**value, rows=rows, attributes=attributes)
    return record if path.exists() and path.stat().st_size == record.bytes else None


def finish(
    directory: Path,
    records: Collection[ShardRecord],
    layout: Layout,
    *,
    classes: list[str],
    protocol: dict[str, str],
    split: str,
    attributes: Iterable[str] = (),
    made_from: Mapping[str, Any] | None = None,
) -> Manifest:
    """Make the directory whole: index, attributes and, last, the manifest. Records may come in any order.

    Several processes that finish at the same time write equal bytes. Shards without samples are left out.
    """
    kept = sorted((record for record in records if record.count), key=lambda record: record.name)
    index = _index(kept)
    names = list(attributes)
    with atomic_path(directory / "index.npy") as partial, partial.open("wb") as file:
        np.save(file, index)
    if names:
        with atomic_path(directory / "attributes.npy") as partial, partial.open("wb") as file:
            np.save(file, np.array([row for r in kept for row in r.attributes], dtype=np.int8).reshape(-1, len(names)))
    mean, std = _moments(kept, layout)
    manifest = Manifest(
        kind=layout.kind,
        count=len(index),
        shards=[{"name": r.name, "sha256": r.sha256, "bytes": r.bytes, "count": r.count} for r in kept],
        sha256=hashlib.sha256("\n".join(record.sha256 for record in kept).encode()).hexdigest(),
        encoding=layout.encoding,
        shape=layout.shape,
        dtype=layout.dtype,
        classes=classes,
        attributes=names,
        class_counts=np.bincount(index["label"][index["label"] >= 0], minlength=len(classes)).tolist(),
        mean=mean,
        std=std,
        protocol=protocol,
        split=split,
        made_from=dict(made_from or {}),
    )
    write_json(directory / "manifest.json", asdict(manifest))
    tidy(directory, (record.name for record in records))
    for empty in (record for record in records if not record.count):
        (directory / empty.name).unlink(missing_ok=True)
    return manifest


def tidy(directory: Path, shards: Iterable[str]) -> None:
    """Remove the records of these shards, which the manifest has made needless."""
    for name in shards:
        _record_path(directory / name).unlink(missing_ok=True)


def _index(records: list[ShardRecord]) -> npt.NDArray[Any]:
    """INDEX [N] in the order of the shards."""
    index = np.zeros(sum(record.count for record in records), dtype=INDEX)
    start = 0
    for number, record in enumerate(records):
        part = index[start : start + record.count]
        part["shard"] = number
        rows = np.array(record.rows, dtype=np.int64)
        part["size"], part["offset"], part["label"] = rows[:, 0], rows[:, 1], rows[:, 2]
        start += record.count
    return index


def _moments(records: list[ShardRecord], layout: Layout) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel; images after x / 127.5 - 1."""
    channels, height, width = layout.shape
    number = sum(record.count for record in records) * height * width
    if not number:
        return [0.0] * channels, [0.0] * channels
    scale, shift = (1 / 127.5, 1.0) if layout.kind == "images" else (1.0, 0.0)
    mean, std = [], []
    for channel in range(channels):
        first = sum(Fraction(record.sums[channel]) for record in records) / number  # exact: their order is nothing
        second = sum(Fraction(record.squares[channel]) for record in records) / number
        mean.append(float(first) * scale - shift)
        std.append(math.sqrt(max(second - first**2, 0)) * scale)
    return mean, std


def read_manifest(path: Path) -> Manifest:
    """The manifest of a finished shard directory; `Incomplete` where there is none or of another format."""
    if not (path / "manifest.json").exists():
        raise Incomplete(
            f"{path} is not a finished shard directory: manifest.json is missing. Run the stage that makes it."
        )
    value = read_json(path / "manifest.json")
    if value.get("format") != FORMAT:
        raise Incomplete(f"{path}/manifest.json has format {value.get('format')}, expected {FORMAT}. Make it anew.")
    return Manifest(**{**value, "shape": tuple(value["shape"])})


def open_shards(path: Path) -> ShardDirectory:
    """Open a finished shard directory. What is missing or of the wrong size raises `Incomplete`, naming it.

    Hashes are not read here: `verify_shards` does that.
    """
    manifest = read_manifest(path)
    for shard in manifest.shards:
        file = path / shard["name"]
        if not file.exists():
            raise Incomplete(f"{file} is missing. Delete {path}/manifest.json and shard again.")
        if file.stat().st_size != shard["bytes"]:
            raise Incomplete(f"{file} has {file.stat().st_size} bytes, the manifest says {shard['bytes']}.")
    for name in ("index.npy", *(("attributes.npy",) if manifest.attributes else ())):
        if not (path / name).exists():
            raise Incomplete(f"{path / name} is missing. Delete {path}/manifest.json and shard again.")
    index = np.load(path / "index.npy", mmap_mode="r")
    if index.dtype != INDEX or index.shape != (manifest.count,):
        raise Incomplete(f"{path}/index.npy has {index.shape} rows, the manifest says {manifest.count}.")
    attributes = np.load(path / "attributes.npy", mmap_mode="r") if manifest.attributes else None
    return ShardDirectory(path, manifest, index, attributes)


def verify_shards(path: Path) -> ShardDirectory:
    """`open_shards`, and every shard's sha256 is read and compared; `Incomplete` names the first that differs."""
    directory = open_shards(path)
    for shard in directory.manifest.shards:
        found = sha256_file(path / shard["name"])
        if found != shard["sha256"]:
            raise Incomplete(f"{path / shard['name']} has sha256 {found}, the manifest says {shard['sha256']}.")
    return directory


def records_of(path: Path) -> list[ShardRecord]:
    """The records of a finished directory's shards, as their writers had them: every sample is decoded again."""
    directory = open_shards(path)
    layout, records, first = directory.manifest.layout, [], 0
    for entry in directory.manifest.shards:
        mine = slice(first, first := first + entry["count"])  # the index is in the order of the shards
        sums = _Sums(layout)
        with (path / entry["name"]).open("rb") as file:
            rows: list[tuple[int, int, int]] = directory.index[mine][["size", "offset", "label"]].tolist()
            for size, offset, _ in rows:
                file.seek(offset)
                sums.add(layout.decode(file.read(size)))
        sums.finish()
        attributes = [()] * entry["count"] if directory.attributes is None else directory.attributes[mine].tolist()
        written, seen = (entry["name"], entry["sha256"], entry["bytes"]), (rows, [tuple(row) for row in attributes])
        records.append(ShardRecord(*written, *seen, sums.sums, sums.squares, []))
    return records
