"""Reconstruct: what an autoencoder or a VAE makes of held-out images, as a shard set, with its numbers.

All images of the validation split (of the training split where there is none) go through the weights that
`sample.weights` names, by the posterior's mean, in float32 as `mudi prepare encode` and the decoding of samples are.
Distances between images and their reconstructions are called rfid, rfd-domain, ...: fid is of samples alone.

Killed and started again it makes the shards that are missing. The tasks of a job share the shards; the first of them
makes what is missing still and measures. So does a call without --part after those with one.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline import checkpoint
from pipeline.config.needs import require
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.batches import Batch, validation_batches
from pipeline.data.images import encode
from pipeline.data.pictures import enlarged, tile, to_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import (
    Layout,
    Manifest,
    Sample,
    ShardDirectory,
    ShardRecord,
    finish,
    open_shards,
    read_manifest,
    read_record,
    shard_name,
    tidy,
    write_shard,
)
from pipeline.inference import loaded_objective
from pipeline.metrics.latent_sums import DEAD_NATS, DEAD_SPREAD, LatentSums, dead_channels
from pipeline.metrics.provenance import versions
from pipeline.metrics.reconstruction import RANGE, psnr
from pipeline.metrics.report import caution, show
from pipeline.metrics.suite import Measured
from pipeline.metrics.tensorboard_log import write_tensorboard
from pipeline.models.posterior import Posterior
from pipeline.objectives.autoencoder import Autoencoding
from pipeline.objectives.measuring import Measures, measure_reconstruction, open_measures, pixels
from pipeline.objectives.variational import Variational
from pipeline.runtime import distributed
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import atomic_path, content_hash, read_json, write_json
from pipeline.runtime.parts import WHOLE, Part, this_world, writing
from pipeline.runtime.progress import progress
from pipeline.runtime.run_dir import COMMIT, RunDir, Step, existing_run, step_name, step_of

Reconstructing = Autoencoding | Variational
SHOWN = 32  # images in the picture
WIDTH = 1200  # pixels of the picture, about


def main(overrides: list[str], *, step: Step = None, part: Part | None = None) -> None:
    """`mudi reconstruct`."""
    run, cfg = existing_run(overrides)
    require(cfg, "reconstruct")
    path = reconstruct(cfg, run, step=step, part=part)
    if path is not None:
        show(read_json(path))
        print(path)


def reconstruct(cfg: Config, run: RunDir, *, step: Step = None, part: Part | None = None) -> Path | None:
    """Make the set, the result and the picture of a checkpoint, whichever are missing. Returns the result file, or None
    from a part and from tasks other than the first, which make their shards alone.

    Raises:
        UserError: for a run of another kind, no valid checkpoint, or latents that are not finite.
        Incomplete: the data, or the networks that measure, are not there.
    """
    found = step_of(checkpoint.step_to_read(run, step).name) or 0
    originals = open_shards(_split(cfg))
    objective = _objective(cfg, run, originals, step=found)
    measures = open_measures(cfg)
    name = originals.path.name + ("" if cfg.sample.weights == "ema" else f"-{cfg.sample.weights.replace(':', '')}")
    directory = run.path / "reconstructions" / step_name(found) / name
    mine = (part or WHOLE).for_task(this_world())
    reconstructed = _reconstructed(cfg, run, objective, originals=originals, directory=directory, part=mine)
    if part is not None or mine.number:
        return None
    if reconstructed is None:  # others have not finished their shards: nobody is waited for
        reconstructed = _reconstructed(cfg, run, objective, originals=originals, directory=directory, part=WHOLE)
    if reconstructed is None:
        raise Incomplete(f"{directory}: shards have vanished while they were made. Start this again.")
    result = run.results / f"{found:09d}-reconstruction.json"
    key = content_hash([reconstructed.manifest.sha256, originals.manifest.sha256, measures.identity, SHOWN])
    if not (result.exists() and read_json(result).get("key") == key):
        value = _result(cfg, measures, objective, originals=originals, reconstructed=reconstructed)
        write_tensorboard(
            run.tensorboard / "reconstruction", value, {"autoencoder": cfg.autoencoder.model_dump(mode="json")}
        )
        _picture(objective, originals, path=result.with_suffix(".png"))
        write_json(result, {"key": key, **value})
    return result


def _split(cfg: Config) -> Path:
    """Shards of images that were not trained on, where there are any."""
    shards = data_directory(cfg) / "shards"
    valid = shards / "valid"
    held_out = (valid / "manifest.json").is_file() and read_manifest(valid).count
    return valid if held_out else shards / "train"


def _objective(cfg: Config, run: RunDir, originals: ShardDirectory, *, step: int) -> Reconstructing:
    device = distributed.own_device()
    objective = loaded_objective(cfg, run, originals.manifest, step=step, device=device)
    if not isinstance(objective, Autoencoding | Variational):
        raise UserError(
            f"model.kind: found {cfg.model.kind}, expected kl_autoencoder, bottleneck_autoencoder or vae: only they "
            f"reconstruct images. Run mudi sample {run.path}."
        )
    return objective


def _reconstructed(
    cfg: Config, run: RunDir, objective: Reconstructing, *, originals: ShardDirectory, directory: Path, part: Part
) -> ShardDirectory | None:
    """The set, finished by the process that finds all of its shards; None where others have to make theirs.

    Shards that an earlier, interrupted call finished are taken over.
    """
    made_from = {
        "run": cfg.name,
        "step": step_of(directory.parent.name),
        "checkpoint": read_json(run.checkpoint(step_of(directory.parent.name) or 0) / COMMIT)["files"],
        "weights": cfg.sample.weights,
        "images": originals.manifest.sha256,
        "split": originals.path.name,
    }
    if (directory / "manifest.json").is_file():
        return _finished(directory, made_from)
    layout = Layout(encoding="png", shape=originals.manifest.layout.shape)
    count, size = originals.manifest.count, cfg.sample.images_per_shard
    places = {n: range(n * size, min((n + 1) * size, count)) for n in range(-(-count // size))}

    def present() -> dict[int, ShardRecord]:
        found = {n: read_record(directory / shard_name(n)) for n in places}
        return {n: record for n, record in found.items() if record and record.count == len(places[n])}

    with writing(directory):
        done = sum(record.count for record in present().values())
        with progress("reconstruct", count, done=done) as tick:
            for number in sorted(n for n in places.keys() - present().keys() if part.has(n)):
                if number in present() or (directory / "manifest.json").is_file():  # made by another process meanwhile
                    continue
                notes: list[dict[str, str]] = []
                samples = _samples(cfg, objective, Reader(originals), places=places[number], notes=notes, tick=tick)
                write_shard(directory / shard_name(number), samples, layout, notes=notes)
        records = present()
        if (directory / "manifest.json").is_file():
            return _finished(directory, made_from)
        if len(records) < len(places):
            print(f"{directory}: {len(records)} of {len(places)} shards are there", file=sys.stderr)
            return None
        train: Manifest = originals.manifest
        finish(
            directory,
            records.values(),
            layout,
            classes=train.classes,
            protocol=train.protocol,
            split=f"reconstructions of {originals.path.name}",
            made_from={**made_from, "latents": _noted(records.values(), noise=objective.has_noise)},
        )
    return open_shards(directory)


def _finished(directory: Path, made_from: Mapping[str, Any]) -> ShardDirectory:
    """A set that is there, without traces of the work, if it is of these images and weights."""
    shards = open_shards(directory)
    before = shards.manifest.made_from
    if any(before[name] != value for name, value in made_from.items() if name != "run"):
        raise UserError(f"{directory} was made of other images or other weights. Delete it and run this again.")
    tidy(directory, (shard["name"] for shard in shards.manifest.shards))
    return shards


def _samples(
    cfg: Config,
    objective: Reconstructing,
    reader: Reader,
    *,
    places: range,
    notes: list[dict[str, str]],
    tick: Callable[[int], None],
) -> Iterator[Sample]:
    """Reconstructed images of these places; sums over their latents are added to `notes` at the end."""
    device, sums = next(objective.networks["autoencoder"].parameters()).device, []
    shape: tuple[int, ...] = ()
    for first in range(places.start, places.stop, cfg.sample.batch):
        indices = np.arange(first, min(first + cfg.sample.batch, places.stop), dtype=np.int64)
        batch = _batch(reader, indices, device)
        with torch.inference_mode():
            reconstructed = objective.reconstructed(objective.networks, batch)
        posterior = reconstructed.posterior
        shape = tuple(posterior.mean.shape[1:])
        if not (torch.isfinite(posterior.mean).all() and torch.isfinite(reconstructed.images).all()):
            raise UserError(
                f"the latents of images {first} to {indices[-1]} of {reader.path}, or what is decoded from them, are "
                "not finite: this checkpoint is of no use. Choose an earlier one with --step, or train with "
                "train.precision=fp32 or a lower train.optim.lr."
            )
        wide = Posterior(_maps(posterior.mean.double()), _maps(posterior.std.double()))
        sums.append(LatentSums.of(wide.mean, wide.std, wide.kl() if objective.has_noise else None))
        labels = reader.labels(indices).tolist()
        for k, label, image in zip(indices.tolist(), labels, to_uint8(reconstructed.images), strict=True):
            told = None if label < 0 else label
            yield Sample(f"{k:012d}", encode(image, "png"), "png", told, {"place": k}, pixels=image)
        tick(len(indices))
    total = LatentSums.total(sums)
    notes.append({"latents": json.dumps({"count": total.count, "sums": total.sums.tolist(), "shape": shape})})


def _maps(values: Tensor) -> Tensor:
    """Latents as [B, d, h, w]: a vector [B, d] has one place."""
    return values if values.ndim == 4 else values[:, :, None, None]


def _noted(records: Any, *, noise: bool) -> dict[str, Any]:
    """What all shards' notes say about the latents together."""
    notes = [json.loads(r.notes[0]["latents"]) for r in sorted(records, key=lambda r: r.name)]
    total = LatentSums.total(LatentSums(n["count"], np.array(n["sums"])) for n in notes)
    return {"shape": notes[0]["shape"], "channels": total.facts(noise=noise)}


