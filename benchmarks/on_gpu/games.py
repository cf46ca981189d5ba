"""Training steps of a GAN with all that `experiment=bedrooms64_gan` has: with CUDA graphs and without."""

from pathlib import Path
from typing import Any

import checks
import yaml
from on_gpu import adapter
from on_gpu.report import Clock, Report, guarded, release, seconds
from on_gpu.steps import CONFIGS, Memory

EXPERIMENT = Path(__file__).resolve().parents[2] / "configs" / "experiment" / "bedrooms64_gan.yaml"
NETWORKS = {"cuda": ("stylegan2_64", 64), "cpu": ("stylegan_tiny", 16)}  # and pixels
ROUND = 16  # steps: each has the discriminator's penalty once and the generator's four times


def run(report: Report, clock: Clock, context: checks.CheckContext, chosen: list[str]) -> None:
    """A row with graphs and one without. `chosen`: parts of labels such as stylegan2_64-64-32-graph; [] is all."""
    network, size = NETWORKS[context.device]
    for mode in ("graph", "eager") if context.device == "cuda" else ("eager",):
        label = f"{network}-{size}-32-{mode}"
        if (chosen and not any(part in label for part in chosen)) or clock.left() < 0:
            continue
        with guarded(report, f"step of {label}"):
            row = measure(context, network, size, mode, rounds=3 if context.device == "cuda" else 1)
            report.add("games", row)
        release()
    report.say("images per second of a GAN with its penalties and ADA, batch 32, bf16; GiB is peak memory")
    keys = ("network", "px", "batch", "mode", "ours", "milliseconds", "gib", "first_steps_seconds")
    report.table(
        ("network", "px", "batch", "mode", "images/s", "ms", "GiB", "first steps, s"),
        [[row[key] for key in keys] for row in report.data.get("games", [])],
    )


def measure(context: checks.CheckContext, network: str, size: int, mode: str, *, rounds: int) -> dict[str, Any]:
    """One row. The first steps are those that record: two, as penalties are in the first and not in the second."""
    settings = yaml.safe_load(EXPERIMENT.read_text())
    model = yaml.safe_load((CONFIGS / f"{network}.yaml").read_text())
    cfg = adapter.config(
        context.root,
        name=f"{network}-{mode}",
        model={**model, "condition": "none"},
        size=size,
        batch=32,
        groups={"adversarial": settings["adversarial"]},
        precision="bf16",
        cuda_graph=mode == "graph",
        flip=True,
        **{key: settings["train"][key] for key in ("optim", "ema")},
    )
    adapter.prepare(cfg, count=1024 if context.device == "cuda" else 64)
    memory = Memory(context.device)
    with adapter.open_session(cfg, context.device) as s:
        data = adapter.feed(s)

        def steps(count: int) -> None:
            for _ in range(count):
                adapter.step(s, data)

        first = seconds(lambda: steps(2), context.device)
        each = seconds(lambda: steps(ROUND * rounds), context.device) / (ROUND * rounds)
        data.close()
    return {
        "network": network,
        "px": size,
        "batch": 32,
        "mode": mode,
        "ours": 32 / each,
        "milliseconds": 1e3 * each,
        "gib": memory.peak(),
        "first_steps_seconds": first,
    }
