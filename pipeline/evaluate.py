"""Evaluate: sample sets + reference statistics -> results/*.json and a table.

Every finished sample set of the run is measured that has no result yet for these very images and settings. Killed and
started again it goes on where it was; the tasks of a job, and the parts of an array, share the images.
"""

import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.needs import require
from pipeline.config.prepared import classes_without_images
from pipeline.config.registry import METRICS
from pipeline.config.schema import Config
from pipeline.config.schema_metrics import CLASS_ACCURACY
from pipeline.data.reader import Reader
from pipeline.data.shards import Manifest, ShardDirectory, open_shards
from pipeline.metrics.copies import QUERIES, Images, InFeatures, Worst, measure_copies
from pipeline.metrics.extraction import Read, Work, all_features, default_device, extract, first_features
from pipeline.metrics.features import Extractor
from pipeline.metrics.memorisation import mirrored
from pipeline.metrics.pictures import draw_worst
from pipeline.metrics.provenance import versions
from pipeline.metrics.quality_suite import measure_quality, quality_work, score_blocks
from pipeline.metrics.references import Reference
from pipeline.metrics.report import caution, show
from pipeline.metrics.suite import Asked, Measured, feature_sets, measure
from pipeline.metrics.tensorboard_log import write_tensorboard
from pipeline.reference_set import ReferenceSet, open_reference_set
from pipeline.runtime.distributed import own_device
from pipeline.runtime.errors import Incomplete, UserError, did_you_mean
from pipeline.runtime.files import content_hash, read_json, write_json
from pipeline.runtime.numerics import set_numerics
from pipeline.runtime.parts import WHOLE, Part, this_world
from pipeline.runtime.run_dir import RunDir, existing_run

FINISHED = "manifest.json"


def evaluate(cfg: Config, run: RunDir, *, part: Part | None = None) -> list[Path]:
    """Measure the sample sets that `cfg.evaluate.samples` chooses; returns the result files that are complete.

    Args:
        part: (k, n): compute the features of this share alone and write no result; a later call without it finds them.
    Raises:
        Incomplete: no sample set, or no reference statistics, or one of them unfinished.
        UserError: a reference of other images or another protocol.
    """
    reference_set = open_reference_set(cfg)
    sets = [open_shards(directory) for directory in chosen(cfg, run)]
    for samples in sets:
        _check_shape(samples, reference_set)
    finished = []
    for samples in sets:
        directory = samples.path
        result = run.results / f"{directory.parent.name.removeprefix('step-')}-{directory.name}.json"
        key = _key(cfg, samples, reference_set)
        if not (result.exists() and read_json(result).get("key") == key):
            work = run.results / f".work-{key[:16]}"
            if not _features(cfg, samples, reference_set, work=work, part=part):
                continue
            found = _result(cfg, samples, reference_set, work=work, picture=result.with_suffix(".nearest.png"))
            write_tensorboard(run.tensorboard / "eval", found, _experiment(cfg, found))
            write_json(result, {"key": key, **found})
            shutil.rmtree(work, ignore_errors=True)
        finished.append(result)
    return finished


def chosen(cfg: Config, run: RunDir) -> list[Path]:
    """The finished sample sets to measure, oldest step first."""
    finished = sorted(path.parent for path in run.path.glob(f"samples/step-*/*/{FINISHED}"))
    names = {f"{path.parent.name}/{path.name}": path for path in finished}
    if cfg.evaluate.samples is None:
        if not finished:
            raise Incomplete(f"{run.path}/samples has no finished sample set. Run: mudi sample {run.path}")
        return finished
    if cfg.evaluate.samples not in names:
        raise UserError(
            f"evaluate.samples: found '{cfg.evaluate.samples}', expected one of the finished sample sets of "
            f"{run.path}: {', '.join(names) or 'there is none'}.{did_you_mean(cfg.evaluate.samples, names)}"
        )
    return [names[cfg.evaluate.samples]]


def _check_shape(samples: ShardDirectory, reference_set: ReferenceSet) -> None:
    data = next(iter(reference_set.splits.values()))
    if samples.manifest.shape != data.manifest.shape:
        raise UserError(
            f"{samples.path} has images [C, H, W] of {list(samples.manifest.shape)}, {data.path} of "
            f"{list(data.manifest.shape)}: these samples are of another data set. Check data=... and the sample set."
        )


