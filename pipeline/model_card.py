"""The model card of an export: README.md as model hubs read it, from what the run's own files say.

Pushing is the user's: `hf upload USER/NAME FOLDER`.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.paths import protocol_hash
from pipeline.config.registry import known_metric
from pipeline.config.schema import Config
from pipeline.config.schema_sources import HubSource, IdxSource, Source
from pipeline.runtime.files import atomic_path, lines_backwards, read_json, read_lines, write_text
from pipeline.runtime.numbers_text import legend, shown
from pipeline.runtime.run_dir import RunDir

CARD, PICTURE = "README.md", "samples.png"
MOST_NAMES = 20  # of classes
# What is known of the licence of images, by the kind of their source; of idx files by the name of the data set.
_LICENCES = {
    "glyphs": "The letters are drawn from fonts, each with a licence of its own.",
    "celeba": "CelebA may be used for non-commercial research only, and shows real people.",
    "cifar10": "The authors of CIFAR-10 state no licence; its images were collected from the web.",
    "flowers102": "The authors of Oxford Flowers 102 state no licence; its images were collected from the web.",
    "lsun": "The authors of LSUN state no licence; its images were collected from the web.",
    "fashion": "Fashion-MNIST has the MIT licence.",
    "mnist": "MNIST was made from handwriting that NIST collected. Look up its licence before you publish this model.",
}
_OWN = "What may be done with the training images was not recorded. Say it here before you publish this model."

_PAGE = "`mudi demo FOLDER` opens a page that draws with it."


def write_card(cfg: Config, run: RunDir, folder: Path, *, step: int, form: str, classes: Sequence[str] = ()) -> Path:
    """Write README.md, and the grid of a sample set of this step beside it, into an exported folder; its path.

    Args:
        classes: the names of what a model of classes is asked for.
    """
    grid = max(run.samples(step).glob("*/grid.png"), key=lambda path: path.stat().st_mtime, default=None)
    if grid is not None:
        with atomic_path(folder / PICTURE) as partial:
            shutil.copy(grid, partial)
    facts: dict[str, Any] = {"license": "other", "license_name": "see-the-training-data"}
    facts["tags"] = ["diffusion", cfg.model.kind, cfg.data.name]
    if cfg.model.is_a != "autoencoder":  # hubs have a task for models that are asked for nothing, and none for others
        task = (
            "unconditional-image-generation" if cfg.model.condition == "none" else f"{cfg.model.condition}-conditional"
        )
        facts["tags"] += [task]
        facts |= {"pipeline_tag": task} if cfg.model.condition == "none" else {}
    if form == "diffusers":
        facts["library_name"] = "diffusers"
    head = f"---\n{yaml.safe_dump(facts, sort_keys=True)}---\n"
    parts = _sections(cfg, run, step=step, form=form, picture=grid is not None, classes=classes)
    write_text(folder / CARD, head + "".join(f"\n{part}\n" for part in parts))
    return folder / CARD


def _sections(
    cfg: Config, run: RunDir, *, step: int, form: str, picture: bool, classes: Sequence[str]
) -> Iterator[str]:
    size, channels = cfg.data.image_size, cfg.data.channels
    yield f"# {cfg.name}"
    yield f"A {cfg.model.kind} for {size} x {size} images with {channels} channel(s), conditioned on {_condition(cfg)}."
    if picture:
        yield f"![Samples]({PICTURE})"
    yield "## Use"
    if form == "diffusers" and cfg.model.is_a != "autoencoder":
        yield f"{_lines(cfg, classes)}\n\n{_PAGE} Or `mudi import FOLDER name={cfg.name} data=...`."
    else:
        page = "" if cfg.model.is_a == "autoencoder" else f"{_PAGE} "
        yield f"{page}`mudi import FOLDER name={cfg.name} data=...` makes a run of it."
    yield "## Data"
    yield (
        f"Protocol `{cfg.data.name}`, hash `{protocol_hash(cfg.data)[:16]}`, from a source of kind "
        f"`{cfg.data.source.kind}`: {size} px, split by `{cfg.data.split.rule}`, stored as {cfg.data.encoding}."
    )
    yield f"**Licence of the images.** {_licence(cfg.data.source)}"
    yield "## Training"
    yield _recipe(cfg, run, step)
    yield f"Cost: {_cost(run)}."
    yield "## Results"
    yield _results(run, step)
    yield "## Intended use and limits"
    yield (
        "For research and teaching. The model draws what its training images show, with their biases, and nothing "
        "else; it was not checked for anything but the numbers above. Samples may resemble training images: see "
        "`copy-rate`, where it was measured."
    )


def _lines(cfg: Config, classes: Sequence[str]) -> str:
    """Lines of Python that draw, and how a class is asked for."""
    asked, said = f"batch_size=4, num_inference_steps={cfg.sample.sampler.steps}", ""
    if cfg.model.condition == "class":
        names = [f"{number} is {name}" for number, name in enumerate(classes[:MOST_NAMES])]
        names += [f"and so on: `class_names` in settings.json has all {len(classes)}"] * (len(classes) > MOST_NAMES)
        asked, said = f"class_labels={[*range(len(classes))][:2]}", f"\n\nA number for each image: {', '.join(names)}."
    return (
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)\n"
        f"for number, image in enumerate(pipe({asked}).images):\n"
        f'    image.save(f"{{number}}.png")\n```{said}'
    )


def _licence(source: Source) -> str:
    if isinstance(source, HubSource):
        return f"The page of `{source.name}` at the hub says it. {_OWN}"
    return _LICENCES.get(source.dataset if isinstance(source, IdxSource) else source.kind, _OWN)


def _condition(cfg: Config) -> str:
    return {"none": "nothing", "class": "a class"}.get(cfg.model.condition, cfg.model.condition)


def _recipe(cfg: Config, run: RunDir, step: int) -> str:
    train, optim, starts = cfg.train, cfg.train.optim, read_lines(run.starts)
    rows = {
        "steps": f"{step:,} of {train.global_batch} images ({train.duration} were asked for)",
        "optimiser": f"{optim.kind}, lr {optim.lr:g}, {optim.schedule}, warm-up {optim.warmup}",
        "precision": train.precision,
        "weights": f"{cfg.sample.weights}, half-life {train.ema.half_life}",
        "seed": f"{cfg.seed}",
    }
    if starts:
        rows |= {"parameters": f"{starts[-1]['parameters'] / 1e6:.1f} M", "commit": f"{starts[-1]['commit']}"}
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _cost(run: RunDir) -> str:
    """Hours of all starts times their processes, on which devices."""
    starts = read_lines(run.starts)
    if not starts:
        return "not recorded"
    newest = next((row for _, line in lines_backwards(run.metrics) if (row := _row(line))), {})
    ends = [float(start["earlier_seconds"]) for start in starts[1:]]
    last = max(float(newest.get("time", 0.0)) - float(starts[-1]["time"]), 0.0)
    ends.append(float(starts[-1]["earlier_seconds"]) + last)
    hours: dict[str, float] = {}
    for start, end in zip(starts, ends, strict=True):
        device = start.get("device", "an unknown device")
        seconds = (end - float(start["earlier_seconds"])) * start["world_size"]
        hours[device] = hours.get(device, 0.0) + seconds / 3600
    return ", ".join(
        f"{number:.2g} {'CPU process' if device.startswith('cpu') else 'GPU'} hours on {device}"
        for device, number in hours.items()
    )


def _row(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # a line that a kill cut short
        return {}
    return found if isinstance(found, dict) and "time" in found else {}


def _results(run: RunDir, step: int) -> str:
    """A table for each result of this step, with the protocol that it was measured by."""
    parts = []
    for path in sorted(run.results.glob(f"{step:09d}-*.json")):
        result = read_json(path)
        if "samples" not in result or "extractors" not in result:
            continue
        rows = ["| number | value | better |", "| --- | --- | --- |"]
        for name, value in result["metrics"].items():
            kind = known_metric(name)
            better = {"minimize": "lower", "maximize": "higher"}.get(kind.direction or "" if kind else "", "")
            rows.append(f"| {name} | {shown(value, result['details'].get(name, {}))} | {better} |")
        against = ", ".join(f"{facts['count']} images of {split}" for split, facts in result["data"].items())
        networks = ", ".join(f"{name} {_short(facts)}" for name, facts in result["extractors"].items())
        parts.append(
            f"`{result['samples']['set']}`: {result['samples']['count']} samples against {against}; features of "
            f"{networks or 'no network'}; versions {_short(result['versions'])}.\n\n" + "\n".join(rows)
        )
        told = (*legend(result["metrics"], result["details"]), *result.get("notes", ()))
        parts += ["\n".join(f"- {sentence}" for sentence in told)] if told else []
    return "\n\n".join(parts) or "Not measured."


def _short(facts: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{k} {str(v)[:12]}" for k, v in facts.items() if isinstance(v, str | int)) + ")"
