"""Nearest neighbours equal a brute-force float64 search."""

import numpy as np
import pytest

from pipeline.metrics.nearest import nearest


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_equal_to_brute_force_for_any_block(block: int) -> None:
    rng = np.random.default_rng(0)
    q, c = rng.normal(size=(40, 9)).astype(np.float32), rng.normal(size=(101, 9)).astype(np.float32)
    distance = np.sqrt(((q[:, None].astype(np.float64) - c[None]) ** 2).sum(2))
    found = nearest(q, c, k=5, block=block)
    np.testing.assert_array_equal(found.index, distance.argsort(1)[:, :5])
    np.testing.assert_allclose(found.distance, np.sort(distance, 1)[:, :5], rtol=1e-12)


def test_a_row_is_not_its_own_neighbour_but_its_twin_is() -> None:
    rows = np.array([[0.0, 0], [3, 4], [0, 0]], np.float32)
    found = nearest(rows, rows, k=1, skip_self=True, block=2)
    np.testing.assert_array_equal(found.index[:, 0], [2, 0, 0])
    np.testing.assert_allclose(found.distance[:, 0], [0, 5, 0])


def test_copies_are_found_at_exactly_zero_far_from_the_origin() -> None:
    rows = (np.random.default_rng(1).normal(size=(300, 50)) + 1000).astype(np.float32)
    found = nearest(rows[::-1], rows, k=1)
    np.testing.assert_array_equal(found.index[:, 0], np.arange(300)[::-1])
    assert (found.distance == 0).all()


def test_fewer_candidates_than_asked_for() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert nearest(rows, rows, k=10).index.shape == (3, 3)
