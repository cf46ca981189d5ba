"""Read everything again: hashes, members, decoding, labels, moments. What is wrong is named by shard and sample."""

import functools
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.parallel import cores, run_parallel
from data_prep.shard import shards_directory
from data_prep.stage import finished
from pipeline.config.schema import Config
from pipeline.data.shards import INDEX, ShardDirectory, open_shards
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import read_json, sha256_file, write_json
from pipeline.runtime.progress import progress

REPORT = "verified.json"


def run(cfg: Config, *, workers: int | None = None) -> Mapping[str, Any]:
    """Verify every split of `cfg.data` once; done before for the same bytes, it is not done again."""
    directory = shards_directory(cfg)
    receipt = finished(directory)
    if receipt is None:
        raise Incomplete(f"{directory} is not finished. Run `python -m data_prep shard` with the same words first.")
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
