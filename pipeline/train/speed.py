"""How fast training runs, and how well it uses the hardware: the rows "speed/..." of the log."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.data.batches import LoadedBatch, batches
from pipeline.monitor.cards import peak_tflops
from pipeline.objectives.build import build_objective
from pipeline.train.session import Session


class Speed:
    """Measures the time between two rows of the log. All that it costs a step is to read the clock twice.

    speed/images_per_second: images of all ranks. Validation, saves and samples in between count as time.
    speed/tflops: operations (10^12 a second) of one rank's networks, by `flops_per_image`.
    speed/mfu: model FLOPs utilisation, the same as a share of the card's data sheet at train.precision, in [0, 1]. It
        is left out on a CPU and where the card is not known (`pipeline.monitor.cards`).
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
        self._begun, self._step = time.monotonic(), s.state.clock.step

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
        for player in objective.players:
            for name, network in objective.networks.items():
                network.to(s.dtype).requires_grad_(name == player)
            objective.loss(player, objective.networks, batch)["loss"].sum().backward()  # type: ignore[no-untyped-call]
    return counter.total // micro_batch
