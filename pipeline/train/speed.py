"""How fast training runs, and how well it uses the hardware: the rows "speed/..." of the log."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.data.batches import LoadedBatch, batches
from pipeline.objectives.build import build_objective
from pipeline.train.setup import Session


class Speed:
    """Measures the time between two rows of the log. All that it costs a step is to read the clock twice.

    speed/images_per_second: images of all ranks. Validation, saves and samples in between count as time.
    speed/tflops: operations (10^12 a second) of one rank's networks, by `flops_per_image`.
    speed/mfu: model FLOPs utilisation, the same as a share of the card's data sheet at train.precision, in [0, 1]. It
        is left out on a CPU and where the card is not known (`pipeline.train.speed`).
    speed/data_wait: share of the time that the loop of rank 0 waited for data, in [0, 1].
    speed/memory_gib: the most memory that tensors of rank 0 took on its GPU, since the process began.
    """

    def __init__(self, s: Session) -> None:
        """The clock starts here. Rank 0, which writes the log, first counts the operations of an image."""
        self._s = s
        self._flops = flops_per_image(s) if s.world.main else 0
        card = torch.cuda.get_device_name(s.device) if s.device.type == "cuda" else "CPU"
        self._peak = peak_tflops(card, s.cfg.train.precision)
        self._waited = 0.0
        self._begun, self._step = time.monotonic(), s.state.progress.step

    def next(self, data: Iterator[list[LoadedBatch]]) -> list[LoadedBatch]:
        """The data of the next step."""
        asked = time.monotonic()
        found = next(data)
        self._waited += time.monotonic() - asked
        return found

    def row(self, step: int) -> dict[str, float]:
        """What there is to say about the time since the last call, or since training returned to a checkpoint."""
        now = time.monotonic()
        seconds = max(now - self._begun, 1e-9)
        rate = (step - self._step) * self._s.cfg.train.global_batch / seconds
        tflops = rate * self._flops / self._s.world.size / 1e12
        row = {"images_per_second": rate, "tflops": tflops, "data_wait": self._waited / seconds}
        if self._peak is not None:
            row["mfu"] = tflops / self._peak
        if self._s.device.type == "cuda":
            row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._begun, self._step, self._waited = now, step, 0.0
        return {f"speed/{name}": value for name, value in row.items()}

    def rolled_back(self, step: int) -> None:
        """The run is at an earlier `step` again: steps are counted from there."""
        self._step = step


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Adds up operations by torch's formulas. `FlopCounterMode` has them too, but fails at gradients of gradients."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def flops_per_image(s: Session) -> int:
    """Operations that one training image asks for: forward and backward of every network that learns from it.

    Products, convolutions and attention, two for each multiplication, each counted once: neither what activation
    checkpointing computes again, nor the optimiser. Counted on torch's meta device, where nothing is computed, with
    the last images of training, for which every network takes part.
    """
    micro_batch = s.plan.micro_batch
    with torch.device("meta"):
        objective = build_objective(s.cfg, s.train_data.manifest)
    last = batches(
        s.train_data,
        seed=s.cfg.seed,
        start_step=s.plan.total_steps * s.cfg.train.global_batch // micro_batch - 1,
        global_batch=micro_batch,
        rank=0,
        world_size=1,
        micro_batch=micro_batch,
        draws=s.objective.draws,
    )
    batch = next(last)[0].to("meta", s.dtype)
    counter = _Counter()
    with counter:
        for trained in objective.trained:
            for name, network in objective.networks.items():
                network.to(s.dtype).requires_grad_(name == trained)
            objective.loss(trained, objective.networks, batch)["loss"].sum().backward()  # type: ignore[no-untyped-call]
    return counter.total // micro_batch


class Peak(NamedTuple):
    """Dense products in TFLOP/s. None: the card has no units for it."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


# By what the card's name holds; the first that fits counts. Variants with a lower clock stand before the usual ones.
_PEAKS = (
    ("H100 PCIe", Peak(bf16=756, fp16=756, tf32=378, fp32=51)),
    ("H100 NVL", Peak(bf16=835, fp16=835, tf32=417, fp32=60)),
    ("H100", Peak(bf16=989, fp16=989, tf32=494, fp32=67)),
    ("H200 NVL", Peak(bf16=835, fp16=835, tf32=417, fp32=60)),
    ("H200", Peak(bf16=989, fp16=989, tf32=494, fp32=67)),
    ("A100", Peak(bf16=312, fp16=312, tf32=156, fp32=19.5)),
    ("V100", Peak(bf16=None, fp16=125, tf32=None, fp32=15.7)),
    ("L40S", Peak(bf16=362, fp16=362, tf32=183, fp32=91.6)),
    ("RTX 4090", Peak(bf16=165, fp16=165, tf32=82.6, fp32=82.6)),
)


def peak_tflops(card: str, precision: str) -> float | None:
    """Of a card by its name, at a `train.precision`; None where it is not known, as for fp64 or a part of a card.

    tf32 is what float32 products run at where the card rounds them, fp32 what they run at elsewhere.
    """
    if "MIG" in card:
        return None
    found = next((peak for name, peak in _PEAKS if name in card), None)
    if found is None or precision not in Peak._fields:
        return None
    if precision == "tf32" and found.tf32 is None:
        return found.fp32
    at: float | None = getattr(found, precision)
    return at
