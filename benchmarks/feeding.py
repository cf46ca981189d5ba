"""How long a training step waits for its data, where the device takes 10 ms for the step.

    python benchmarks/feeding.py [--batch 256] [--size 64] [--milliseconds 10] [--steps 200]

The device is a sleep: the host has nothing else to do, as while a GPU works. Images are photographs made of smooth
noise. Read are batches as training reads them, with a noise level and a label dropout drawn for each image, flips and
labels; by as many threads as training takes beside a GPU on this machine, in the first epoch and, where decoded images
stay in memory (`train.keep_gib`), in later ones. "wait" is the share of the time in which the step was not running;
"most" is the rate at which batches come where nobody waits between them.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from reader_formats import write_ours

from pipeline.data.batches import batches, reading_threads
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.runtime.random import Stream, uniform

IMAGES = 4096


def photographs(count: int, size: int) -> np.ndarray:
    """Smooth noise with some grain, uint8 [count, size, size, 3]: about as hard to compress as photographs."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(count, size // 8, size // 8, 3)).astype(np.float32)
    smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)
    for axis in (1, 2):
        smooth = sum(np.roll(smooth, shift, axis) for shift in range(-4, 4)) / 8
    grain = rng.normal(size=smooth.shape).astype(np.float32)
    return np.clip(128 + 50 * smooth + 4 * grain, 0, 255).astype(np.uint8)


def draws(sample_indices: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a diffusion objective draws for each image."""
    return {
        "sigma": uniform(0, Stream.SIGMA, sample_indices, dtype=torch.float64),
        "hide_all": uniform(0, Stream.LABEL_DROP, sample_indices),
    }


def measure(reader: Reader, *, batch: int, workers: int, seconds: float, steps: int) -> float:
    """Seconds of the average step."""
    settings = {"global_batch": batch, "rank": 0, "world_size": 1, "micro_batch": batch, "flip": True, "draws": draws}
    data = batches(reader, seed=0, start_step=0, workers=workers, **settings)
    for _ in range(5):
        next(data)
    begin = time.perf_counter()
    for _ in range(steps):
        next(data)
        if seconds:
            time.sleep(seconds)
    spent = (time.perf_counter() - begin) / steps
    data.close()
    return spent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--milliseconds", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cpus = len(os.sched_getaffinity(0))
    images = photographs(IMAGES, options.size)
    print(f"{options.batch} images of {options.size} px, a step of {options.milliseconds:g} ms, {cpus} CPUs")
    workers = reading_threads(None, cpus=cpus, cuda=True)
    print(f"{workers} thread(s) read\n{'stored as':<20} {'wait':>7} {'most, images/s':>15}")
    begin = time.perf_counter()
    for _ in range(20):
        time.sleep(options.milliseconds / 1e3)
    slept = (time.perf_counter() - begin) / 20  # a little longer than asked
    known = {"batch": options.batch, "workers": workers, "steps": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        for encoding in ("raw", "jpeg", "png"):
            write_ours(Path(folder) / encoding, images, encoding)
            for name, keep in ((encoding, 0.0), (f"{encoding}, later epochs", 2.0**30)):
                if keep and encoding == "raw":
                    continue
                reader = Reader(open_shards(Path(folder) / encoding), keep_bytes=keep)
                if keep:
                    reader.read(np.arange(reader.count))
                step = measure(reader, seconds=options.milliseconds / 1e3, **known)
                most = options.batch / measure(reader, seconds=0.0, **known)
                print(f"{name:<20} {max(1 - slept / step, 0.0):>7.1%} {most:>15,.0f}")


if __name__ == "__main__":
    main()
