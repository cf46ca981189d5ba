"""The learning rate is a function of the step."""

import math

import pytest

from pipeline.config.schema import OptimConfig
from pipeline.train.optim import lr_at


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
