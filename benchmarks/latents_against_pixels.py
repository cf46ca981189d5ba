"""Diffusion of latents against diffusion of pixels: one core for so many minutes each, the autoencoder included.

Both sides are the same kind of U-Net on the same images (photos32_ldm_f4, and the same without latents). How many
images each may see follows from the processor time of a step, which is measured first and which other processes do not
disturb; encoding, samples and evaluation are not counted. Prints domain FD of both and where their grids lie.

    python benchmarks/latents_against_pixels.py --minutes 15 --work /tmp/against
    python benchmarks/latents_against_pixels.py --images /my/images --size 64 --minutes 60 --work /tmp/against
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MUDI_SHARED", ROOT.parent / "shared"))
AUTOENCODER_SHARE = 1 / 3  # of the minutes of the side with latents
BATCH = {"pixels": 128, "latents": 128, "autoencoder": 16}


def main() -> None:
    """Prepare, measure, train both, sample both, score both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a flat folder; default: Flowers of MUDI_SHARED")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--classifier-images", type=int, default=20_000, help="that the domain classifier sees")
    place = Path(tempfile.gettempdir()) / "mudi-latents-against-pixels"
    parser.add_argument("--work", type=Path, default=place, help="for data and runs; called again, it goes on")
    options = parser.parse_args()
    options.images = options.images or flowers(options.work)
    common = [
        f"data_dir={options.work}/data",
        f"runs_dir={options.work}/runs",
        f"data.source.path={options.images}",
        f"data.image_size={options.size}",
        "data.source.labels=none",
        "model.condition=none",
        f"sample.count={options.samples}",
        f"evaluate.domain.max_images={options.classifier_images}",
    ]
    run("data_prep", "all", *side("pixels", common))
    budget = compare(options.work, common, seconds=60 * options.minutes)
    print(json.dumps(budget, indent=1))


def side(name: str, common: list[str]) -> list[str]:
    """The overrides of one side's experiment."""
    if name == "pixels":
        pixels = ["latents=null", "model.width=32", "model.multipliers=[1,2,2,2]"]
        process = ["diffusion.sigma_data=0.5", "diffusion.levels.mean=-1.2"]
        return ["experiment=photos32_ldm_f4", *common, *pixels, *process]
    if name == "autoencoder":
        training = [word for word in common if not word.startswith(("model.", "sample."))]
        return ["experiment=photos32_kl_f4", *training]
    runs = next(word for word in common if word.startswith("runs_dir=")).removeprefix("runs_dir=")
    return [
        "experiment=photos32_ldm_f4",
        *common,
        "latents.experiment=null",
        f"latents.autoencoder={runs}/autoencoder",
    ]


def compare(work: Path, common: list[str], *, seconds: float) -> dict[str, object]:
    """Train, sample and score both sides within `seconds` of one core each; what was found."""
    found: dict[str, object] = {"core seconds of each side": seconds}
    shares = {"pixels": 1.0, "autoencoder": AUTOENCODER_SHARE, "latents": 1 - AUTOENCODER_SHARE}
    for name, share in shares.items():
        overrides = side(name, common)
        if name == "latents":
            run("data_prep", "encode", *overrides, "name=latents")
        done = work / f"{name}.json"
        if not done.exists():
            cost = seconds_a_step(overrides, name)
            steps = max(int(share * seconds / cost), 1)
            done.write_text(
                json.dumps({"seconds a step": round(cost, 3), "images": steps * BATCH[name], "steps": steps})
            )
        found[name] = facts = json.loads(done.read_text())
        run("pipeline", "train", *overrides, f"name={name}", *duration(facts["steps"]))
        if name == "autoencoder":
            run("pipeline", "reconstruct", f"{work}/runs/{name}")
            continue
        run("pipeline", "sample", f"{work}/runs/{name}")
        run("pipeline", "evaluate", f"{work}/runs/{name}")
        (result,) = (work / "runs" / name / "results").glob("*.json")
        metrics = json.loads(result.read_text())["metrics"]
        facts |= {key: round(value, 4) for key, value in metrics.items() if key in ("fd-domain", "kid-domain")}
        facts["grid"] = str(next((work / "runs" / name).glob("samples/*/*/grid.png")))
    return found


def duration(steps: int) -> list[str]:
    """Everything that is counted in images or steps, as shares of so many steps."""
    every = max(steps // 2, 1)
    often = [f"train.{name}={every} steps" for name in ("validate_every", "preview_every", "checkpoint_every")]
    return [f"train.duration={steps} steps", f"train.optim.warmup={max(steps // 20, 1)} steps", *often]


def seconds_a_step(overrides: list[str], name: str, *, few: int = 3, more: int = 9) -> float:
    """Processor seconds of one training step: the difference between a longer and a shorter run, as nothing else."""
    used = []
    for steps in (few, more):
        quiet = ["train.validate_every=null", "train.preview_every=null", "train.checkpoint_every=1000 steps"]
        label = f"measure-{name}-{steps}"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("pipeline", "train", *overrides, f"name={label}", f"train.duration={steps} steps", *quiet)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return max((used[1] - used[0]) / (more - few), 1e-3)


def flowers(work: Path) -> Path:
    """The 8,189 images of Oxford Flowers at 64 px, in a flat folder."""
    folder = work / "flowers"
    if not folder.exists():
        partial = work / "flowers.partial"
        with tarfile.open(SHARED / "data" / "flowers102_64.tar") as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder)
    return folder


def run(module: str, *argv: str) -> None:
    """One command on one core."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", module, *argv], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    main()
