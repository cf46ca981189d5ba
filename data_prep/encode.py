"""The encode stage: image shards -> latent shards, posterior means and deviations, in the order of the images.

Each shard is a function of the images, the autoencoder's weights and its number: batches never cross a shard, and on a
CPU one thread does the sums. So parts, ranks, workers and restarts after a kill make the same bytes, on one device.
"""

import functools
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_prep.stage import cores, run_parallel, run_stage
from pipeline.config.autoencoder import facts_in, missing_autoencoder
from pipeline.config.paths import data_directory, latents_directory
from pipeline.config.schema import Config, LatentsConfig
from pipeline.data.latents import spread_of
from pipeline.data.pictures import from_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import (
    Layout,
    Sample,
    ShardDirectory,
    ShardRecord,
    finish,
    open_shards,
    read_manifest,
    read_record,
    shard_name,
    write_shard,
)
from pipeline.metrics.domain import one_thread
from pipeline.models.posterior import Posterior
from pipeline.models.pretrained import Autoencoder, load_autoencoder, weights_file
from pipeline.runtime.distributed import own_device
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import sha256_file
from pipeline.runtime.parts import Part, this_world, writing
from pipeline.runtime.progress import progress

VERSION = 1  # raised when the same settings would give other values
SPLITS = ("train", "valid")  # those that training reads
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEVIATION_LIMIT = 0.99 * float(np.exp(10))  # log variances are clamped at 20


@dataclass(frozen=True)
class EncodeJob:
    """One shard of latents: samples start to end of a split."""

    split: str
    number: int
    start: int
    end: int

    @property
    def name(self) -> str:
        """Relative to the directory of latents."""
        return f"{self.split}/{shard_name(self.number)}"


@dataclass(frozen=True)
class Encoding:
    """How images become latents, and where."""

    latents: LatentsConfig
    sha256: str  # of the autoencoder's weights
    mirrored: bool
    source: Path  # the image shards' splits
    target: Path
    layout: Layout


def run(cfg: Config, *, workers: int | None = None, part: tuple[int, int] = (0, 1)) -> Mapping[str, Any]:
    """Encode the training and validation splits for `cfg.latents`. `part` (k, n): only shards with place % n == k.

    Ranks of a launcher share the part's shards further. Returns the receipt, or {} where others are not done yet.

    Raises:
        UserError: for an autoencoder that is not there or not trained, and for latents that no one could train on.
        Incomplete: where the image shards are not finished.
    """
    missing = "latents: found null, expected an experiment on latents." if cfg.latents is None else None
    missing = missing or missing_autoencoder(cfg)
    if cfg.latents is None or missing:
        raise UserError(missing)
    source = data_directory(cfg) / "shards"
    splits = {name: open_shards(source / name) for name in SPLITS if name == "train" or (source / name).is_dir()}
    autoencoder = autoencoder_identity(cfg.latents)
    inputs = {
        "stage": VERSION,
        "images": {name: split.manifest.sha256 for name, split in splits.items()},
        "autoencoder": {k: autoencoder[k] for k in ("sha256", "config")},  # wherever they lie
        "protocol": {**cfg.latents.identity(), "mirrored": cfg.train.flip},
    }
    layout = latent_layout(cfg)
    encoding = Encoding(cfg.latents, autoencoder["sha256"], cfg.train.flip, source, latents_directory(cfg), layout)
    return run_stage(
        "encode",
        encoding.target,
        inputs,
        work=lambda _: _encode(encoding, splits, autoencoder, workers=workers, part=part),
        otherwise="give the new latents another latents.name",
    )


def autoencoder_identity(latents: LatentsConfig) -> dict[str, Any]:
    """What a receipt says of an autoencoder: the hash of the weights that are used, and which they are."""
    path = weights_file(latents.autoencoder, weights=latents.weights, step=latents.step)
    name = path.relative_to(latents.autoencoder)
    known = facts_in(latents.autoencoder)
    config = known.settings if known else None
    return {"path": latents.autoencoder.name, "file": str(name), "sha256": sha256_file(path), "config": config}


