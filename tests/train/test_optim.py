"""The learning rate is a function of the step."""

import math

import pytest
import torch

from pipeline.config.schema import OptimConfig
from pipeline.train.optim import build_optimizer, lr_at


def lr(step, *, total=1000, warmup=100, **cfg):
    return lr_at(step, cfg=OptimConfig(lr=2.0, **cfg), total_steps=total, warmup_steps=warmup)


def test_warm_up_is_linear_and_ends_at_the_full_rate():
    assert [lr(s) for s in (0, 49, 99)] == pytest.approx([0.02, 1.0, 2.0])


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 2.0, 2.0), ("linear", 1.0, 0.0), ("cosine", 1.0, 0.0)]
)
def test_closed_forms_halfway_and_at_the_end(schedule, middle, end):
    assert lr(550, schedule=schedule) == pytest.approx(middle)
    assert lr(1000, schedule=schedule) == pytest.approx(end, abs=1e-12)


def test_final_rate_is_a_share():
    assert lr(1000, schedule="cosine", final_lr=0.1) == pytest.approx(0.2)


def test_inverse_square_root_continues_the_warm_up():
    assert lr(100, schedule="inverse_sqrt") == pytest.approx(2.0)
    assert lr(400, schedule="inverse_sqrt") == pytest.approx(2.0 / math.sqrt(4))


def test_cosine_then_constant_stays_where_it_ended():
    cfg = {"schedule": "cosine_then_constant", "decay_share": 0.5, "final_lr": 0.25}
    assert lr(550, **cfg) == pytest.approx(0.5)
    assert lr(900, **cfg) == pytest.approx(0.5)


def stepped(*gradients, **cfg):
    """A weight of 1 after steps with these gradients."""
    network = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.ones_(network.weight)
    optimizer = build_optimizer(network, OptimConfig(lr=0.1, **cfg))
    for gradient in gradients:
        network.weight.grad = torch.full_like(network.weight, gradient)
        optimizer.step()
    return network.weight.item()


def test_one_step_of_each_kind_has_its_closed_form():
    assert stepped(0.5, kind="sgd", weight_decay=0.2) == pytest.approx(1 - 0.1 * (0.5 + 0.2))
    assert stepped(0.5, 0.5, kind="sgd", momentum=0.8) == pytest.approx(1 - 0.1 * 0.5 * (1 + 1.8))
    # The first step of Adam is lr in the gradient's direction, with decay (Adam) in it or (AdamW) beside it.
    assert stepped(-0.5, kind="adam", weight_decay=0.2) == pytest.approx(1 + 0.1)
    assert stepped(-0.5, kind="adam", weight_decay=0.8) == pytest.approx(1 - 0.1)
    assert stepped(-0.5, kind="adamw", weight_decay=0.8) == pytest.approx(1 * (1 - 0.1 * 0.8) + 0.1)
    # null is torch's own
    assert stepped(-0.5, kind="adamw", weight_decay=None) == stepped(-0.5, kind="adamw", weight_decay=0.01)
    assert stepped(-0.5, kind="adam", weight_decay=None) == stepped(-0.5, kind="adam", weight_decay=0.0)
    first, second = (1 - 0.6) * 0.5 * 0.6 + 0.4 * 0.1, (1 - 0.9) * 0.5**2 * 0.9 + 0.1 * 0.1**2
    last = 0.1 * (first / (1 - 0.6**2)) / (second / (1 - 0.9**2)) ** 0.5
    assert stepped(0.5, 0.1, kind="adam", betas=(0.6, 0.9)) == pytest.approx(1 - 0.1 - last)


def test_a_first_step_that_is_skipped_leaves_no_momentum_behind():
    """Torch allocates SGD's momentum in the first step and does not write it where the step is skipped."""
    layer = torch.nn.Linear(3, 2)
    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN
    try:
        sgd = build_optimizer(layer, OptimConfig(kind="sgd", lr=0.1))
        before = layer.weight.detach().clone()
        for skipped in (1.0, 0.0):
            layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
            sgd.found_inf = torch.tensor(skipped)
            sgd.step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.allclose(layer.weight, before - 0.1)