def _batch(reader: Reader, indices: npt.NDArray[np.int64], device: torch.device) -> Batch:
    """Images by their places in the split, which are also what degradations are keyed by."""
    attributes = reader.attributes(indices)
    return Batch(
        images=pixels(reader, indices).to(device),
        labels=torch.from_numpy(reader.labels(indices)).to(device),
        attributes=None if attributes is None else torch.from_numpy(attributes).to(device),
        sample_indices=torch.from_numpy(indices).to(device),
        newest=int(indices.max()),
    )


def _result(
    cfg: Config,
    measures: Measures,
    objective: Reconstructing,
    *,
    originals: ShardDirectory,
    reconstructed: ShardDirectory,
) -> dict[str, Any]:
    """Everything that the result file says, apart from its key."""
    manifest = reconstructed.manifest
    work = reconstructed.path.parent / f".work-{reconstructed.path.name}"
    measured = measure_reconstruction(cfg, measures, originals=originals, reconstructed=reconstructed, work=work)
    measured.update(_latents(manifest.made_from["latents"], manifest.shape))
    if cfg.autoencoder.degradation.active and isinstance(objective, Autoencoding):
        measured.update(_repaired(cfg, objective, originals))
    if originals.path.name != "valid":
        measured.notes.append(f"there is no validation split: these are images of {originals.path.name}, trained on")
    return {
        "run": cfg.name,
        "step": manifest.made_from["step"],
        "samples": {
            "set": f"{reconstructed.path.parent.name}/{reconstructed.path.name}",
            "count": manifest.count,
            "sha256": manifest.sha256,
            "protocol": manifest.protocol,
            "made_from": manifest.made_from,
        },
        "data": {originals.path.name: {"count": originals.manifest.count, "sha256": originals.manifest.sha256}},
        "extractors": measures.identity["extractors"],
        "perceptual": measures.identity["perceptual"],
        "metrics": measured.metrics,
        "details": measured.details,
        "notes": [
            f"errors are between pixels of 8 bits, in [-1, 1] (a range of {RANGE:g}), by the posterior's mean",
            *caution(manifest.count, measured.metrics, measured.details),
            *measured.notes,
        ],
        "settings": cfg.evaluate.model_dump(mode="json"),
        "versions": versions(),
    }


