"""A look at finished shards: verify reads everything again and names what is wrong by shard and sample; inspect shows
counts, classes, protocol and a contact sheet.
"""

import functools
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from data_prep.shard import shards_directory
from data_prep.stage import cores, finished, run_parallel
from pipeline.config.prepared import KINDS
from pipeline.config.schema import Config
from pipeline.data.shards import INDEX, ShardDirectory, open_shards
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import read_json, read_lines, sha256_file, write_json
from pipeline.runtime.progress import progress

REPORT = "verified.json"
SHEET = "contact_sheet.png"


def run(cfg: Config, *, workers: int | None = None) -> Mapping[str, Any]:
    """Verify every split of `cfg.data` once; done before for the same bytes, it is not done again."""
    directory = shards_directory(cfg)
    receipt = finished(directory)
    if receipt is None:
        raise Incomplete(f"{directory} is not finished. Run `mudi prepare shard` with the same overrides first.")
    if (directory / REPORT).exists() and read_json(directory / REPORT)["splits"] == receipt["splits"]:
        report: dict[str, Any] = read_json(directory / REPORT)
        return report
    found = {split: verify_directory(directory / split, workers=workers) for split in receipt["splits"]}
    report = {"splits": receipt["splits"], "verified": found}
    write_json(directory / REPORT, report)
    return report


def verify_directory(path: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Re-read one shard directory: every byte is hashed, every sample decoded and compared with index and manifest.

    Returns counts. What is wrong raises `Incomplete` with all the problems found, the first ten in words.
    """
    directory = open_shards(path)
    numbers = range(len(directory.manifest.shards))
    work = functools.partial(check_shard, path)
    problems: list[str] = []
    means: dict[int, Any] = {}
    with progress(f"verify {path.name}", directory.manifest.count) as tick:
        for number, count, sums, found in run_parallel(work, numbers, workers=workers or cores()):
            problems += found
            means[number] = sums
            tick(count)
    problems += _check_moments(directory, np.sum([means[number] for number in sorted(means)], axis=0))
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in sorted(problems)[:10])
        raise Incomplete(f"{path} is damaged: {len(problems)} problems.\n{shown}\nDelete it and shard again.")
    return {"count": directory.manifest.count, "shards": len(numbers), "sha256": directory.manifest.sha256}


def check_shard(path: Path, number: int) -> tuple[int, int, list[float], list[str]]:
    """One shard of a directory: its number, samples, sums per channel, and what is wrong with it."""
    directory = open_shards(path)
    shard = directory.manifest.shards[number]
    file = directory.shard_path(number)
    rows = directory.index[directory.index["shard"] == number]
    problems = []
    if sha256_file(file) != shard["sha256"]:
        problems.append(f"{file.name}: its sha256 is not the manifest's")
    if len(rows) != shard["count"]:
        problems.append(f"{file.name}: {len(rows)} rows in the index, {shard['count']} in the manifest")
    sums = np.zeros(directory.manifest.shape[0])
    try:
        for value, problem in _samples(directory, file, rows):
            sums += value
            problems += problem
    except (tarfile.TarError, OSError) as error:
        problems.append(f"{file.name}: not a readable tar: {error}")
    return number, len(rows), sums.tolist(), problems


def _samples(directory: ShardDirectory, file: Path, rows: Any) -> Iterator[tuple[Any, list[str]]]:
    """Per sample: sums over its pixels per channel, and what is wrong. The tar is read by `tarfile`, not by us."""
    layout = directory.manifest.layout
    axes = (1, 2) if layout.kind == "latents" else (0, 1)
    with tarfile.open(file, "r:") as archive, file.open("rb") as raw:
        members = archive.getmembers()
        if len(members) != 2 * len(rows):
            yield 0.0, [f"{file.name}: {len(members)} members for {len(rows)} samples, expected two each"]
        for row, image, text in zip(rows, members[::2], members[1::2], strict=False):
            inside = image.offset_data + image.size - int(row["size"])
            raw.seek(int(row["offset"]))
            try:
                values = layout.decode(raw.read(int(row["size"])))
            except (Incomplete, ValueError) as error:
                yield 0.0, [f"{file.name}/{image.name}: {error}"]
                continue
            content = archive.extractfile(text)
            label = json.loads(content.read() if content else b"{}").get("label")
            problems = [] if inside == row["offset"] else [f"{file.name}/{image.name}: the index points elsewhere"]
            if (-1 if label is None else label) != row["label"]:
                problems.append(f"{file.name}/{text.name}: label {label}, the index says {row['label']}")
            yield values.sum(axis=axes, dtype=np.float64), problems


def _check_moments(directory: ShardDirectory, sums: Any) -> list[str]:
    manifest = directory.manifest
    if directory.index.dtype != INDEX or not manifest.count:
        return []
    mean = np.asarray(sums) / (manifest.count * manifest.shape[1] * manifest.shape[2])
    mean = mean / 127.5 - 1 if manifest.kind == "images" else mean
    if np.allclose(mean, manifest.mean, rtol=1e-9, atol=1e-9):
        return []
    return [f"manifest.json: mean {manifest.mean}, found {mean.tolist()}"]


def inspect(directory: Path, *, console: Console, rows: int = 10, columns: int = 16) -> list[Path]:
    """Print what lies in a data, shards or shard directory, and write a contact sheet into each split; its path."""
    splits = find_splits(directory)
    for split in splits:
        shards = open_shards(split)
        _print_split(shards, console)
        contact_sheet(shards, rows=rows, columns=columns)
        console.print(f"contact sheet: {split / SHEET}")
    print_rejected(splits[0].parent, console)
    return [split / SHEET for split in splits]


def find_splits(directory: Path) -> list[Path]:
    """The shard directories in, or one or two levels below, a directory."""
    patterns = ("manifest.json", "*/manifest.json", "shards/*/manifest.json")
    found = sorted(path.parent for pattern in patterns for path in directory.glob(pattern))
    if not found:
        raise UserError(
            f"'{directory}' holds no finished shards (no manifest.json in it, in its folders or in shards/). "
            "Give the directory that `mudi prepare all` printed."
        )
    return found


def contact_sheet(shards: ShardDirectory, *, rows: int, columns: int) -> Path:
    """Write images spread evenly over each class, one class a row with its name where there are labels, large enough to
    look at; its path."""
    from pipeline.data.pictures import class_names, write_picture  # loads torch

    manifest = shards.manifest
    if manifest.kind != "images":
        raise UserError(f"{shards.path} holds latents, which are not pictures. Inspect the images they were made from.")
    channels, height, width = manifest.shape
    chosen = _chosen(shards, rows, columns)
    chosen += [-1] * (-len(chosen) % columns)
    blank = np.full((height, width, channels), 255, np.uint8)
    images = np.stack([blank if index < 0 else read_image(shards, index) for index in chosen])
    labels = [[int(shards.index[k]["label"]) for k in row if k >= 0] for row in np.reshape(chosen, (-1, columns))]
    shown = [row[0] if len(set(row)) == 1 else -1 for row in labels]  # -1: a row of several classes
    names = class_names(manifest.classes, shown) if manifest.classes else []
    return write_picture(shards.path / SHEET, images, columns=columns, names=names)


def read_image(shards: ShardDirectory, index: int) -> npt.NDArray[np.uint8]:
    """Image number `index` of a directory, uint8 [H, W, C]."""
    row = shards.index[index]
    with shards.shard_path(int(row["shard"])).open("rb") as file:
        file.seek(int(row["offset"]))
        pixels: npt.NDArray[np.uint8] = shards.manifest.layout.decode(file.read(int(row["size"])))
    return pixels


def _chosen(shards: ShardDirectory, rows: int, columns: int) -> list[int]:
    """Index per cell, -1 for an empty one. Classes too small to fill half a row each follow one another."""
    labels = np.asarray(shards.index["label"])
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1 or np.median(counts) < columns / 2:
        return list(map(int, np.argsort(labels, kind="stable")[_spread(len(labels), rows * columns)]))
    cells: list[int] = []
    for label in classes[_spread(len(classes), rows)]:
        members = np.flatnonzero(labels == label)
        picked = members[_spread(len(members), columns)].tolist()
        cells += picked + [-1] * (columns - len(picked))
    return cells


def _spread(count: int, wanted: int) -> npt.NDArray[np.intp]:
    """At most `wanted` numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.intp))


