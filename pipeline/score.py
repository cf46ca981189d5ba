"""Score one set of images against another: `mudi score A B evaluate.inception.weights=FILE`.

The same features and metrics as `evaluate`, of any two sets (see `pipeline.image_sets`). B is the reference; an
.npz with mu and sigma in its place gives Frechet distances alone. Features are kept in a cache by what the images are,
so a killed command goes on where it was, and a reference is computed once. The tasks of a job share the images.
"""

import argparse
import contextlib
import csv
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from pydantic import ValidationError

from pipeline.config.base import Settings
from pipeline.config.explain import explain
from pipeline.config.load import listed
from pipeline.config.overrides import put
from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.config.weights import FILES, VARIABLE, no_folder, weights_file, weights_folder
from pipeline.image_sets import KINDS, ImageSet, Statistics, open_sets
from pipeline.metrics.extraction import Work, default_device, extract
from pipeline.metrics.extractors import build_extractors
from pipeline.metrics.features import Extractor
from pipeline.metrics.moments import Moments
from pipeline.metrics.provenance import versions
from pipeline.metrics.quality_suite import build_scorers, measure_quality, quality_work, score_blocks
from pipeline.metrics.references import CLASS_OUTPUTS, Reference, save_reference
from pipeline.metrics.report import caution, show
from pipeline.metrics.suite import Asked, Measured, View, feature_sets, frechet, measure
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import atomic_path, read_json, write_json
from pipeline.runtime.numerics import set_numerics
from pipeline.runtime.parts import WHOLE, Part, parse_part, this_world

BLOCK = 128  # images that a kill costs at most: on a CPU half a minute of Inception, and as fast as larger ones
SPLIT = "B"  # what the second set is called in files; tables have its name


class ScoreSettings(Settings):
    """What may be set: `evaluate.*`, as in an experiment."""

    evaluate: EvaluateConfig


@dataclass(frozen=True)
class Published(Reference):
    """A reference of which only mean and covariance are known."""

    found: Moments

    def moments(self, output: str) -> Moments:  # noqa: ARG002
        """The published ones, whatever the output is called."""
        return self.found


def settings_from(overrides: list[str]) -> EvaluateConfig:
    """`evaluate.key=value` overrides as settings. The domain classifier, which belongs to a prepared data set, is off.

    Inception's weights are taken from where MUDI_WEIGHTS says, if they are there, unless an override says otherwise.
    """
    values = OmegaConf.create({"evaluate": {"domain": {"enabled": False}, "block": BLOCK}})
    where = no_folder("inception")
    if (folder := weights_folder()) is not None:
        where = (
            f"{VARIABLE}: found none of {', '.join(FILES['inception'])} in '{folder}' or its folder inception"
            f"{'' if folder.is_dir() else ', which does not exist'}. `mudi prepare fetch weights inception --into "
            f"{folder}` brings one; a file of another name is given by evaluate.inception.weights."
        )
        if (path := weights_file("inception", folder)).is_file():
            put(values, f"evaluate.inception.weights={path}")
    for override in overrides:
        put(values, override)
    try:
        cfg = ScoreSettings.model_validate(OmegaConf.to_container(values)).evaluate
    except ValidationError as error:
        raise UserError(listed(explain(error, ScoreSettings))) from error
    if cfg.domain.enabled:
        raise UserError("evaluate.domain.enabled: found true, but that classifier belongs to a run: use `evaluate`.")
    if not (cfg.inception.weights or cfg.dinov2.weights or cfg.clip.weights or cfg.quality.weights()):
        raise UserError(
            "No network is given to measure with. Say evaluate.inception.weights=FILE for FID, KID, IS, precision and "
            "recall, or evaluate.dinov2.weights, evaluate.clip.weights, or evaluate.quality.niqe, .brisque, .cnniqa "
            "or .cnniqa_koniq. "
            f"{where}"
        )
    return cfg


