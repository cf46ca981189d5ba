"""Correctness, speed and a real training on a CUDA machine, in the minutes given.

    python benchmarks/gpu.py --minutes 12 --out gpu-results [--images flowers102_64.tar] [--weights FOLDER]
    python benchmarks/gpu.py --parts a,b                 # some parts alone
    python benchmarks/gpu.py --device cpu --minutes 3    # a test of this script at tiny sizes, no measurement
    python benchmarks/gpu.py --wheels FOLDER --python 3.12    # packages for a machine without internet, and end

Parts: a correctness, b training steps beside diffusers', c sampling and features, d checkpoints and start-up, e a real
training on --images with its FID. Each has a share of the time; what one leaves, the next ones have. Results are in
--out: results.json after every measurement, log.txt with the tracebacks, and pictures. docs/performance.md tells more.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "gpu")]

SHARES = {"a": 0.22, "b": 0.30, "c": 0.08, "d": 0.07, "e": 0.33}
TITLES = {
    "a": "a. correctness",
    "b": "b. training steps",
    "c": "c. sampling and features",
    "d": "d. checkpoints and start-up",
    "e": "e. a real training",
}


def main() -> int:
    """Run the parts; 1 where a check did not hold or something failed."""
    options = parsed()
    if options.wheels:
        from on_gpu import wheels

        return wheels.fetch(options.wheels, python=options.python, there=options.there)
    begin = time.monotonic()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "mudi-inductor"))
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here (`python -c 'import torch; print(torch.cuda.is_available())'`)")
    minutes = options.minutes or (12.0 if device == "cuda" else 3.0)
    end = begin + 60 * minutes
    from on_gpu.machine import header
    from on_gpu.report import Report, guarded

    report = Report(options.out)
    found = header(device, ROOT)
    report.put("header", {**found, "argv": sys.argv[1:], "minutes": minutes})
    report.say(", ".join(f"{name} {value}" for name, value in found.items() if value is not None))
    with work_folder(options.work) as work:
        for number, part in enumerate(options.parts):
            left = options.parts[number:]
            share = (end - time.monotonic()) * SHARES[part] / sum(SHARES[p] for p in left)
            report.say(f"\n=== {TITLES[part]} (at {time.monotonic() - begin:.0f} s, for {share:.0f} s)")
            with guarded(report, TITLES[part]):
                run_part(part, report, device, work / part, options, share, last=len(left) == 1)
            report.put("seconds", {**report.data.get("seconds", {}), part: round(time.monotonic() - begin, 1)})
    wrong = [row["name"] for row in report.data.get("checks", []) if row["ok"] is False]
    failed = [failure["name"] for failure in report.data.get("failures", [])]
    report.say(f"\n{time.monotonic() - begin:.0f} s; {len(wrong)} checks do not hold, {len(failed)} failures")
    for name in (*wrong, *failed):
        report.say(f"  {name}")
    return int(bool(wrong or failed))


@contextlib.contextmanager
def work_folder(chosen: Path | None):
    """A folder for data and runs: the given one, which stays, or a temporary one."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="mudi-gpu-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def training_steps(report, clock, context, cases) -> None:
    """Part b. The GAN comes first: its two rows take half a minute, compiled networks what is left."""
    from on_gpu import games, steps

    games.run(report, clock, context, cases)
    steps.run(report, clock, context, cases)


def run_part(part, report, device, root, options, share, *, last) -> None:
    """One part, with a clock that it looks at and an alarm that it cannot overhear; the last one's is exact."""
    from checks import CheckContext
    from on_gpu import correctness, flowers, sampling, saving
    from on_gpu.report import Clock, TimeUp, alarm, release

    root.mkdir(parents=True, exist_ok=True)
    context = CheckContext(root, device=device, images=options.images, weights=options.weights)
    parts: dict[str, Callable[[Clock], None]] = {
        "a": lambda clock: correctness.run(report, clock, context),
        "b": lambda clock: training_steps(report, clock, context, options.cases),
        "c": lambda clock: sampling.run(report, clock, context),
        "d": lambda clock: saving.run(report, clock, context),
        "e": lambda clock: flowers.run(report, clock, context, options.settings, rate=options.rate),
    }
    try:
        with alarm(share if last else 1.15 * share):
            parts[part](Clock(time.monotonic() + share))
    except TimeUp as stopped:
        report.say(f"{TITLES[part]}: {stopped}; what was measured is kept")
    release()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="all together; default 12, on a CPU 3")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(SHARES), metavar="a,b,c,d,e")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="results (default: gpu-results)")
    parser.add_argument("--work", type=Path, help="data and runs; default: a temporary folder, removed at the end")
    parser.add_argument("--images", type=Path, help="a tar or folder of images, flat or with labels.csv in it")
    parser.add_argument("--weights", type=Path, help="a folder with Inception's weights, and its check features")
    parser.add_argument("--settings", nargs="*", default=[], metavar="key=value", help="more settings of part e")
    parser.add_argument("--cases", nargs="*", default=[], metavar="LABEL", help="part b: those alone, as 64-256-graph")
    parser.add_argument("--rate", type=float, help="part e: images a second to plan with; default: of part b, or tried")
    parser.add_argument("--wheels", type=Path, help="only fetch the packages of requirements.txt into this folder")
    parser.add_argument("--python", default="3.12", help="--wheels: version of the other machine's Python")
    parser.add_argument("--there", type=Path, help="--wheels: the other machine's `pip list --format=freeze`")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in SHARES]
    if unknown:
        parser.error(f"--parts: found {','.join(unknown)}, expected some of {','.join(SHARES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
