"""What the jobs of a run need beside their settings: the files that settings name. Looks at the disk.

One list for all who ask: `plan` and `submit` for the jobs that are still to do, each job for itself.
"""

import importlib.util
import json
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from pipeline.config.check import classes_problems
from pipeline.config.labels import label_problems
from pipeline.config.load import autoencoder_config, listed
from pipeline.config.paths import data_directory, run_directory, training_shards
from pipeline.config.registry import SOURCES, Looked, known_metric
from pipeline.config.schema import Config
from pipeline.config.schema_metrics import WIDTHS, network_of
from pipeline.config.schema_objectives import objective_of
from pipeline.config.weights import VARIABLE, inception_outputs, weights_folder
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json

RECEIPT = Path("shards", "receipt.json")  # in the data directory: all shards are there
_LIBRARY_FILES = ("model.safetensors", "pytorch_model.bin")
_FETCH = "mudi prepare fetch weights, on a login node,"


def missing(cfg: Config, jobs: Collection[str]) -> list[str]:
    """What these jobs of a run (prepare, autoencoder, train, sample, evaluate, ...) will not find; a sentence each."""
    found = [problem for job, needs in NEEDS for problem in (needs(cfg) if job in jobs else ())]
    return list(dict.fromkeys(found))


def require(cfg: Config, *jobs: str) -> None:
    """Raise `UserError` with everything that these jobs will not find."""
    if problems := missing(cfg, jobs):
        raise UserError(listed(problems))


def _images(cfg: Config) -> Iterator[str]:
    own = cfg.data.source.own
    if own is None or (data_directory(cfg) / RECEIPT).is_file():
        return
    setting, path = own
    if not path.exists():
        yield (
            f"data.source.{setting}: '{path}' does not exist on this machine (looked at {path.resolve()}), and "
            f"{data_directory(cfg)} holds nothing prepared from it. Give the folder or archive, on a file system that "
            f"the nodes see too: data.source.{setting}=/path/to/it."
        )
        return
    try:
        looked_at(cfg)
    except UserError as error:
        yield str(error)


def looked_at(cfg: Config) -> Looked | None:
    """What the names of files tell of images that are still to be prepared; None where they do not.

    Raises:
        UserError: as listing the images would.
    """
    own = cfg.data.source.own
    if own is None or not own[1].exists() or (data_directory(cfg) / RECEIPT).is_file():
        return None
    return _looked(cfg.data.source.model_dump_json(), own[1].stat().st_mtime_ns)


@cache
def _looked(source: str, changed: int) -> Looked | None:
    """Once for all configurations of a sweep."""
    del changed
    settings = SOURCES.validate(json.loads(source))
    return SOURCES[settings.kind].check(settings, settings.own[1])


def _enough(cfg: Config) -> Iterator[str]:
    """Of a training: at least one batch of images."""
    try:
        found = looked_at(cfg)
    except UserError:
        return  # said for `prepare`
    if found is not None and found.images < cfg.train.global_batch:
        yield (
            f"train.global_batch: found {cfg.train.global_batch}, but there are {found.images} images. Give more, or "
            f"set train.global_batch={max(found.images // 2, 1)} or less."
        )


def _features(cfg: Config) -> Iterator[str]:
    """Of the networks whose features are compared, also with those of the references."""
    weights = cfg.evaluate.inception.weights
    if weights is not None and not weights.is_file():
        yield _no_file(cfg, "evaluate.inception.weights", weights, "inception")
    elif weights is not None and (
        lacking := set(cfg.evaluate.inception.features or ()) - {*inception_outputs(weights)}
    ):
        yield (
            f"evaluate.inception.features: found {', '.join(sorted(lacking))}, but {weights.name} reaches only "
            f"{', '.join(inception_outputs(weights))}. Use a whole weight file, or ask for those."
        )
    for name, folder in (("dinov2", cfg.evaluate.dinov2.weights), ("clip", cfg.evaluate.clip.weights)):
        if folder is None:
            continue
        files = [folder / file for file in _LIBRARY_FILES]
        if not (folder / "config.json").is_file() or not any(file.is_file() for file in files):
            yield (
                f"evaluate.{name}.weights: found '{folder}', expected a folder with config.json and "
                f"{' or '.join(_LIBRARY_FILES)}. {_FETCH} makes one ({name}); or set it to null."
            )
        if cfg.cluster.python is None and importlib.util.find_spec("transformers") is None:
            yield (
                f"evaluate.{name}.weights: set, but the library `transformers` is not installed. Install it "
                f"(pip install transformers), or set evaluate.{name}.weights=null."
            )