def _key(cfg: Config, samples: ShardDirectory, reference_set: ReferenceSet) -> str:
    """What decides every number of a result, as one hash. How the work is cut up is not part of it."""
    elsewhere = {"domain", "inception", "dinov2", "clip"}  # what they decide is in the networks' own identities
    settings = cfg.evaluate.model_dump(
        mode="json", exclude={"samples", "batch", "block", "quality", "copies", "options", *elsewhere}
    )
    quality = [cfg.evaluate.quality.images, *(scorer.sha256 for scorer in reference_set.scorers)]
    left_out = [] if cfg.evaluate.copies else ["copies"]  # so that results from before the switch keep their key
    added = [[k.name, k.version, cfg.evaluate.options.get(k.name, {})] for k in METRICS if k.added]
    return content_hash([samples.manifest.sha256, reference_set.identity, quality, settings, *left_out, *added])


def _work(cfg: Config, samples: ShardDirectory, extractor: Extractor, *, work: Path) -> Work:
    directory = work / f"{extractor.key}-{cfg.evaluate.block}"
    return Work(directory, samples.manifest.count, cfg.evaluate.block, cfg.evaluate.batch)


def _quality_works(
    cfg: Config, samples: ShardDirectory, reference_set: ReferenceSet, *, work: Path
) -> list[tuple[ShardDirectory, Work]]:
    """The pieces of work of single images' quality: the samples', and those of the held-out images, where there are
    any."""
    most, scorers = cfg.evaluate.quality.images, reference_set.scorers
    sets = [("samples", samples), *list(reference_set.splits.items())[1:2]] if scorers else []
    return [(s, quality_work(work / f"quality-{n}", scorers, count=s.manifest.count, most=most)) for n, s in sets]


@dataclass(frozen=True)
class _Mirrored:
    """Mirrored images whose features the copy check needs: the samples', and those of held-out images."""

    images: str
    extractor: Extractor
    read: Read
    blocks: Work


def _mirrored_works(
    cfg: Config, samples: ShardDirectory, reference_set: ReferenceSet, *, work: Path
) -> list[_Mirrored]:
    """What has to be computed for the copy check, in the last network that is switched on. The features of images that
    are not mirrored are there already."""
    extractor = next(
        (e for e in reversed(reference_set.extractors) if e.name in ("domain", "inception", "dinov2")), None
    )
    if extractor is None or not cfg.evaluate.copies:
        return []
    sets = [(samples, np.arange(samples.manifest.count))]
    sets += [(reference_set.splits[name], held.indices()) for name, held in _held_out(reference_set, extractor)]
    found = []
    for images, numbers in sets:
        name = f"mirrored-{images.manifest.sha256[:12]}-{extractor.key}-{cfg.evaluate.block}"
        blocks = Work(work / name, min(len(numbers), QUERIES), cfg.evaluate.block, cfg.evaluate.batch)
        read = functools.partial(_read_mirrored, Reader(images), numbers)
        found.append(_Mirrored(images.path.name, extractor, read, blocks))
    return found


def _held_out(reference_set: ReferenceSet, extractor: Extractor) -> list[tuple[str, Reference]]:
    """The second split, the images of which nobody can have copied, and its reference; [] where there is none."""
    return list(reference_set.references[extractor.key].items())[1:2]


