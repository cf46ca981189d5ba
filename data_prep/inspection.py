"""A look at a shard directory: counts, classes, protocol, and a contact sheet."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from data_prep.reasons import KINDS
from data_prep.stage import finished
from pipeline.data.shards import ShardDirectory, open_shards
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import atomic_path

SHEET = "contact_sheet.png"


def inspect(directory: Path, *, console: Console, rows: int = 10, columns: int = 16) -> list[Path]:
    """Print what lies in a data, shards or shard directory, and write a contact sheet into each split; its path."""
    splits = find_splits(directory)
    for split in splits:
        shards = open_shards(split)
        _print_split(shards, console)
        with atomic_path(split / SHEET) as partial:
            contact_sheet(shards, rows=rows, columns=columns).save(partial, "PNG")
        console.print(f"contact sheet: {split / SHEET}")
    _print_rejected(splits[0].parent, console)
    return [split / SHEET for split in splits]


def find_splits(directory: Path) -> list[Path]:
    """The shard directories in, or one or two levels below, a directory."""
    patterns = ("manifest.json", "*/manifest.json", "shards/*/manifest.json")
    found = sorted(path.parent for pattern in patterns for path in directory.glob(pattern))
    if not found:
        raise UserError(
            f"'{directory}' holds no finished shards (no manifest.json in it, in its folders or in shards/). "
            "Give the directory that `python -m data_prep all` printed."
        )
    return found


def contact_sheet(shards: ShardDirectory, *, rows: int, columns: int) -> Image.Image:
    """Images spread evenly over each class, one class a row where there are labels; a gap of one pixel."""
    manifest = shards.manifest
    if manifest.kind != "images":
        raise UserError(f"{shards.path} holds latents, which are not pictures. Inspect the images they were made from.")
    channels, height, width = manifest.shape
    chosen = _chosen(shards, rows, columns)
    rows = -(-len(chosen) // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 128, dtype=np.uint8)
    for place, index in enumerate(chosen):
        top, left = (place // columns) * (height + 1), (place % columns) * (width + 1)
        if index >= 0:
            sheet[top : top + height, left : left + width] = read_image(shards, index)
    return Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)


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
    table = Table(title=str(shards.path), title_justify="left", show_header=False)
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
    most = max(manifest.class_counts, default=0)
    for name, count in list(zip(manifest.classes, manifest.class_counts, strict=True))[:30]:
        console.print(f"  {name:>24} {count:7d} {'█' * round(30 * count / max(most, 1))}", highlight=False)
    if len(manifest.classes) > 30:
        console.print(f"  and {len(manifest.classes) - 30} more classes")


def _print_rejected(directory: Path, console: Console) -> None:
    rejected = (finished(directory) or {}).get("rejected", {})
    for kind, count in rejected.items():
        console.print(f"rejected: {count} x {kind}: {KINDS.get(kind, '')}")
    if rejected:
        console.print(f"each with its reason in {directory / 'rejected.jsonl'}")