def metric_missing(cfg: Config, metric: str) -> Iterator[str]:
    """Why a metric will not be measured, where the file of FID's network does not reach its features."""
    weights, words = cfg.evaluate.inception.weights, metric.partition("@")[0].split("-")
    if network_of(metric) != "inception" or weights is None or not weights.is_file():
        return
    spatial = "spatial" if "spatial" in words or "sfid" in words else None
    deepest = "logits" if (kind := known_metric(metric)) and kind.needs == "logits" else "2048"
    wanted = next((w for w in WIDTHS if w in words), spatial or deepest)
    given = cfg.evaluate.inception.features or inception_outputs(weights)
    if wanted not in given:
        yield (
            f"{metric} needs the features {wanted} of FID's network, but evaluate.inception gives {', '.join(given)} "
            f"of {weights.name}. Use a whole weight file, or another metric, such as fid-768 or fd-domain."
        )


def _scorers(cfg: Config) -> Iterator[str]:
    """Of what scores single images."""
    quality = cfg.evaluate.quality
    for name, path in quality.weights().items():
        if not path.is_file():
            yield _no_file(cfg, quality.setting(name), path, name)
    if (model := quality.brisque) is not None and model.is_file():
        ranges = model.with_name(model.name.replace("model", "range"))
        if ranges == model or not ranges.is_file():
            yield f"evaluate.quality.brisque: {model} needs its ranges beside it, expected {ranges}."


def _no_file(cfg: Config, setting: str, path: Path, name: str) -> str:
    folder = weights_folder(cfg.cluster.weights)
    named = ""
    if folder is not None and path.is_relative_to(folder):
        named = f"{'cluster.weights' if cfg.cluster.weights else VARIABLE} names the folder {folder}. "
    return (
        f"{setting}: found no file '{path}' (looked at {path.resolve()}), expected the weights there. {named}"
        f"{_FETCH} fetches them ({name}); give their path, or set {setting}=null."
    )


def _objective(cfg: Config) -> Iterator[str]:
    yield from objective_of(cfg).missing(cfg)


def _autoencoder(cfg: Config) -> Iterator[str]:
    """Of the training of an autoencoder for this run's latents."""
    if cfg.latents is not None and cfg.latents.experiment is not None:
        yield from _objective(autoencoder_config(cfg))


def _classes(cfg: Config) -> Iterator[str]:
    """Classes by name, once the data is prepared."""
    manifest = training_shards(cfg) / "train" / "manifest.json"
    if isinstance(cfg.sample.classes, tuple) and manifest.is_file():
        yield from classes_problems(cfg.sample.classes, read_json(manifest)["classes"])


def _guide(cfg: Config) -> Iterator[str]:
    """The guide model of autoguidance; a checkpoint of this very run is there once it is trained."""
    guide = cfg.sample.sampler.guidance.guide_model
    if guide is None or not cfg.sample.sampler.guidance.active:
        return
    place = Path(guide)
    if not place.exists() and not place.resolve().is_relative_to(run_directory(cfg).resolve()):
        yield (
            f"sample.sampler.guidance.guide_model: found '{guide}', which does not exist, expected the run directory "
            "of the guide model, or one of its checkpoints. Submit that run first."
        )


def _trainable(cfg: Config) -> Iterator[str]:
    if cfg.model.kind == "diffusers":
        yield (
            "model.kind: found diffusers, expected a network of ours: dropout and restarts of this one would not be "
            "those of the image. It is sampled and evaluated only."
        )


def _start(cfg: Config) -> Iterator[str]:
    """The run that training begins with the weights of."""
    place = cfg.train.start_from
    if place is None:
        return
    run = place.parent.parent if place.parent.name == "checkpoints" else place
    if not (run / "config.yaml").is_file() or (place != run and not place.is_dir()):
        yield (
            f"train.start_from: found '{place}' (looked at {place.resolve()}), expected a run directory, or one of its "
            "checkpoints, RUN/checkpoints/step-000012000."
        )
    elif not any((run / "checkpoints").glob("step-*")):
        yield f"train.start_from: {run} has no checkpoint yet. Train it first."


def _trackers(cfg: Config) -> Iterator[str]:
    for name in cfg.train.trackers:
        if cfg.cluster.python is None and importlib.util.find_spec(name) is None:
            yield (
                f"train.trackers: found {name}, but its package is not installed. Install it (pip install "
                f"{name.replace('_', '-')}), or leave it out."
            )


NEEDS = (
    ("prepare", _images),
    ("prepare", label_problems),
    ("prepare", _features),
    ("autoencoder", _autoencoder),
    ("train", _trainable),
    ("train", _start),
    ("train", _enough),
    ("train", label_problems),
    ("train", _trackers),
    ("train", _objective),
    ("reconstruct", _objective),
    ("sample", _guide),
    ("sample", _classes),
    ("evaluate", _features),
    ("evaluate", _scorers),
)