def _read_mirrored(
    reader: Reader, numbers: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    return mirrored(reader.read(numbers[places]))


def _features(
    cfg: Config, samples: ShardDirectory, reference_set: ReferenceSet, *, work: Path, part: Part | None
) -> bool:
    """Compute this process's share of features and scores; whether it is the one that goes on and writes the result.

    The first process of several then computes whatever is missing still: it waits for nobody and nobody's death
    stops it.
    """
    own_device(gpus=cfg.cluster.evaluate.gpus, setting="cluster.evaluate.gpus")  # where it has none, that is said
    set_numerics()
    mine = (part or WHOLE).for_task(this_world())
    gathers = part is None and mine.number == 0
    shares = [mine, WHOLE] if gathers and mine != WHOLE else [mine]
    for extractor in reference_set.extractors:
        blocks = _work(cfg, samples, extractor, work=work)
        for share in shares:
            extract(blocks, Reader(samples).read, extractor, of=samples.path.name, part=share)
    for some in _mirrored_works(cfg, samples, reference_set, work=work):
        for share in shares:
            extract(some.blocks, some.read, some.extractor, of=f"{some.images}, mirrored", part=share)
    for images, blocks in _quality_works(cfg, samples, reference_set, work=work):
        for share in shares:
            score_blocks(blocks, Reader(images).read, reference_set.scorers, of=images.path.name, part=share)
    return gathers


def _result(
    cfg: Config, samples: ShardDirectory, reference_set: ReferenceSet, *, work: Path, picture: Path
) -> dict[str, Any]:
    """Everything that the result file says, apart from its key."""
    measured = Measured()
    names = tuple(samples.manifest.attributes)
    asked = Asked(np.asarray(samples.index["label"], np.int64), samples.attributes, names)
    for extractor in reference_set.extractors:
        blocks = _work(cfg, samples, extractor, work=work)
        measured.update(
            measure(extractor, blocks, reference_set.references[extractor.key], asked=asked, cfg=cfg.evaluate)
        )
    sets = [Images(Reader(s).read, s.manifest.count) for s in (samples, *reference_set.splits.values())]
    copies, worst = (
        _copies(cfg, samples, reference_set, sets=sets, work=work) if cfg.evaluate.copies else (Measured(), [])
    )
    measured.update(copies)
    manifest = samples.manifest
    scores = [blocks for _, blocks in _quality_works(cfg, samples, reference_set, work=work)]
    if scores:
        held_out = scores[1] if len(scores) > 1 else None
        measured.update(measure_quality(scores[0], held_out, reference_set.scorers, size=manifest.shape[1:]))
    cautions = caution(manifest.count, measured.metrics, measured.details)
    _draw(picture, worst, sets)
    return {
        "run": samples.path.parents[2].name,
        "step": int(samples.path.parent.name.removeprefix("step-")),
        "samples": {
            "set": f"{samples.path.parent.name}/{samples.path.name}",
            "count": manifest.count,
            "sha256": manifest.sha256,
            "protocol": manifest.protocol,
            "made_from": manifest.made_from,
        },
        "data": {n: {"count": s.manifest.count, "sha256": s.manifest.sha256} for n, s in reference_set.splits.items()},
        "extractors": {e.name: dict(e.protocol) for e in reference_set.extractors},
        "metrics": measured.metrics,
        "details": measured.details,
        "nearest_training_images": [asdict(w) for w in worst],
        "notes": [*_partial(manifest), *_never_seen(reference_set, measured), *cautions, *measured.notes],
        "settings": cfg.evaluate.model_dump(mode="json"),
        "seed": cfg.evaluate.seed,
        "versions": versions(),
    }


def _copies(
    cfg: Config, samples: ShardDirectory, reference_set: ReferenceSet, *, sets: Sequence[Images], work: Path
) -> tuple[Measured, list[Worst]]:
    """The memorisation check, in pixels and in the features of a network."""
    others, features = _mirrored_works(cfg, samples, reference_set, work=work), None
    if others:
        extractor = others[0].extractor
        output = next(s for s, what in feature_sets(extractor).items() if what.full)
        train = next(iter(reference_set.references[extractor.key].values()))
        plain = [first_features(_work(cfg, samples, extractor, work=work), output, QUERIES)]
        plain += [held.features(output)[:QUERIES] for _, held in _held_out(reference_set, extractor)]
        views = [(one, all_features(some.blocks, output)) for one, some in zip(plain, others, strict=True)]
        held_out = views[1] if len(views) > 1 else None
        features = InFeatures(extractor.name, views[0], held_out, train.features(output), train.indices())
    return measure_copies(
        sets[0],
        sets[1],
        sets[2] if len(sets) > 2 else None,
        features=features,
        cfg=cfg.evaluate,
        device=default_device(),
    )


def _experiment(cfg: Config, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the HParams table shows of an experiment."""
    train = {"lr": cfg.train.optim.lr, "batch": cfg.train.global_batch, "duration": cfg.train.duration}
    sample = result["samples"]["made_from"].get("sample", {})
    return {"train": train, "model": cfg.model.model_dump(mode="json"), "sample": sample}


def _draw(path: Path, worst: Sequence[Worst], sets: Sequence[Images]) -> None:
    if worst:
        samples, train = (
            images.read(np.array(numbers, np.int64))
            for images, numbers in zip(sets, ([w.sample for w in worst], [w.train for w in worst]), strict=False)
        )
        draw_worst(path, worst, samples=samples, train=train)


def _partial(manifest: Manifest) -> list[str]:
    wanted = manifest.made_from.get("wanted", manifest.count)
    if manifest.count >= wanted:
        return []
    return [f"the sample set holds {manifest.count} of the {wanted} images asked for: some of its shards are missing"]


def _never_seen(reference_set: ReferenceSet, measured: Measured) -> list[str]:
    """A sentence where samples of classes were asked for of which the classifier never saw an image."""
    split, train = next((name, shards.manifest) for name, shards in reference_set.splits.items())
    seen = measured.details.get(CLASS_ACCURACY, {}).get("by_class", ())
    if not any(share is not None and not count for share, count in zip(seen, train.class_counts, strict=False)):
        return []
    said = classes_without_images(zip(train.classes, train.class_counts, strict=True), split)
    return [f"{CLASS_ACCURACY}: {said}. Samples that were asked for one of these count as wrong"]


def main(overrides: list[str], *, part: Part | None = None) -> None:
    """`mudi evaluate`."""
    run, cfg = existing_run(overrides)
    require(cfg, "evaluate")
    for path in evaluate(cfg, run, part=part):
        show(read_json(path))
        print(path)
