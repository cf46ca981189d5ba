"""Images to shards: this project beside what people use instead, on the same files, in turn, in one run.

    python benchmarks/data_prep_speed.py [--images 14000] [--rounds 3] [--img2dataset PATH]

(a) the loop most people write: Pillow opens, crops and resizes, webdataset.ShardWriter writes PNG; (b) img2dataset on
local files, where its command is given (it wants older packages than ours: install it in an environment of its own);
(c) datasets.map with as many processes as ours has. Ours counts from the listing to verified-readable shards with
manifest, start of its processes included. Images: MUDI_SHARED (default ../shared)/data. Prints medians and ratios to
(a); CPU is processor time per image, which does not depend on what else the machine does.
"""

import argparse
import io
import os
import resource
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.shards import open_shards

SHARED = Path(os.environ.get("MUDI_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
SETS = {"celeba": ("celeba7k_89x109.tar", 89), "flowers": ("102flowers_sample.tgz", None)}
SIZE = 64


def unpack(name: str, folder: Path, count: int) -> list[Path]:
    """`count` JPEG files; where the archive has fewer, again under other names."""
    folder.mkdir(parents=True)
    with tarfile.open(SHARED / SETS[name][0]) as archive:
        files = [archive.extractfile(member) for member in archive if member.name.endswith(".jpg")]
        contents = [file.read() for file in files if file]
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    return paths


def exact(image: Image.Image, side: int | None) -> Image.Image:
    """The protocol: the central square, Lanczos."""
    image = image.convert("RGB")
    side = side or min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def loop(paths: list[Path], out: Path, side: int | None) -> None:
    """(a)"""
    import webdataset

    out.mkdir()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=4096, verbose=0) as sink:
        for path in paths:
            sink.write({"__key__": path.stem, "png": exact(Image.open(path), side), "json": {"label": None}})


def img2dataset(command: str, paths: list[Path], out: Path) -> None:
    """(b)"""
    urls = out.with_suffix(".txt")
    urls.write_text("\n".join(f"file://{path}" for path in paths))
    options = ["--resize_mode=center_crop", f"--image_size={SIZE}", "--output_format=webdataset", "--encode_format=png"]
    workers = ["--processes_count=2", "--thread_count=8", "--number_sample_per_shard=4096", "--encode_quality=3"]
    lines = [command, f"--url_list={urls}", f"--output_folder={out}", *options, *workers]
    subprocess.run(lines, check=True, capture_output=True, env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"})


def datasets_map(paths: list[Path], out: Path, side: int | None) -> None:
    """(c)"""
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", datasets.Image())
    rows.map(_crop_row, fn_kwargs={"side": side}, num_proc=2, cache_file_name=str(out) + ".arrow")


def _crop_row(row: dict, side: int | None) -> dict:
    return {"image": exact(row["image"], side)}


def ours(folder: Path, out: Path, side: int | None, *overrides: str) -> Path:
    """The listing and the shards of a folder, with two processes."""
    from data_prep import listing, shard  # here, as every worker imports this file anew
    from data_prep.commands import data_config
    from pipeline.config.paths import data_directory

    crop = [f"data.crop.size={side}"] if side else []
    cfg = data_config(
        [
            "data=folder", f"data_dir={out}", f"data.source.path={folder}", f"data.image_size={SIZE}",
            f"data.images_per_shard={max(len(list(folder.iterdir())) // 20, 1)}", "data.split.valid=0", *crop,
            *overrides,
        ]
    )  # fmt: skip
    listing.run(cfg)
    shard.run(cfg, workers=2)
    return data_directory(cfg) / "shards" / "train"


def psnr(train: Path, paths: list[Path], side: int | None) -> tuple[float, float]:
    """Of the whole set, and of the worst image, against the exact protocol; inf where all pixels are equal."""
    shards = open_shards(train)
    errors = []
    for row, path in list(zip(shards.index, paths, strict=True))[:400]:
        content = shards.shard_path(int(row["shard"])).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        wanted = np.asarray(exact(Image.open(io.BytesIO(path.read_bytes())), side)).astype(float)
        errors.append(((shards.manifest.layout.decode(content) - wanted) ** 2).mean())
    with np.errstate(divide="ignore"):
        whole, worst = 10 * np.log10(255**2 / np.array([np.mean(errors), np.max(errors)]))
    return float(whole), float(worst)


def measured(run: Callable[[], object], count: int) -> tuple[float, float]:
    """Images per second, and processor milliseconds per image (children included)."""
    before, start = _processor_seconds(), time.perf_counter()
    run()
    return count / (time.perf_counter() - start), 1000 * (_processor_seconds() - before) / count


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare(name: str, count: int, *, rounds: int, command: str | None) -> None:
    """Every contender in turn, `rounds` times; a table of medians."""
    side = SETS[name][1]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        paths = unpack(name, root / "images", count)
        runs: dict[str, Callable[[Path], object]] = {
            "(a) Pillow and ShardWriter": lambda out: loop(paths, out, side),
            "(c) datasets.map, 2 processes": lambda out: datasets_map(paths, out, side),
            "ours, png, 2 processes": lambda out: ours(root / "images", out, side),
            "ours, raw, 2 processes": lambda out: ours(root / "images", out, side, "data.encoding=raw"),
        }
        if side is None:
            quick = ("data.crop.shrink_on_load=true",)
            runs["ours, png, shrink on load"] = lambda out: ours(root / "images", out, side, *quick)
        if command:
            runs["(b) img2dataset, 2 processes"] = lambda out: img2dataset(command, paths, out)
        found: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
        for turn in range(rounds):
            for label, run in runs.items():
                out = root / f"out{turn}"
                found[label].append(measured(lambda run=run, out=out: run(out), count))  # type: ignore[misc]
                if label.startswith("ours") and not turn:
                    train = next(out.glob("folder-*/shards/train"))
                    whole, worst = psnr(train, paths, side)
                    print(f"  {label}: PSNR to the exact protocol {whole:.1f} dB, worst image {worst:.1f} dB")
                shutil.rmtree(out, ignore_errors=True)
    base = statistics.median(rate for rate, _ in found["(a) Pillow and ShardWriter"])
    base_cpu = statistics.median(cpu for _, cpu in found["(a) Pillow and ShardWriter"])
    print(f"{name}: {count} files, median of {rounds}")
    for label, values in found.items():
        rate, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"  {label:32}{rate:7.0f}/s {rate / base:5.2f} x (a)   CPU {cpu:6.3f} ms {base_cpu / cpu:5.2f} x (a)")


def main() -> None:
    """Print the comparison for both kinds of files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=14000, help="CelebA-like files; a fifth as many Flowers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--img2dataset", help="path of its command")
    args = parser.parse_args()
    for name in args.sets:
        compare(
            name, args.images if name == "celeba" else args.images // 5, rounds=args.rounds, command=args.img2dataset
        )


if __name__ == "__main__":
    main()