def score(
    first: ImageSet, second: ImageSet | Statistics, cfg: EvaluateConfig, *, cache: Path, part: Part | None = None
) -> dict[str, Any] | None:
    """Everything that is measured of `first` against `second`, in the form of `evaluate`'s results.

    Args:
        cache: where features are kept.
        part: compute this share of the features alone.
    Returns:
        None where another process, or a later call without `part`, writes the result.
    Raises:
        UserError: sets of different sizes, statistics of features that no network here gives.
    """
    _refuse_two_sizes(first, second)
    _refuse_single(first, second, cfg)
    set_numerics()
    extractors, scorers = build_extractors(cfg, cache, {}, device=default_device()), build_scorers(cfg.quality)
    mine = (part or WHOLE).for_task(this_world())
    gathers = part is None and mine.number == 0
    sets = [first, *([second] if isinstance(second, ImageSet) else [])]
    works = {(s.identity, e.key): _work(s, e, cfg, cache) for s in sets for e in extractors}
    quality = {s.identity: quality_work(_folder(s, cache) / "quality", scorers, count=s.count, most=cfg.quality.images)
               for s in sets if scorers}  # fmt: skip
    pieces = {f"{e.name} features of {s.name}": works[s.identity, e.key] for s in sets for e in extractors}
    pieces |= {f"quality of {s.name}": quality[s.identity] for s in sets if scorers}
    with _saying_what_is_kept(pieces):
        for share in [mine, WHOLE] if gathers and mine != WHOLE else [mine]:
            for images in sets:
                for extractor in extractors:
                    extract(works[images.identity, extractor.key], images.read, extractor, of=images.name, part=share)
                if scorers:
                    score_blocks(quality[images.identity], images.read, scorers, of=images.name, part=share)
    if not gathers:
        return None
    measured = Measured()
    asked = Asked(np.full(first.count, -1, np.int64))
    for extractor in extractors:
        work = works[first.identity, extractor.key]
        if isinstance(second, Statistics):
            measured.update(measure(extractor, work, {}, asked=asked, cfg=cfg))
            measured.update(_against_statistics(extractor, work, second, asked, cfg))
            continue
        reference = _reference(second, extractor, works[second.identity, extractor.key], cfg)
        measured.update(measure(extractor, work, {reference.split: reference}, asked=asked, cfg=cfg))
    if scorers:
        held_out = quality.get(second.identity)
        measured.update(measure_quality(quality[first.identity], held_out, scorers, size=first.size))
    return _result(first, second, measured, extractors=extractors, cfg=cfg)


def _refuse_two_sizes(first: ImageSet, second: ImageSet | Statistics) -> None:
    if isinstance(second, ImageSet) and first.size != second.size:
        raise UserError(
            f"{first.name} has images of {first.size[1]} x {first.size[0]} pixels, {second.name} of {second.size[1]} x "
            f"{second.size[0]}. Say --size N to bring both to one size: how they are resized decides the numbers."
        )


def _refuse_single(first: ImageSet, second: ImageSet | Statistics, cfg: EvaluateConfig) -> None:
    """Single images have scores, and no distance from others."""
    sets = [s for s in (first, second) if isinstance(s, ImageSet) and s.count < 2]
    if sets and any(network.weights for network in (cfg.inception, cfg.dinov2, cfg.clip)):
        raise UserError(
            f"{sets[0].name} has {sets[0].count} image, expected at least 2: what a network's features measure is of "
            "sets. The quality of a single image is scored where evaluate.quality alone has weights (niqe, brisque, "
            "cnniqa, cnniqa_koniq)."
        )


class _Ended(BaseException):
    """A signal that would have ended this process at once."""