def _latents(about: dict[str, Any], shape: tuple[int, int, int]) -> Measured:
    """Size and use of the latents."""
    out, channels = Measured(), about["channels"]
    latent = int(np.prod(about["shape"]))
    out.add("compression", int(np.prod(shape)) / latent, image=list(shape), latent=about["shape"])
    dead = dead_channels(channels)
    if "kl_nats" in channels:
        out.add("kl-per-dimension", float(np.mean(channels["kl_nats"])), unit="nats", channels=channels["kl_nats"])
        limit = f"kl_nats < {DEAD_NATS}"
    else:
        limit = f"deviation < {DEAD_SPREAD}"
        out.notes.append("the code has no noise, and so no divergence from a prior")
    out.add("dead-channels", len(dead), dead=dead, of=len(channels["mean"]), limit=limit)
    out.details["latents"] = channels
    return out


def _repaired(cfg: Config, objective: Autoencoding, originals: ShardDirectory) -> Measured:
    """PSNR of degraded images, and of what is reconstructed from them: what the degradation was trained for.

    Of those that were changed at all: an untouched one has no error, which would hide what the others lost.
    """
    reader, out = Reader(originals), Measured()
    device, sums, count = next(objective.networks["autoencoder"].parameters()).device, np.zeros(2), 0
    for batch in validation_batches(reader, count=reader.count, batch=cfg.sample.batch):
        with torch.inference_mode():
            clean, given, made = objective.reconstructions(objective.networks, batch.to(device))
        changed = (given != clean).flatten(1).any(dim=1)
        count += int(changed.sum())
        sums += [float((psnr(images, clean).double() * changed).sum()) for images in (given, made)]
    for name, total in zip(("psnr-degraded", "psnr-repaired"), sums, strict=True) if count else ():
        out.add(name, total / count, count=count, degradation=cfg.autoencoder.degradation.model_dump())
    return out


def _shown(objective: Reconstructing, batch: Batch) -> tuple[Tensor, ...]:
    """What the picture has of each image, the original first."""
    if isinstance(objective, Autoencoding):
        return objective.reconstructions(objective.networks, batch)
    return batch.images, objective.reconstructed(objective.networks, batch).images


def _picture(objective: Reconstructing, originals: ShardDirectory, *, path: Path) -> None:
    """Images spread over the split; below each what the network was given, where that is another, and what it made."""
    reader = Reader(originals)
    count, device = min(SHOWN, reader.count), next(objective.networks["autoencoder"].parameters()).device
    (batch,) = validation_batches(reader, count=count, batch=count)
    with torch.inference_mode():
        shown = torch.stack(_shown(objective, batch.to(device)))
    columns = min(count, 8)
    rows_of = [to_uint8(part) for start in range(0, count, columns) for part in shown[:, start : start + columns]]
    picture = tile(np.concatenate(rows_of), columns=columns)
    with atomic_path(path) as partial:
        Image.fromarray(enlarged(picture, factor=max(WIDTH // picture.shape[1], 1))).save(partial, "PNG")