def _print_split(shards: ShardDirectory, console: Console) -> None:
    manifest = shards.manifest
    console.print(shards.path, highlight=False, markup=False, soft_wrap=True)
    table = Table(show_header=False)
    size = sum(shard["bytes"] for shard in manifest.shards)
    for name, value in {
        "protocol": f"{manifest.protocol['name']} ({manifest.protocol['hash'][:8]})",
        "split": manifest.split,
        "images": f"{manifest.count} in {len(manifest.shards)} shards, {size / 2**20:.1f} MiB",
        "form": f"{manifest.encoding} {'x'.join(map(str, manifest.shape))}",
        "mean": " ".join(f"{value:.4f}" for value in manifest.mean),
        "std": " ".join(f"{value:.4f}" for value in manifest.std),
        "classes": f"{len(manifest.classes)}",
        "attributes": f"{len(manifest.attributes)}",
        "sha256": manifest.sha256,
    }.items():
        table.add_row(name, value)
    console.print(table)
    print_classes(list(zip(manifest.classes, manifest.class_counts, strict=True)), console)


def print_rejected(directory: Path, console: Console, before: str = "") -> None:
    """What a finished directory of shards did not take from its source, and what it converted, with examples."""
    for what, explain in (("rejected", KINDS), ("converted", {})):
        counts: dict[str, int] = (finished(directory) or {}).get(what, {})
        examples: dict[str, list[str]] = {kind: [] for kind in counts}
        for row in read_lines(directory / f"{what}.jsonl") if counts else ():
            keys = examples.get(row["kind" if what == "rejected" else "converted"], [])
            if len(keys) < 3:
                keys.append(row["key"])
        for kind, count in counts.items():
            shown = ", ".join(examples[kind]) + (", ..." if count > len(examples[kind]) else "")
            about = f" ({explain[kind]})" if kind in explain else ""
            console.print(f"{before}{what}: {count} x {kind}{about}: {shown}", highlight=False, markup=False)
        if counts:
            console.print(f"{before}{what}: all {sum(counts.values())} are listed in {directory / what}.jsonl")


def print_classes(counts: Sequence[tuple[str, int]], console: Console, before: str = "") -> None:
    """Classes in the order of their labels, with counts; the first 30."""
    most = max((count for _, count in counts), default=0)
    for number, (name, count) in enumerate(counts[:30]):
        bar = "█" * round(30 * count / max(most, 1))
        console.print(f"{before}  {number:4d} {name:>24} {count:7d} {bar}", highlight=False, markup=False)
    if len(counts) > 30:
        console.print(f"{before}  and {len(counts) - 30} more classes")
