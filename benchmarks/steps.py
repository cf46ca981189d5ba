"""Our whole training step against diffusers' example loop with the same U-Net: CPU time on one thread, fp32 and bf16.

    python benchmarks/steps.py [--rounds 7] [--case unet_small:32:16] [--precision fp32] [--profile FILE]

Ours is the step of a real session, with its data, noise and random draws, clipping, AdamW, EMA and bookkeeping.
Diffusers' has its batch ready. Each side is a process of its own, set up as it would be alone. They take turns, so that
whatever else the machine does meets both; the figure is the median of the rounds' ratios. `benchmarks/gpu.py` measures
the same on a GPU.
"""

import argparse
import contextlib
import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
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


def ours(case: Case, root: Path, stack: contextlib.ExitStack) -> Callable[[], Any]:
    """A step of a real session."""
    context = checks.CheckContext(device="cpu", root=root)
    with contextlib.redirect_stderr(io.StringIO()):
        s = stack.enter_context(adapter.open_session(config_of(case, context), "cpu"))
    data = adapter.feed(s)
    stack.callback(data.close)  # type: ignore[attr-defined]
    return lambda: adapter.read(s, adapter.step(s, data))


def diffusers(case: Case, root: Path, stack: contextlib.ExitStack) -> Callable[[], Any]:
    """A step of the example."""
    del root, stack
    images, _, labels, _ = example(case, "cpu")
    return diffusers_loop(case, images, labels, device="cpu")


SIDES = (ours, diffusers)


def side(build: Callable[..., Callable[[], Any]], case: Case, root: Path, end: Connection) -> None:
    """What a process of its own does: a step for each message, answered with its CPU seconds by all threads.

    A message that is a path: the most expensive operations of a step are appended to that file.
    """
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        step = build(case, root, stack)
        step(), step()  # the first steps choose algorithms and allocate moments
        while (asked := end.recv()) is not None:
            if isinstance(asked, Path):
                profile(asked, f"{build.__name__}: {case}", step)
            start = time.process_time()
            step()
            end.send(time.process_time() - start)


def measure(case: Case, root: Path, *, rounds: int, profiled: Path | None) -> None:
    """Print one line: milliseconds of both, and how many times as long diffusers' takes."""
    context, processes, ends = multiprocessing.get_context("spawn"), [], {}
    for build in SIDES:
        ends[build.__name__], end = context.Pipe()
        processes.append(context.Process(target=side, args=(build, case, root / build.__name__, end), daemon=True))
        processes[-1].start()
    times = [{name: asked(end, "step") for name, end in ends.items()} for _ in range(rounds)]
    for end in ends.values():
        if profiled is not None:
            asked(end, profiled)
        end.send(None)
    for process in processes:
        process.join()
    report(case, times)


def asked(end: Connection, message: str | Path) -> float:
    """The answer of a side."""
    end.send(message)
    return float(end.recv())


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