@contextlib.contextmanager
def _saying_what_is_kept(pieces: Mapping[str, Work]) -> Iterator[None]:
    """Where this is interrupted, say which features are there. A signal then does what it would have done."""
    came: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise _Ended

    free = [number for number in (signal.SIGTERM, signal.SIGUSR2) if signal.getsignal(number) == signal.SIG_DFL]
    free = free if threading.current_thread() is threading.main_thread() else []
    for number in free:
        signal.signal(number, end)
    try:
        yield
    except (KeyboardInterrupt, _Ended):
        there = {n: w.count - sum(len(w.images(number)) for number in w.missing()) for n, w in pieces.items()}
        said = [f"kept: {name}, {kept} of {pieces[name].count} images" for name, kept in there.items() if kept]
        then = "The same command goes on from there." if said else "nothing is kept: no block was finished"
        print("\n".join([*said, then]), file=sys.stderr, flush=True)
        if not came:
            raise
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)
    if came:
        os.kill(os.getpid(), came[0])


def _folder(images: ImageSet, cache: Path) -> Path:
    return cache / images.identity[:24]


def _work(images: ImageSet, extractor: Extractor, cfg: EvaluateConfig, cache: Path) -> Work:
    return Work(_folder(images, cache) / f"{extractor.key}-{cfg.block}", images.count, cfg.block, cfg.batch)


def _reference(images: ImageSet, extractor: Extractor, work: Work, cfg: EvaluateConfig) -> Reference:
    """Moments and kept features of the second set, made once."""
    path = work.directory.with_name(f"{work.directory.name}-{cfg.reference_features}-{cfg.seed}.safetensors")
    if not path.with_suffix(".json").exists():
        options = {"keep": cfg.reference_features, "seed": cfg.seed}
        save_reference(path, work, extractor, split=SPLIT, images=images.identity, **options)
    return Reference(path, {**read_json(path.with_suffix(".json")), "split": Path(images.name).name})


def _against_statistics(
    extractor: Extractor, work: Work, second: Statistics, asked: Asked, cfg: EvaluateConfig
) -> Measured:
    """Frechet distances in the features that have as many dimensions as the statistics."""
    out, width = Measured(), len(second.moments.mean)
    reference = Published(
        Path(second.name), {"split": Path(second.name).name, "count": second.moments.count}, second.moments
    )
    for output, features in feature_sets(extractor).items():
        view = View(extractor, output, features.ending, work, asked, cfg, reference=reference, frechet=features.frechet)
        if output not in CLASS_OUTPUTS and view.samples.shape[1] == width:
            out.update(frechet(view))
    for details in out.details.values():
        details["images"] = [work.count, None]
        details.pop("dimensions", None)  # they say nothing of a singular covariance where the count is not known
    if not out.metrics:
        widths = {
            output: View(extractor, output, "", work, asked, cfg).samples.shape[1] for output in extractor.outputs
        }
        raise UserError(f"{second.name} has statistics of {width} features, {extractor.name} gives {widths}.")
    out.notes.append(f"{second.name} does not say of how many images it is, or how they were resized")
    return out


def _result(
    first: ImageSet,
    second: ImageSet | Statistics,
    measured: Measured,
    *,
    extractors: list[Extractor],
    cfg: EvaluateConfig,
) -> dict[str, Any]:
    notes = [*first.notes, *(second.notes if isinstance(second, ImageSet) else ())]
    cautions = caution(first.count, measured.metrics, measured.details)
    if first.identity == second.identity:
        notes.append("both sets are the same images: distances of it to itself are 0 but for rounding")
    return {
        **_asked(first, second, cfg),
        "extractors": {e.name: dict(e.protocol) for e in extractors},
        "metrics": measured.metrics,
        "details": measured.details,
        "notes": [*notes, *cautions, *measured.notes],
        "versions": versions(),
    }


def _asked(first: ImageSet, second: ImageSet | Statistics, cfg: EvaluateConfig) -> dict[str, Any]:
    """What a result is of."""
    count = second.count if isinstance(second, ImageSet) else None
    return {
        "run": "score",
        "samples": {"set": first.name, "count": first.count, "identity": first.identity},
        "data": {SPLIT: {"set": second.name, "count": count, "identity": second.identity}},
        "size": list(first.size),
        "settings": cfg.model_dump(mode="json"),
    }


