"""Muon: a step has the directions of the gradient, all of one length; vectors are AdamW's."""

import math

import pytest
import torch
from torch import nn

from pipeline.checkpoint import optimizer_tensors, restore_optimizer
from pipeline.config.schema import OptimConfig
from pipeline.train.optim import build_optimizer

LR, DECAY = 0.01, 0.5


def optimizer_of(network, **settings):
    return build_optimizer(network, OptimConfig(kind="muon", lr=LR, **settings))


@pytest.mark.parametrize("layer", [nn.Linear(24, 10), nn.Linear(10, 24), nn.Conv2d(4, 10, 3)], ids=str)
def test_a_step_is_the_nearest_orthogonal_matrix_as_long_as_adams(layer):
    torch.manual_seed(0)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer_of(layer, weight_decay=DECAY).step()
    moved = (before * (1 - LR * DECAY) - layer.weight.detach()).flatten(1)
    rows, columns = moved.shape
    left, _, right = torch.linalg.svd(layer.weight.grad.flatten(1), full_matrices=False)
    along = left.T @ (moved / (LR * 0.2 * math.sqrt(max(rows, columns)))) @ right.T
    # Newton-Schulz with the usual coefficients ends between 0.7 and 1.2, in bfloat16.
    assert along.diagonal().min() > 0.6 and along.diagonal().max() < 1.3
    assert (along - along.diagonal().diag()).abs().max() < 0.05
    # Liu et al. 2025: the root mean square of a step is 0.2 lr, as AdamW's usually is.
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2 * LR, rel=0.25)


def test_what_is_no_matrix_is_stepped_by_adamw():
    network, same = (nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.GroupNorm(1, 3)) for _ in range(2))
    same.load_state_dict(network.state_dict())
    ours = optimizer_of(network, weight_decay=DECAY)
    theirs = build_optimizer(same, OptimConfig(kind="adamw", lr=LR, weight_decay=DECAY))
    for _ in range(3):
        for p, q in zip(network.parameters(), same.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    differ = {
        n for (n, p), q in zip(network.named_parameters(), same.parameters(), strict=True) if not torch.equal(p, q)
    }
    assert differ == {"1.weight"}


def steps(network, numbers, *, optimizer=None):
    optimizer = optimizer or optimizer_of(network)
    for k in numbers:
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(k))
        network(images).square().mean().backward()
        optimizer.step()
        assert all(p.grad is not None for p in network.parameters())
        optimizer.zero_grad(set_to_none=True)
    return optimizer


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 5, 3))


def test_the_order_in_memory_does_not_matter():
    plain, last = small(), small().to(memory_format=torch.channels_last)
    steps(plain, range(3))
    steps(last, range(3))
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        # The update is rounded to bfloat16, and sums come in another order.
        assert torch.allclose(p, q, atol=0.02 * LR)


def test_a_restored_state_goes_on_to_the_bit():
    whole, cut = small(), small()
    steps(whole, range(5))
    optimizer = steps(cut, range(2))
    saved = optimizer_tensors(optimizer, {p: n for n, p in cut.named_parameters()})
    assert {name for name in saved if "|momentum" in name} == {"0.weight|momentum_buffer", "2.weight|momentum_buffer"}
    again = small(seed=1)
    again.load_state_dict(cut.state_dict())
    other = optimizer_of(again)
    restore_optimizer(other, dict(again.named_parameters()), saved)
    other.load_state_dict(other.state_dict())  # as accelerate does with every optimiser that it is given
    steps(again, range(2, 5), optimizer=other)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_without_gradients_nothing_moves():
    network = small()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer_of(network, weight_decay=DECAY).step()
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
