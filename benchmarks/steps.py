"""Our whole training step against diffusers' example loop with the same U-Net: CPU time on one thread, fp32 and bf16.

    python benchmarks/steps.py [--rounds 7] [--case unet_small:32:16] [--precision fp32] [--profile FILE]

Ours is the step of a real session, with its data, noise and random draws, clipping, AdamW, EMA and bookkeeping.
Diffusers' has its batch ready. Rounds alternate, so that whatever else the machine does meets both; the figure is the
median of the rounds' ratios. `benchmarks/gpu.py` measures the same on a GPU.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "gpu")]

import checks  # noqa: E402
from on_gpu import adapter  # noqa: E402
from on_gpu.steps import Case, config_of, diffusers_loop, example, unet  # noqa: E402

from pipeline.models.build import build_network, count_parameters  # noqa: E402

CASES = ("unet_small:32:16", "unet_photos32:64:8")
TARGETS = {"fp32": 1.0, "bf16": 1.25}


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call, by all threads of the process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(case: Case, root: Path, *, rounds: int, profiled: Path | None) -> None:
    """Print one line: milliseconds of both, and how many times as long diffusers takes."""
    context = checks.CheckContext(device="cpu", root=root)
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stderr(io.StringIO()):
            s = stack.enter_context(adapter.open_session(config_of(case, context), "cpu"))
        data = adapter.feed(s)
        stack.callback(data.close)  # type: ignore[attr-defined]
        images, _, labels, _ = example(case, "cpu")
        sides = {
            "ours": lambda: adapter.read(s, adapter.step(s, data)),
            "diffusers": diffusers_loop(case, images, labels, device="cpu"),
        }
        for step in sides.values():  # the first steps choose algorithms and allocate moments
            step(), step()
        times = [{name: cpu_seconds(step) for name, step in sides.items()} for _ in range(rounds)]
        if profiled is not None:
            for name, step in sides.items():
                profile(profiled, f"{name}: {case}", step)
    report(case, times)


def report(case: Case, times: list[dict[str, float]]) -> None:
    """One line of the table."""
    network = build_network(unet(case.network, case.size), shape=(3, case.size, case.size), classes=adapter.CLASSES)
    medians = {name: 1e3 * statistics.median(row[name] for row in times) for name in times[0]}
    ratios = [row["diffusers"] / row["ours"] for row in times]
    ratio, target = statistics.median(ratios), TARGETS[case.precision]
    print(
        f"{case.network} ({count_parameters(network) / 1e6:.1f} M), {case.size} px, batch {case.batch}, "
        f"{case.precision}: ours {medians['ours']:.0f} ms, diffusers {medians['diffusers']:.0f} ms, ratio {ratio:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), target {target:g}: {'met' if ratio >= target else 'MISSED'}",
        flush=True,
    )


def profile(path: Path, title: str, step: Callable[[], Any]) -> None:
    """Append the most expensive operations of one step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step()
    table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
    with path.open("a") as file:
        file.write(f"{title}\n{table}\n\n")


def main() -> None:
    """Measure every case in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", action="append", help=f"NETWORK:PIXELS:BATCH; default: {' and '.join(CASES)}")
    parser.add_argument("--precision", choices=TARGETS, help="default: both")
    parser.add_argument("--profile", type=Path, help="write the operations of one step of each side to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    print(f"a training step, one thread, torch {torch.__version__}, bf16 in hardware: {'yes' if native else 'no'}")
    with tempfile.TemporaryDirectory() as root:
        for text in given.case or CASES:
            network, size, batch = text.split(":")
            for precision in [given.precision] if given.precision else TARGETS:
                case = Case(network, int(size), int(batch), compiled=False, precision=precision)
                measure(case, Path(root), rounds=given.rounds, profiled=given.profile)


if __name__ == "__main__":
    main()
