"""Muon for what multiplies, AdamW for the rest.

Jordan et al. 2024, kellerjordan.github.io/posts/muon: the momentum of a matrix is replaced by the nearest orthogonal
matrix, found by a Newton-Schulz iteration in bfloat16, so that all directions of a layer learn at the same rate. Scaled
as by Liu et al. 2025 (arXiv:2502.16982, equation 4) a step is as long as one of AdamW: one learning rate serves both.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

MOMENT = "momentum_buffer"  # as torch.optim.Muon calls it


class Muon(torch.optim.AdamW):
    """AdamW, but `matrices` are stepped by `torch.optim.Muon`, convolutions as [outputs, inputs * height * width].

    One optimiser with one state, by parameter, as checkpoints and loss scalers expect it.
    """

    def __init__(self, matrices: list[Tensor], others: list[Tensor], *, momentum: float, **adamw: Any):
        super().__init__([{"params": matrices}, {"params": others}], **adamw)
        self.momentum = momentum

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it is: Adam's own wants a step count in the state of every parameter, which matrices have none of."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # none of our losses is computed again
        """One update of everything that has a gradient."""
        group = self.param_groups[0]
        stepped = {p: p.grad for p in group["params"] if p.grad is not None}
        if stepped:
            matrices = {p: _matrix(p, p.detach()) for p in stepped}
            settings = {"lr": group["lr"], "weight_decay": group["weight_decay"], "momentum": self.momentum}
            muon = torch.optim.Muon(list(matrices.values()), adjust_lr_fn="match_rms_adamw", **settings)
            for p, matrix in matrices.items():
                moment = self.state[p].setdefault(MOMENT, torch.zeros_like(p))
                muon.state[matrix][MOMENT] = _matrix(p, moment)
                matrix.grad = _matrix(p, stepped[p])
                p.grad = None  # AdamW passes it over
            muon.step()  # type: ignore[no-untyped-call]  # torch has no types here
        super().step(closure)
        for p, gradient in stepped.items():
            p.grad = gradient


def matrices_of(network: nn.Module) -> Iterator[Tensor]:
    """The weights of linear layers and convolutions. Tables, norms and biases are none: their rows do not multiply."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.requires_grad:
            yield module.weight


def _matrix(weight: Tensor, values: Tensor) -> Tensor:
    """`values`, shaped as `weight`, as a matrix of its rows: a view where both lie in memory alike.

    With channels last the columns come in another order, which the nearest orthogonal matrix does not depend on.
    """
    ordered = values if weight.ndim == 2 or weight.is_contiguous() else values.permute(0, 2, 3, 1)
    return ordered.reshape(len(ordered), -1)