def write_csv(path: Path, result: dict[str, Any]) -> None:
    """One row a metric: metric, value, low and high of its 95% interval, standard deviation; empty where unknown."""
    with atomic_path(path) as partial, partial.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("metric", "value", "low", "high", "std", "a", "b"))
        for name, value in result["metrics"].items():
            facts = result["details"].get(name, {})
            known = [facts.get(key, "") for key in ("low", "high", "std")]
            rows.writerow((name, repr(value), *known, result["samples"]["set"], result["data"][SPLIT]["set"]))


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/mudi/score`, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mudi" / "score"


def main(argv: list[str]) -> int:
    """Score the images of A against those of B, the reference."""
    parser = argparse.ArgumentParser(
        prog="mudi score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="mudi score fakes/ photos.zip evaluate.inception.weights=inception.pth --json scores.json",
    )
    parser.add_argument("a", metavar="A", type=Path, help="the images to score")
    parser.add_argument("b", metavar="B", type=Path, help="the reference")
    parser.add_argument("--size", type=int, help="cut out each image's central square and resize it to SIZE pixels")
    parser.add_argument("--json", type=Path, help="also write everything that was measured into this file")
    parser.add_argument("--csv", type=Path, help="also write one row a metric into this file")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="features (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="print what would be scored, and compute nothing")
    parser.add_argument("--part", metavar="k/n", help="compute this share of the features alone, and write no result")
    options, rest = parser.parse_known_args(argv)
    cfg = _checked(options, rest)
    first, second = open_sets(options.a, options.b, size=options.size)
    if isinstance(first, Statistics):
        raise UserError(f"{options.a} has statistics, not images. A is what is scored; B may be statistics.")
    _refuse_two_sizes(first, second)
    _refuse_single(first, second, cfg)
    if options.check:
        print(json.dumps(_asked(first, second, cfg), indent=2 if sys.stdout.isatty() else None))
        return 0
    part = None if options.part is None else parse_part(options.part)
    result = score(first, second, cfg, cache=options.cache, part=part)
    if result is None:
        return 0
    if options.size is not None:
        result["notes"].append(f"every image: its central square, resized to {options.size} pixels by Lanczos")
    show(result)
    for protocol in result["extractors"].items():
        print(f"{protocol[0]}: {_protocol(protocol[1])}")
    if options.json is not None:
        write_json(options.json, result)
    if options.csv is not None:
        write_csv(options.csv, result)
    for path in filter(None, (options.json, options.csv)):
        print(f"written: {path}")
    print(f"kept for the next call: {options.cache} (features of both sets; --cache=FOLDER puts them elsewhere)")
    sys.stdout.flush()
    return 0


def _checked(options: argparse.Namespace, overrides: list[str]) -> EvaluateConfig:
    """The settings. What is wrong with the command line is said in one go, before anything is computed."""
    problems = [f"{path} does not exist. Expected {KINDS}." for path in (options.a, options.b) if not path.exists()]
    for name, path in (("--json", options.json), ("--csv", options.csv)):
        if path is not None:
            folder = path.absolute().parent
            if not folder.exists():
                problems.append(f"{name}: found '{path}', but there is no folder '{folder}'. Make it first.")
            elif path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
                problems.append(f"{name}: found '{path}', expected a file that can be written.")
    try:
        cfg = settings_from(overrides)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(listed(problems))
    return cfg


def _protocol(facts: Any) -> str:
    """What decides the numbers, in one line. Of a hash, the first digits do."""
    known = {key: str(value) for key, value in facts.items() if isinstance(value, str | int)}
    return ", ".join(f"{key} {v[:12] if re.fullmatch('[0-9a-f]{40,}', v) else v}" for key, v in known.items())
