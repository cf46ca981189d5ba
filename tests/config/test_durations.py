"""Durations: one meaning for each way to write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.config.durations import Duration, to_images, to_steps
from pipeline.config.plan import plan_for
from pipeline.runtime.errors import UserError


def test_three_ways_to_say_the_same():
    lengths = {to_steps(t, batch=100, train_images=5000) for t in ("10 epochs", "500 steps", "50 kimg")}
    assert lengths == {500}


@given(steps=st.integers(1, 10**6), batch=st.integers(1, 4096))
def test_steps_and_images_are_inverse(steps, batch):
    images = to_images(f"{steps} steps", batch=batch, train_images=None)
    assert images == steps * batch
    assert to_steps(f"{images} images", batch=batch, train_images=None) == steps


def test_epochs_need_the_size_of_the_data():
    with pytest.raises(ValueError, match="prepare the data first"):
        to_steps("3 epochs", batch=8, train_images=None)


@pytest.mark.parametrize("found", [64, "64", "64 miles"])
def test_a_duration_without_its_unit_says_which_there_are(found):
    with pytest.raises(ValidationError, match=f"found '{found}', expected a number and a unit: '100 epochs'"):
        TypeAdapter(Duration).validate_python(found)


def test_an_interval_of_nothing_is_refused_and_one_of_less_than_an_image_is_a_step(plan):
    with pytest.raises(UserError, match=r"validate_every: found '0 steps', expected more than none, or null for never"):
        plan(1, validate_every="0 steps")
    assert plan(1, validate_every="0.001 epochs").validate_every == 1


@pytest.fixture
def plan(tmp_path):
    import tiny

    def make(world_size, train_images=60, **train):
        return plan_for(tiny.config(tmp_path, **train), train_images=train_images, world_size=world_size)

    return make


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_times_accumulation_times_micro_batch_is_the_global_batch(plan, world_size):
    found = plan(world_size, global_batch=8, micro_batch=2)
    assert found.micro_batch * found.accumulate * world_size == 8
    assert found.micro_batch <= 2


def test_a_batch_that_does_not_divide_over_the_ranks(plan):
    with pytest.raises(UserError, match=r"found 8, which does not divide over 3 ranks.*\[1, 2, 4, 8\]"):
        plan(3)


def test_a_discriminators_groups_of_images_stay_whole(tmp_path):
    import tiny

    cfg = tiny.config(tmp_path, model=tiny.GAME, micro_batch=4)
    assert plan_for(cfg, train_images=60, world_size=2).micro_batch == 4
    with pytest.raises(UserError, match=r"deviation_group: found 2, which does not divide the 1 images"):
        plan_for(cfg, train_images=60, world_size=8)


def test_a_batch_larger_than_the_data(plan):
    with pytest.raises(UserError, match="training split has 5 images"):
        plan(1, train_images=5)