def latent_layout(cfg: Config) -> Layout:
    """Of the stored latents: means, deviations, and both again of mirrored images."""
    known = facts_in(cfg.latents.autoencoder) if cfg.latents else None
    if cfg.latents is None or known is None:
        raise UserError("latents.autoencoder: nothing is known of it.")
    side = cfg.data.image_size // known.factor
    dtype = str(DTYPES[cfg.latents.dtype]).removeprefix("torch.")
    return Layout("latent", (known.latent_channels * (4 if cfg.train.flip else 2), side, side), dtype)


def _encode(
    encoding: Encoding,
    splits: Mapping[str, ShardDirectory],
    autoencoder: dict[str, Any],
    *,
    workers: int | None,
    part: tuple[int, int],
) -> Mapping[str, Any] | None:
    world = this_world()
    mine = Part(*part).for_task(world)
    jobs = {name: jobs_of(split, encoding.latents) for name, split in splits.items()}
    listed = [job for rows in jobs.values() for job in rows]
    todo = [job for place, job in enumerate(listed) if mine.has(place) and not _done(encoding.target, job)]
    processes = 1 if torch.cuda.is_available() else workers or max(cores() // world.local_size, 1)
    work = functools.partial(encode_shard, encoding=encoding)
    total, left = (sum(job.end - job.start for job in rows) for rows in (listed, todo))
    label, done = f"encode {encoding.target.name}", total - left
    with writing(encoding.target), progress(label, total, done=done) as tick:
        for made in run_parallel(work, todo, workers=min(processes, max(len(todo), 1))):
            tick(made)
    return _complete(encoding, splits, jobs, autoencoder=autoencoder)


def jobs_of(split: ShardDirectory, latents: LatentsConfig) -> list[EncodeJob]:
    """The shards of a split's latents."""
    count, size = split.manifest.count, latents.images_per_shard
    name = split.path.name
    return [EncodeJob(name, n, n * size, min((n + 1) * size, count)) for n in range(-(-count // size))]


def _done(directory: Path, job: EncodeJob) -> bool:
    return (directory / job.split / "manifest.json").exists() or read_record(directory / job.name) is not None


def encode_shard(job: EncodeJob, encoding: Encoding) -> int:
    """Write one shard of latents. Returns how many images it holds."""
    device = own_device()
    latents = encoding.latents
    network = _loaded(latents.autoencoder, latents.weights, latents.step, sha256=encoding.sha256, device=str(device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    notes = [{"torch": torch.__version__, "device": name}]  # for the manifest: other devices round differently
    with one_thread(), torch.inference_mode(), _exact():
        samples = _samples(job, encoding, network, device=device)
        write_shard(encoding.target / job.name, samples, encoding.layout, notes=notes)
    return job.end - job.start


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, weights: str, step: int | None, *, sha256: str, device: str) -> Autoencoder:
    return load_autoencoder(folder, weights=weights, step=step, sha256=sha256).to(device)


def _exact() -> Any:
    """On a GPU: the same kernels each time, and no shortened mantissas."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _samples(job: EncodeJob, encoding: Encoding, network: Autoencoder, *, device: torch.device) -> Iterator[Sample]:
    split = open_shards(encoding.source / job.split)
    reader, names = Reader(split), names_of(split, range(job.start, job.end))
    for first in range(job.start, job.end, encoding.latents.batch):
        rows = np.arange(first, min(first + encoding.latents.batch, job.end), dtype=np.int64)
        stored = encoded(network, from_uint8(reader.read(rows)).to(device), mirrored=encoding.mirrored).cpu()
        labels, attributes = reader.labels(rows).tolist(), reader.attributes(rows)
        for place, (label, values) in enumerate(zip(labels, stored, strict=True)):
            key, meta = names[first - job.start + place]
            yield Sample(
                key=key,
                data=_bytes(values, encoding, key=key, meta=meta),
                extension="npy",
                label=None if label < 0 else label,
                meta=meta,
                attributes=() if attributes is None else tuple(attributes[place].tolist()),
            )


def encoded(network: Autoencoder, images: Tensor, *, mirrored: bool) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] to what is stored of each, float32 [B, 2d or 4d, h, w]."""

    def both(posterior: Posterior) -> Tensor:
        return torch.cat([posterior.mean, posterior.std], dim=1)

    plain = both(network.encode(images))
    return torch.cat([plain, both(network.encode(images.flip(-1)))], dim=1) if mirrored else plain


def _bytes(values: Tensor, encoding: Encoding, *, key: str, meta: Mapping[str, Any]) -> bytes:
    """One latent as it is stored; what training could not use is refused with the image's name."""
    latents = encoding.latents
    narrow, deviations = values.to(DTYPES[latents.dtype]), values.chunk(4 if encoding.mirrored else 2)[1::2]
    finite, fits = bool(values.isfinite().all()), bool(narrow.isfinite().all())
    saturated = any(bool((part > DEVIATION_LIMIT).any()) for part in deviations)
    if finite and fits and not saturated:
        return narrow.contiguous().view(torch.uint8).numpy().tobytes()
    image = f"image '{key}'" + (f" (source {meta['source']})" if "source" in meta else "")
    if not finite:
        said = "has latents that are NaN or infinite. The autoencoder's weights are damaged, or its training diverged"
    elif not fits:
        said = (
            f"has a latent of {values.abs().max():g}, beyond the 65504 of fp16. Use latents.dtype=bf16 or fp32, or an "
            "autoencoder with a KL term large enough to bound its latents"
        )
    else:
        said = "has a saturated posterior: its log variance is at the bound of 20. The autoencoder's training diverged"
    raise UserError(f"Encoding with {latents.autoencoder}: {image} {said}.")


def names_of(split: ShardDirectory, places: range) -> list[tuple[str, dict[str, Any]]]:
    """Key and json (less what the index holds) of samples, from the tars."""
    found: list[tuple[str, dict[str, Any]]] = []
    numbers: npt.NDArray[Any] = np.asarray(split.index["shard"])
    for number in sorted(set(numbers[places.start : places.stop].tolist())):
        of_shard = np.flatnonzero(numbers == number)
        with tarfile.open(split.shard_path(number), "r:") as archive:
            texts = archive.getmembers()[1::2]
            for place, text in zip(of_shard.tolist(), texts, strict=True):
                if place in places:
                    content = archive.extractfile(text)
                    values = json.loads(content.read() if content else b"{}")
                    meta = {k: v for k, v in values.items() if k not in ("label", "attributes")}
                    found.append((text.name.removesuffix(".json"), meta))
    return found


def _complete(
    encoding: Encoding,
    splits: Mapping[str, ShardDirectory],
    jobs: Mapping[str, list[EncodeJob]],
    *,
    autoencoder: dict[str, Any],
) -> Mapping[str, Any] | None:
    """Manifests, where every shard is there; None where some are not. Several processes may come here at once."""
    for name, split in splits.items():
        directory = encoding.target / name
        records = [read_record(encoding.target / job.name) for job in jobs[name]]
        if not (directory / "manifest.json").exists():
            if not all(records):
                if not (directory / "manifest.json").exists():
                    return None
                continue
            _finish(encoding, split, [record for record in records if record], autoencoder=autoencoder)
    made = {name: read_manifest(encoding.target / name) for name in splits}
    spread = spread_of(made["train"])  # raises for a channel without a scale
    for record in encoding.target.glob("*/*.record.json"):
        record.unlink(missing_ok=True)
    return {
        "splits": {name: {"count": m.count, "sha256": m.sha256} for name, m in made.items()},
        "spread": {"mean": spread.mean, "std": spread.std, "informed": spread.informed},
    }


def _finish(
    encoding: Encoding, split: ShardDirectory, records: list[ShardRecord], *, autoencoder: dict[str, Any]
) -> None:
    manifest = split.manifest
    computed = sorted({json.dumps(note, sort_keys=True) for record in records for note in record.notes})
    finish(
        encoding.target / split.path.name,
        records,
        encoding.layout,
        classes=manifest.classes,
        attributes=manifest.attributes,
        protocol=manifest.protocol,
        split=manifest.split,
        made_from={
            "autoencoder": autoencoder,
            "images": manifest.sha256,
            "image_shape": list(manifest.shape),
            "mirrored": encoding.mirrored,
            "stored": encoding.latents.identity(),
            "computed_with": [json.loads(line) for line in computed],
        },
    )
