"""Images a second of the metric pass (features and FID), beside torchmetrics and torch-fidelity, with equal weights.

    python benchmarks/metrics.py [--images 64] [--batch 16] [--rounds 3] [--threads 1]

The weights are random and the same in all of them: speed and equality do not depend on what they are. The others need
torch-fidelity's package on the path (`pip install --no-deps --target DIR torch-fidelity`, PYTHONPATH=DIR): only the
modules that work without torchvision are loaded. pytorch-fid cannot be loaded without torchvision; torch-fidelity's
network is pytorch-fid's, layer by layer. Rounds take turns and time is the process's own, so a busy machine slows
nobody more than the others.
"""

import argparse
import importlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "metrics"))
from plain_inception import PlainInception  # noqa: E402

from pipeline.metrics.frechet import frechet_distance  # noqa: E402
from pipeline.metrics.inception_weights import load_inception, prepare  # noqa: E402
from pipeline.metrics.moments import Moments, merged, moments  # noqa: E402

SIZE = 64
RESIZES = {"tf1": "tf1", "torchmetrics' resize": "torchmetrics"}


@dataclass(frozen=True)
class Peer:
    """One implementation: `add(images, real)` takes a set in; `distance()` is the FID of what was taken in."""

    add: Callable[[Tensor, bool], None]
    distance: Callable[[], float]


def ours(weights: Path, resize: str, batch: int) -> Peer:
    """Our network, moments and distance."""
    network = load_inception(weights)
    sides: dict[bool, Moments] = {}

    def add(images: Tensor, real: bool) -> None:
        found = (network(prepare(part, resize), ["2048"])["2048"] for part in images.split(batch))
        sides[real] = merged(moments(features.numpy()) for features in found)

    return Peer(add, lambda: frechet_distance(sides[True], sides[False]))


def stub_torch_fidelity() -> bool:
    """Make torch-fidelity's modules importable one by one; its package as a whole imports torchvision."""
    found = importlib.util.find_spec("torch_fidelity")
    if found is None or not found.submodule_search_locations:
        return False
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    return True


def torch_fidelity(weights: Path, batch: int) -> Peer:
    """Its extractor, and its formula: numpy's covariance and scipy's matrix root."""
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    sides: dict[bool, np.ndarray] = {}

    def add(images: Tensor, real: bool) -> None:
        sides[real] = torch.cat([network(part)[0] for part in images.split(batch)]).numpy()

    def distance() -> float:
        gap = sides[True].mean(0) - sides[False].mean(0)
        a, b = (np.cov(sides[real], rowvar=False) for real in (True, False))
        root = linalg.sqrtm(a @ b)
        return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(np.asarray(root).real))

    return Peer(add, distance)


def torchmetrics(weights: Path, batch: int) -> Peer:
    """FrechetInceptionDistance with its own network, weights by path."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # after the stub stands

    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights))

    def add(images: Tensor, real: bool) -> None:
        if real:
            metric.reset()
        for part in images.split(batch):
            metric.update(part, real=real)

    return Peer(add, lambda: float(metric.compute()))


def interleaved(peers: dict[str, Peer], images: tuple[Tensor, Tensor], rounds: int) -> dict[str, float]:
    """Print and return the images a CPU second of each pass: the median over rounds, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for peer in peers.values():
        peer.add(images[0][:8], True)
    for _ in range(rounds):
        for name, peer in peers.items():
            start = time.process_time()
            peer.add(images[0], True)
            peer.add(images[1], False)
            seconds[name].append(time.process_time() - start)
    count = len(images[0]) + len(images[1])
    speeds = {name: count / statistics.median(times) for name, times in seconds.items()}
    for name, speed in speeds.items():
        spread = f"{count / max(seconds[name]):.2f} to {count / min(seconds[name]):.2f}"
        print(f"{name:<28} {speed:7.2f} images per CPU second ({spread})", flush=True)
    return speeds


def compared(peers: dict[str, Peer], speeds: dict[str, float]) -> None:
    """Print each distance with the time it takes, and ours against each of the others."""
    values = {}
    for name, peer in peers.items():
        start = time.process_time()
        values[name] = peer.distance()
        print(f"{name:<28} FID {values[name]:.6f} in {time.process_time() - start:.1f} CPU s", flush=True)
    for name in (n for n in peers if not n.startswith("ours")):
        mine = "ours, torchmetrics' resize" if name == "torchmetrics" else "ours, tf1"
        difference = abs(values[mine] - values[name]) / abs(values[name])
        print(f"{mine} / {name}: {speeds[mine] / speeds[name]:.2f}x, FID differs by {difference:.1e} relative")


def memory(images: int) -> float:
    """Peak memory in MiB of a process that extracts 512 features of `images` images and computes their moments."""
    code = f"""
import tempfile
from pathlib import Path
import numpy as np, torch
from pipeline.metrics.extraction import Work, all_moments, extract
from pipeline.metrics.features import Extractor
def run(x):
    return {{"f": x.float().flatten(1)[:, :512]}}
def read(k):
    return np.random.default_rng(int(k[0])).integers(0, 256, (len(k), 16, 16, 3), dtype=np.uint8)
with tempfile.TemporaryDirectory() as folder:
    work = Work(Path(folder) / "w", {images}, 512, 256)
    extract(work, read, Extractor("t", {{}}, ("f",), run), part=(0, 1), tick=[].append, device="cpu")
    all_moments(work, "f")
status = Path("/proc/self/status").read_text()  # not ru_maxrss: that begins with the parent's peak
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("images", 64), ("batch", 16), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    shape = (args.images, 3, SIZE, SIZE)
    real = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    fake = torch.from_numpy((rng.integers(0, 256, shape, dtype=np.uint8) * 0.7).astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        torch.save(PlainInception(0).state_dict(), weights)
        peers = {f"ours, {n}": ours(weights, r, args.batch) for n, r in RESIZES.items()}
        if stub_torch_fidelity():
            peers["torch-fidelity"] = torch_fidelity(weights, args.batch)
            peers["torchmetrics"] = torchmetrics(weights, args.batch)
        else:
            print("torch-fidelity is not on the path: nothing to compare with (see the head of this file)")
        with torch.inference_mode():
            speeds = interleaved(peers, (real, fake), args.rounds)
            compared(peers, speeds)
    small, large = memory(1024), memory(32 * 1024)
    print(f"peak memory of the FID pass: {small:.0f} MiB for 1024 images, {large:.0f} MiB for 32768")


if __name__ == "__main__":
    main()
