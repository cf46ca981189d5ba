"""Optimisers, and the learning rate as a function of the step. There is no scheduler object: nothing to restore.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the momentum of a matrix is replaced by the nearest
orthogonal matrix, found by a Newton-Schulz iteration in bfloat16, so that all directions of a layer learn at the same
rate. Scaled as by Liu et al. 2025 (arXiv:2502.16982, equation 4) a step is as long as one of AdamW: one learning rate
serves both. Matrices of one shape are stacked and iterated together. Of several ranks each iterates its share of a
stack, and they exchange the results: all ranks hold the same gradients.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import OptimConfig
from pipeline.runtime import distributed

_MOMENTUM = {"sgd": 0.9, "muon": 0.95}


def build_optimizer(network: nn.Module, cfg: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of one network, fused: one pass over weights and gradients, on a GPU and on a CPU.

    Its learning rate is set before every step, and it follows torch's protocol with loss scalers (`grad_scale`,
    `found_inf`), by which a step is skipped without asking the device.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    fused = not any(p.is_meta for p in parameters)  # there is nothing to fuse where nothing is computed
    momentum = _MOMENTUM.get(cfg.kind, 0.0) if cfg.momentum is None else cfg.momentum
    if cfg.kind == "sgd":
        sgd = torch.optim.SGD(parameters, lr=cfg.lr, momentum=momentum, weight_decay=cfg.decay, fused=fused)
        for p in parameters if momentum else ():
            # Torch allocates it at the first step and leaves it unwritten where that step is skipped.
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    adam: dict[str, Any] = {"lr": cfg.lr, "betas": cfg.betas, "eps": cfg.eps, "weight_decay": cfg.decay}
    if cfg.kind == "muon":
        matrices = list(matrices_of(network))
        known = set(map(id, matrices))
        return Muon(matrices, [p for p in parameters if id(p) not in known], momentum=momentum, fused=fused, **adam)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    made: torch.optim.Optimizer = kinds[cfg.kind](parameters, fused=fused, **adam)
    return made


def lr_at(step: int, *, cfg: OptimConfig, total_steps: int, warmup_steps: int) -> float:
    """Learning rate of the update that makes step `step` into `step + 1`, step in [0, total_steps).

    Warm-up is linear and ends at cfg.lr; the schedule runs over the steps after it. `inverse_sqrt` decays as
    sqrt(warmup / step) (Vaswani et al. 2017), `cosine_then_constant` reaches its end after `decay_share` of training.
    """
    if step < warmup_steps:
        return cfg.lr * (step + 1) / warmup_steps
    done, span = step - warmup_steps, max(total_steps - warmup_steps, 1)
    if cfg.schedule == "inverse_sqrt":
        return cfg.lr * math.sqrt(max(warmup_steps, 1) / max(step, warmup_steps, 1))
    if cfg.schedule == "constant":
        return cfg.lr
    share = min(done / (span * cfg.decay_share), 1.0)
    remaining = 1 - share if cfg.schedule == "linear" else (1 + math.cos(math.pi * share)) / 2
    return cfg.lr * (cfg.final_lr + (1 - cfg.final_lr) * remaining)


MOMENT = "momentum_buffer"  # as torch.optim.Muon calls it
COEFFICIENTS, ITERATIONS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7  # as in torch.optim.Muon


class Muon(torch.optim.AdamW):
    """AdamW, but `matrices` are stepped as `torch.optim.Muon` does, convolutions as [outputs, inputs * height * width].

    One optimiser with one state, by parameter, as checkpoints expect it. It follows torch's protocol with loss scalers:
    gradients are divided by `grad_scale`, and nothing changes where `found_inf` is 1.
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
        shapes: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in stepped:
            shapes[len(p), p.numel() // len(p)].append(p)
        for parameters in shapes.values():
            self._step_together(parameters, lr=group["lr"], weight_decay=group["weight_decay"])
        for p in stepped:
            p.grad = None  # AdamW passes it over
        super().step(closure)
        for p, gradient in stepped.items():
            p.grad = gradient

    def _step_together(self, parameters: list[Tensor], *, lr: float, weight_decay: float) -> None:
        """Update matrices of one shape."""
        gradients = torch.stack([_matrix(p, p.grad) for p in parameters if p.grad is not None])
        if (grad_scale := getattr(self, "grad_scale", None)) is not None:
            gradients = gradients / grad_scale
        moments = [self.state[p].setdefault(MOMENT, torch.zeros_like(p)) for p in parameters]
        before = torch.stack([_matrix(p, moment) for p, moment in zip(parameters, moments, strict=True)])
        after = before.lerp(gradients, 1 - self.momentum)
        change = orthogonal(gradients.lerp(after, self.momentum)) * (-lr * 0.2 * math.sqrt(max(after.shape[1:])))
        weights = torch.stack([_matrix(p, p) for p in parameters])
        stepped = weights * (1 - lr * weight_decay) + change
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            after, stepped = torch.where(found_inf > 0, before, after), torch.where(found_inf > 0, weights, stepped)
        torch._foreach_copy_(
            [_matrix(p, x) for p, x in zip([*parameters, *parameters], [*parameters, *moments], strict=True)],
            [*stepped.unbind(), *after.unbind()],
        )


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix of each, about: float [n, rows, columns] -> the same; singular values near 1.

    Collective where there are several ranks: each iterates an equal run of the matrices, padded with the first.
    """
    world = distributed.ranks()[1]
    share = -(-len(matrices) // world)
    if world == 1 or len(matrices) == 1:
        return _iterated(matrices)
    first = distributed.ranks()[0] * share
    mine = [min(number, len(matrices) - 1) for number in range(first, first + share)]
    return distributed.gathered(_iterated(matrices[mine]))[: len(matrices)].to(matrices.dtype)


def _iterated(matrices: Tensor) -> Tensor:
    """Newton and Schulz's iteration with the post's coefficients."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


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
