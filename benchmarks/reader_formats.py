"""The same images in the formats that are compared, and how each library's users read them.

Every contender is a function of a directory that yields shuffled batches, uint8 [256, 64, 64, 3], for one epoch, in
one process without workers. A library that is not installed raises ModuleNotFoundError when its data is written.
"""

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.images import encode
from pipeline.data.order import images_of
from pipeline.data.reader import Reader
from pipeline.data.shards import Layout, Sample, finish, open_shards, shard_name, write_shard

BATCH = 256
SHARD = 1024
Pixels = npt.NDArray[np.uint8]


def write_ours(directory: Path, images: Pixels, encoding: str) -> None:
    """Shards of this project, which are also what webdataset reads."""
    directory.mkdir()
    layout = Layout(encoding, (3, *images.shape[1:3]))
    records = []
    for number, first in enumerate(range(0, len(images), SHARD)):
        part = enumerate(images[first : first + SHARD], start=first)
        samples = (Sample(f"{k:08d}", encode(image, encoding), layout.extension, k % 10) for k, image in part)
        records.append(write_shard(directory / shard_name(number), samples, layout))
    protocol = {"name": "benchmark", "hash": "0"}
    finish(directory, records, layout, classes=[str(k) for k in range(10)], protocol=protocol, split="train")


def read_ours(directory: Path, epoch: int) -> Iterator[Pixels]:
    """This project: a new order each epoch over the whole set."""
    reader = Reader(open_shards(directory))
    end = (epoch + 1) * reader.count
    for first in range(epoch * reader.count, end, BATCH):
        samples = images_of(np.arange(first, min(first + BATCH, end)), seed=0, size=reader.count)
        reader.labels(samples)
        yield reader.read(samples)


def read_webdataset(directory: Path, epoch: int) -> Iterator[Pixels]:
    """Its usual pipeline: shuffled shards, a buffer of 1,000 samples, decoding, labels from the json."""
    import webdataset

    urls = sorted(str(path) for path in directory.glob("*.tar"))
    data = webdataset.WebDataset(urls, shardshuffle=100, seed=epoch).shuffle(1000).decode("rgb8")
    yield from _stacked((image, label["label"]) for image, label in data.to_tuple("png;npy", "json"))


def write_litdata(directory: Path, images: Pixels, encoding: str) -> None:
    """LitData chunks of 64 MB."""
    import litdata

    values = [image if encoding == "raw" else encode(image, encoding) for image in images]
    rows = [{"image": value, "label": k % 10} for k, value in enumerate(values)]
    litdata.optimize(_itself, rows, output_dir=str(directory), chunk_bytes="64MB", num_workers=1, verbose=False)


def read_litdata(directory: Path, epoch: int) -> Iterator[Pixels]:
    """Its StreamingDataset, shuffled."""
    import litdata

    data = litdata.StreamingDataset(str(directory), shuffle=True, seed=epoch)
    yield from _stacked((_decoded(row["image"]), row["label"]) for row in data)


def write_mosaicml(directory: Path, images: Pixels, encoding: str) -> None:
    """MosaicML Streaming's MDS shards of their usual 64 MB."""
    import streaming

    height, width = images.shape[1:3]
    kind = f"ndarray:uint8:{height},{width},3" if encoding == "raw" else "png"
    with streaming.MDSWriter(out=str(directory), columns={"image": kind, "label": "int"}) as writer:
        for k, image in enumerate(images):
            writer.write({"image": image if encoding == "raw" else Image.fromarray(image), "label": k % 10})


def read_mosaicml(directory: Path, epoch: int) -> Iterator[Pixels]:
    """Its StreamingDataset, shuffled by its usual algorithm."""
    import streaming

    data = streaming.StreamingDataset(local=str(directory), shuffle=True, shuffle_seed=epoch, batch_size=BATCH)
    yield from _stacked((np.asarray(row["image"]), row["label"]) for row in data)


def _itself(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _decoded(value: Any) -> Pixels:
    return value if isinstance(value, np.ndarray) else np.asarray(Image.open(io.BytesIO(value)))


def _stacked(samples: Iterable[tuple[Pixels, Any]]) -> Iterator[Pixels]:
    """Batches of single samples, as a training loop needs them."""
    samples = iter(samples)
    while group := list(itertools.islice(samples, BATCH)):
        yield np.stack([image for image, _ in group])


def photographs(archive: Path | None, count: int) -> Pixels:
    """`count` images of 64 px: from a tar of them where it is there, else smooth noise that compresses alike."""
    import tarfile

    if archive is None or not archive.exists():
        coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        fine = np.random.default_rng(1).integers(0, 12, (count, 64, 64, 3), dtype=np.uint8)
        smooth = [np.asarray(Image.fromarray(c).resize((64, 64), Image.Resampling.BICUBIC)) for c in coarse]
        return np.minimum(np.stack(smooth), 243) + fine
    with tarfile.open(archive) as tar:
        members = itertools.islice((m for m in tar if m.name.endswith(".jpg")), count)
        found = [np.asarray(Image.open(io.BytesIO(tar.extractfile(m).read()))) for m in members]  # type: ignore[union-attr]
    return np.stack([found[k % len(found)] for k in range(count)])
