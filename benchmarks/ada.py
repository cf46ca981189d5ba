"""Runs of one GAN on few images, with ADA and without: what the discriminator found, and what came of it.

Draws curves over images seen: the mean sign of the discriminator's scores of training images as it sees them (r_t), the
same of held-out images as they are, and how much samples differ, as a share of how much held-out images do (variance of
their pixels), both at each kept checkpoint; ADA's p, and domain FD while training. Below, samples of the same seeds by
the last kept checkpoint. Prints the numbers.

    python benchmarks/ada.py "with ADA=runs/bedrooms16_gan" "without=runs/bedrooms16_gan_plain" --out ada.jpg
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import checkpoint  # noqa: E402
from pipeline.config.paths import training_shards  # noqa: E402
from pipeline.config.schema import Config  # noqa: E402
from pipeline.data.batches import validation_batches  # noqa: E402
from pipeline.data.pictures import tile, to_uint8  # noqa: E402
from pipeline.data.reader import Reader  # noqa: E402
from pipeline.data.shards import open_shards, read_manifest  # noqa: E402
from pipeline.inference import loaded_objective  # noqa: E402
from pipeline.objectives.objective import Objective  # noqa: E402
from pipeline.runtime.run_dir import RunDir, existing_run  # noqa: E402

LOGGED = {
    "sign of training images": "discriminator/sign",
    "p": "discriminator/augmented",
    "domain FD": "in_loop/fd-domain",
}
PANELS = ("sign of training images", "p", "sign of held-out images", "variance of samples", "domain FD")
SHOWN, COLUMNS, MEASURED = 40, 10, 512
CPU = torch.device("cpu")
Curves = dict[str, list[tuple[int, float]]]


def main() -> None:
    """Read the runs, print their numbers, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", help="a name and a run directory: NAME=RUN")
    parser.add_argument("--out", type=Path, default=Path("ada.jpg"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: existing_run([run]) for name, _, run in (each.partition("=") for each in options.run)}
    curves = {name: _curves(*found) for name, found in runs.items()}
    for name, of in curves.items():
        for panel, points in of.items():
            print(name, panel, json.dumps([[images, round(value, 3)] for images, value in points]))
    _draw(options.out, curves, {name: _samples(*found) for name, found in runs.items()})


def _curves(run: RunDir, cfg: Config) -> Curves:
    """(images seen, value) for each panel: of the log, and of the kept checkpoints."""
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    batch = cfg.train.global_batch
    found = {panel: [(row["step"] * batch, row[key]) for row in rows if key in row] for panel, key in LOGGED.items()}
    shards = training_shards(cfg)
    reader = Reader(open_shards(shards / "valid"))
    whole = reader.count // batch * batch  # the discriminator sees groups of images: as many as in training
    parts = [part.to(CPU, torch.float32).images for part in validation_batches(reader, count=whole, batch=batch)]
    spread = torch.cat(parts).var(dim=0).sum()
    found |= {"sign of held-out images": [], "variance of samples": []}
    for step in filter(None, run.steps()):
        objective = loaded_objective(cfg, run, read_manifest(shards / "train"), step=step, device=CPU)
        network = objective.networks["discriminator"]
        weights, _ = checkpoint.load_weights(run, which="network", network="discriminator", step=step)
        checkpoint.load_strictly(network, weights, what=f"the discriminator of step {step}")
        with torch.no_grad():
            sign = torch.cat([network(part) for part in parts]).sign().mean()
        made = _made(objective, cfg, torch.arange(MEASURED)).clamp(-1, 1)
        found["sign of held-out images"].append((step * batch, float(sign)))
        found["variance of samples"].append((step * batch, float(made.var(dim=0).sum() / spread)))
    return found


@torch.no_grad()
def _made(objective: Objective, cfg: Config, seeds: Tensor) -> Tensor:
    """Samples of `seeds`: [B, C, H, W] in [-1, 1]."""
    networks: Any = objective.networks
    return objective.generate(networks, seeds, torch.full_like(seeds, -1), sampler=cfg.sample.sampler.alone)


def _samples(run: RunDir, cfg: Config) -> NDArray[np.uint8]:
    """Samples of the first seeds by the last checkpoint's EMA, in rows."""
    train = read_manifest(training_shards(cfg) / "train")
    objective = loaded_objective(cfg, run, train, step=None, device=CPU)
    return tile(to_uint8(_made(objective, cfg, torch.arange(SHOWN))), columns=COLUMNS)


def _draw(path: Path, curves: dict[str, Curves], samples: dict[str, NDArray[np.uint8]]) -> None:
    """One row of curves, one of samples."""
    figure = Figure(figsize=(13, 4.4), dpi=85, layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for place, panel in zip(upper.subplots(1, len(PANELS)), PANELS, strict=True):
        for number, (name, of) in enumerate(curves.items()):
            if of[panel]:
                images, values = zip(*of[panel], strict=True)
                place.plot([seen / 1000 for seen in images], values, color=f"C{number}", label=name, linewidth=1.2)
        place.set_title(panel, fontsize=9)
        place.tick_params(labelsize=8)
        place.set_xlabel("thousand images seen", fontsize=8)
        place.grid(alpha=0.3)
        if panel == PANELS[0]:
            place.legend(fontsize=8)
    for place, (name, picture) in zip(
        lower.subplots(1, len(samples), squeeze=False).flat, samples.items(), strict=True
    ):
        place.imshow(picture, interpolation="nearest")
        place.set_title(name, fontsize=9)
        place.set_axis_off()
    figure.savefig(path)


if __name__ == "__main__":
    main()
