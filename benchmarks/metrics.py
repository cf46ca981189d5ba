"""Images a second of the metric pass (features and FID), beside torchmetrics and torch-fidelity, with equal weights.

    python benchmarks/metrics.py [--images 64] [--batch 16] [--rounds 3] [--threads 1]

The weights are random and the same in all of them: speed and equality do not depend on what they are. The others are
found on PYTHONPATH, where they are (`pip install --no-deps --target DIR torch-fidelity pytorch-fid clean-fid
torchvision`); what is not there is said and left out. torch-fidelity's modules are loaded one by one, without its
package, which needs torchvision. pytorch-fid and clean-fid need torchvision itself; its wheels are built for CUDA's
torch, and with another one only the names of two of its operators stand in the way: they are declared here, and are
never called. Their own networks, resizing and weights loader run; the normalisation of the input, which is theirs by
1/255, is made equal through the values they are given.

Rounds take turns and time is the process's own, so a busy machine slows nobody more than the others.

Measured on one thread of a busy two-core machine (64 px, batches of 8 and 12, four rounds): pytorch-fid 0.3.0 is 1.83x
slower than ours, clean-fid 0.1.35 1.74x, distances within 3e-7. Earlier, on a quiet one: torch-fidelity 1.82x,
torchmetrics 1.77x.
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
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "metrics"))
from plain_inception import PlainInception  # noqa: E402

from pipeline.metrics.frechet import frechet_distance  # noqa: E402
from pipeline.metrics.inception_weights import load_inception, prepare  # noqa: E402
from pipeline.metrics.moments import Moments, merged, moments  # noqa: E402

SIZE = 64
RESIZES = {"tf1": "tf1", "torchmetrics' resize": "torchmetrics", "clean": "clean"}

PEERS = ("torch-fidelity", "torchmetrics", "pytorch-fid", "clean-fid")


@dataclass(frozen=True)
class Peer:
    """One implementation: `add(images, real)` takes a set in; `distance()` is the FID of what was taken in."""

    add: Callable[[Tensor, bool], None]
    distance: Callable[[], float]
    beside: str = "ours, tf1"  # which of ours resizes as this one does


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


def installed(name: str) -> bool:
    """Whether a package is on the path, without importing it."""
    return importlib.util.find_spec(name) is not None


def declare_torchvision() -> torch.library.Library:
    """Make torchvision importable beside a torch that it was not built for. Imports it: what this returns may go."""
    names = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        names.define(f"{name}(Tensor x) -> Tensor")
    importlib.import_module("torchvision")
    return names


def from_features(network: Callable[[Tensor], Tensor], batch: int, beside: str) -> Peer:
    """A peer that keeps features [N, 2048]. The distance is that of numpy's moments: they all have the same formula,
    whose scipy form takes a minute in 2048 dimensions (that ours equals it is a test)."""
    sides: dict[bool, np.ndarray] = {}

    def add(images: Tensor, real: bool) -> None:
        sides[real] = torch.cat([network(part) for part in images.split(batch)]).numpy()

    def distance() -> float:
        both = [sides[real].astype(np.float64) for real in (True, False)]
        return frechet_distance(*(Moments(len(f), f.mean(0), np.cov(f, rowvar=False) * (len(f) - 1)) for f in both))

    return Peer(add, distance, beside)


def torch_fidelity(weights: Path, batch: int) -> Peer:
    """Its extractor, which resizes as TensorFlow 1 does."""
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    return from_features(lambda part: network(part)[0], batch, "ours, tf1")


def pytorch_fid(weights: Path, batch: int) -> Peer:
    """Its network, which resizes bilinearly with half-pixel centres: enlarging, as torchmetrics' resize."""
    module = importlib.import_module("pytorch_fid.inception")
    module.FID_WEIGHTS_URL = weights.as_uri()
    network = module.InceptionV3([module.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    return from_features(lambda part: network(part / 256)[0].flatten(1), batch, "ours, torchmetrics' resize")


def clean_fid(weights: Path, batch: int) -> Peer:
    """Its own resize, image by image through Pillow, and its own copy of the network."""
    module = importlib.import_module("cleanfid.inception_pytorch")
    module.FID_WEIGHTS_URL = weights.as_uri()
    resize = importlib.import_module("cleanfid.resize").build_resizer("clean")
    network = module.InceptionV3(output_blocks=[3], resize_input=False).eval()

    def run(part: Tensor) -> Tensor:
        large = np.stack([resize(image) for image in part.permute(0, 2, 3, 1).numpy()])
        return network(torch.from_numpy(large).permute(0, 3, 1, 2).contiguous() / 256)[0].flatten(1)

    return from_features(run, batch, "ours, clean")


def torchmetrics(weights: Path, batch: int) -> Peer:
    """FrechetInceptionDistance with its own network, weights by path."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # after the stub stands

    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights))

    def add(images: Tensor, real: bool) -> None:
        if real:
            metric.reset()
        for part in images.split(batch):
            metric.update(part, real=real)

    return Peer(add, lambda: float(metric.compute()), "ours, torchmetrics' resize")


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
        mine = peers[name].beside
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
    extract(work, read, Extractor("t", {{}}, ("f",), run), of="x", device="cpu")
    all_moments(work, "f")
status = Path("/proc/self/status").read_text()  # not ru_maxrss: that begins with the parent's peak
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def others(weights: Path, batch: int, *, folder: Path, asked: set[str]) -> dict[str, Peer]:
    """Every other implementation that is asked for and on the path."""
    torch.hub.set_dir(folder)  # where their loaders keep what they "download" from `weights`
    found: dict[str, Callable[[Path, int], Peer]] = {}
    kept = declare_torchvision() if installed("torchvision") else None  # before torchmetrics, which imports it
    if stub_torch_fidelity():
        found |= {"torch-fidelity": torch_fidelity, "torchmetrics": torchmetrics}
    if kept is not None:
        found |= {"pytorch-fid": pytorch_fid} if installed("pytorch_fid") else {}
        found |= {"clean-fid": clean_fid} if installed("cleanfid") else {}
    if lacking := asked - found.keys():
        print(f"not on the path, and left out: {', '.join(sorted(lacking))} (see the head of this file)")
    return {name: make(weights, batch) for name, make in found.items() if name in asked}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("images", 64), ("batch", 16), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    shape = (args.images, 3, SIZE, SIZE)
    real = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    fake = torch.from_numpy((rng.integers(0, 256, shape, dtype=np.uint8) * 0.7).astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        torch.save(PlainInception(0).state_dict(), weights)
        peers_found = others(weights, args.batch, folder=Path(folder), asked=set(args.peers))
        beside = {peer.beside for peer in peers_found.values()} or {f"ours, {n}" for n in RESIZES}
        peers = {f"ours, {n}": ours(weights, r, args.batch) for n, r in RESIZES.items() if f"ours, {n}" in beside}
        peers |= peers_found
        with torch.inference_mode():
            speeds = interleaved(peers, (real, fake), args.rounds)
            compared(peers, speeds)
    counts = (1024, 8192, 32768)
    sizes = ", ".join(f"{memory(count):.0f} MiB for {count} images" for count in counts)
    print(f"peak memory of the FID pass: {sizes}")


if __name__ == "__main__":
    main()
