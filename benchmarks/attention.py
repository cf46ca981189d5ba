"""What self-attention is worth where something far away decides: letters that stand twice in an image, in two corners.

The demo's letters, 10 px, in the upper left and again in the lower right corner of 24 px, drawn by a U-Net of two
resolutions with self-attention at 12 px and without it, at equal images seen. Prints for each seed the validation loss,
domain FD, and how much the two corners of a sample differ: 0 in the data, 1 if they had nothing to do with each other
(the mean difference of two corners over that of corners of different samples). The grids lie with the samples.

    python benchmarks/attention.py --seeds 0 1 2 --work /tmp/attention
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.data.reader import Reader  # noqa: E402
from pipeline.data.shards import open_shards  # noqa: E402

SIZE, LETTER = 24, 10
VERSIONS = {"attention": "[12]", "none": "[]"}


def main() -> None:
    """Draw the images, then train, sample and score both versions for each seed; called again, it goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images-seen", default="64 kimg", help="10 minutes of one core for each training")
    parser.add_argument("--samples", type=int, default=1000)
    place = Path(tempfile.gettempdir()) / "mudi-attention"
    parser.add_argument("--work", type=Path, default=place, help="for data and runs")
    options = parser.parse_args()
    common = [
        "experiment=photos16",
        f"data_dir={options.work}/data",
        f"runs_dir={options.work}/runs",
        f"data.source.path={pairs(options.work)}",
        "data.name=pairs",
        f"data.image_size={SIZE}",
        "data.channels=1",
        "model.condition=none",
        "model.width=32",
        "model.multipliers=[1,1]",
        "train.flip=false",
        f"train.duration={options.images_seen}",
        "train.global_batch=32",
        "train.precision=bf16",
        "train.optim.kind=muon",
        "train.optim.lr=3e-3",
        "train.optim.warmup=1 kimg",
        "train.validate_every=4 kimg",
        "train.preview_every=null",
        f"sample.count={options.samples}",
        "sample.sampler.guidance.scale=1",
        "sample.sampler.steps=12",
    ]
    call("data_prep", "all", *common, "model.attention=[]")
    for seed in options.seeds:
        for version, resolutions in VERSIONS.items():
            name = f"{version}-s{seed}"
            call("pipeline", "train", *common, f"model.attention={resolutions}", f"seed={seed}", f"name={name}")
            call("pipeline", "sample", f"{options.work}/runs/{name}")
            call("pipeline", "evaluate", f"{options.work}/runs/{name}")
            print(json.dumps({"run": name} | findings(options.work / "runs" / name)), flush=True)


def pairs(work: Path) -> Path:
    """A folder for each letter with its images: the demo's, shrunk, in both corners."""
    folder = work / "pairs"
    if folder.exists():
        return folder
    call("data_prep", "all", "experiment=glyphs16", f"data_dir={work}/data")
    (source,) = (work / "data").glob("glyphs16-*/shards/train")
    shards = open_shards(source)
    labels = np.asarray(shards.index["label"])
    for k, image in enumerate(read(source)):
        letter = np.asarray(Image.fromarray(image).resize((LETTER, LETTER), Image.Resampling.LANCZOS))
        canvas = np.zeros((SIZE, SIZE), np.uint8)
        canvas[:LETTER, :LETTER] = canvas[-LETTER:, -LETTER:] = letter
        target = work / "pairs.partial" / shards.manifest.classes[labels[k]] / f"{k:05d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas).save(target)
    (work / "pairs.partial").rename(folder)
    return folder


def read(source: Path) -> NDArray[np.uint8]:
    """All images of shards of one channel: [N, H, W]."""
    shards = open_shards(source)
    count = shards.manifest.count
    images = np.asarray(Reader(shards).read(np.arange(count)))
    return images.reshape(count, *shards.manifest.layout.shape[1:])


def findings(run_dir: Path) -> dict[str, object]:
    """What a finished run has to say."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (result,) = (run_dir / "results").glob("*.json")
    (samples,) = run_dir.glob("samples/*/*/manifest.json")
    images = read(samples.parent).astype(float)
    upper, lower = images[:, :LETTER, :LETTER], images[:, -LETTER:, -LETTER:]
    apart = np.abs(upper - np.roll(lower, 1, axis=0)).mean()
    return {
        "validation loss": round([line["valid/loss"] for line in lines if "valid/loss" in line][-1], 4),
        "fd-domain": round(json.loads(result.read_text())["metrics"]["fd-domain"], 4),
        "difference of the corners": round(np.abs(upper - lower).mean() / apart, 3),
    }


def call(module: str, *argv: str) -> None:
    """One command on one core."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", module, *argv], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    main()
