"""Optimisers, and the learning rate as a function of the step. There is no scheduler object: nothing to restore."""

import math
from typing import Any

import torch
from torch import nn

from pipeline.config.schema import OptimConfig
from pipeline.train.muon import Muon, matrices_of

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
        sgd = torch.optim.SGD(parameters, lr=cfg.lr, momentum=momentum, weight_decay=cfg.weight_decay, fused=fused)
        for p in parameters if momentum else ():
            # Torch allocates it at the first step and leaves it unwritten where that step is skipped.
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    adam: dict[str, Any] = {"lr": cfg.lr, "betas": cfg.betas, "eps": cfg.eps, "weight_decay": cfg.weight_decay}
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
