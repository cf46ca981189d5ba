"""The order of samples: a pure function that shuffles, whoever asks for whichever part of it."""

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.data.order import images_of

seeds = st.integers(0, 2**63 - 1)
IMAGENET = 1_281_167
GOLDEN = [[8, 0, 6, 5, 1, 4, 7, 9, 2, 3, 6, 9, 0, 2, 7, 8, 3, 4, 1, 5], [583981, 714891, 945339, 1244989, 657168]]


def epoch_order(size: int, *, seed: int, epoch: int = 0) -> np.ndarray:
    return images_of(np.arange(epoch * size, (epoch + 1) * size), seed=seed, size=size)


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 2**40))
def test_an_epoch_shows_each_sample_exactly_once(size, seed, epoch):
    assert np.array_equal(np.sort(epoch_order(size, seed=seed, epoch=epoch)), np.arange(size))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 500), seed=seeds, start=st.integers(0, 2000), cut=st.integers(0, 700))
def test_any_part_equals_that_part_of_the_whole(size, seed, start, cut):
    whole = images_of(np.arange(2700), seed=seed, size=size)
    assert np.array_equal(images_of(np.arange(start, start + cut), seed=seed, size=size), whole[start : start + cut])
    scattered = np.random.default_rng(cut).permutation(2700).reshape(27, 100)
    assert np.array_equal(images_of(scattered, seed=seed, size=size), whole[scattered])


def test_orders_of_other_epochs_and_seeds_are_unrelated():
    size = 4000
    orders = [epoch_order(size, seed=seed, epoch=epoch) for seed, epoch in itertools.product((0, 1, 2**40), (0, 1, 2))]
    for first, second in itertools.combinations(orders, 2):
        assert (first == second).sum() < 10  # as many agree as a random permutation has fixed points: one, on average
        assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / math.sqrt(size)
    for order in orders:
        assert (order == np.arange(size)).sum() < 10
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4.5 / math.sqrt(size)


@pytest.mark.parametrize("size", [2, 3, 10, 50, 101, 256])
def test_every_sample_is_as_likely_anywhere_and_after_any_other(size):
    """Over many epochs: chi-squared tests of single positions, and of the distance between two positions' samples."""
    epochs = 100_000 // size
    orders = images_of(np.arange(epochs * size), seed=7, size=size).reshape(epochs, size)
    for position in {0, 1, size // 2, size - 1}:
        assert stats.chisquare(np.bincount(orders[:, position], minlength=size)).pvalue > 1e-3
    for position in {1, size // 2, size - 1} if size > 2 else {}:
        distances = np.bincount((orders[:, position] - orders[:, 0]) % size, minlength=size)
        assert distances[0] == 0
        assert stats.chisquare(distances[1:]).pvalue > 1e-3


def test_shuffled_across_the_whole_set():
    """A batch comes from everywhere: its samples, sorted, are as uniform as independent draws would be."""
    order = images_of(np.arange(5_000_000_000, 5_000_000_000 + 4096), seed=3, size=IMAGENET)
    assert stats.kstest(order / IMAGENET, "uniform").pvalue > 0.01


def test_the_order_itself_stays_as_it_is():
    """Runs that were stopped continue with it: changing these numbers breaks every checkpoint."""
    assert images_of(np.arange(20), seed=0, size=10).tolist() == GOLDEN[0]
    assert images_of(np.arange(2**40, 2**40 + 5), seed=123456789, size=IMAGENET).tolist() == GOLDEN[1]


def test_any_position_of_a_large_set_costs_the_same_and_keeps_nothing():
    """At 1.3 M samples: a batch anywhere for a fraction of an epoch's order, in memory that does not know the size."""
    began = time.process_time()
    epoch_order(IMAGENET, seed=0)
    whole_epoch = time.process_time() - began
    tracemalloc.start()
    try:
        for start in (0, 700_000, 10**9, 2**50):
            sample_indices = np.arange(start, start + 256)
            images_of(sample_indices, seed=start, size=IMAGENET)  # the first call of an epoch makes its keys
            began = time.process_time()
            for _ in range(20):
                images_of(sample_indices, seed=start, size=IMAGENET)
            assert (time.process_time() - began) / 20 < whole_epoch / 5
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_whole_epoch_of_a_large_set():
    order = epoch_order(IMAGENET, seed=1)
    seen = np.zeros(IMAGENET, dtype=np.bool_)
    seen[order] = True
    assert seen.all()


def test_no_samples_no_order():
    with pytest.raises(ValueError, match="0 samples"):
        images_of(np.arange(3), seed=0, size=0)
