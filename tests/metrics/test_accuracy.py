"""Conditional accuracy counts what it says."""

import numpy as np
import pytest

from pipeline.metrics.accuracy import attribute_accuracy, conditional_accuracy, wilson


def test_share_of_right_answers_by_class() -> None:
    found = conditional_accuracy(np.eye(3)[[0, 1, 2, 0, 0]], np.array([0, 1, 1, 0, -1]))
    assert found.value == pytest.approx(3 / 4) and found.count == 4
    assert found.by_class == (1.0, 0.5, None)


def test_the_interval_contains_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for truth in (0.5, 0.97):
        rights = rng.binomial(200, truth, 2000)
        inside = [low <= truth <= high for low, high in (wilson(float(r), 200) for r in rights)]
        assert 0.92 < np.mean(inside) < 0.985


def test_the_interval_contains_the_share_itself_also_where_it_rounds() -> None:
    """Wilson's interval ends at the share where that is 0 or 1."""
    for count in range(1, 300):
        for right in (0, 1, count):
            low, high = wilson(float(right), count)
            assert 0 <= low <= right / count <= high <= 1, (right, count)


def test_no_class_asked_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample"):
        conditional_accuracy(np.zeros((2, 3)), np.array([-1, -1]))
    with pytest.raises(ValueError, match="no sample"):
        attribute_accuracy(np.zeros((2, 3)), np.full((2, 3), -1))


def test_attributes_count_equally_and_what_was_not_asked_does_not() -> None:
    logits = np.array([[1.0, -1.0, 5.0], [1.0, 1.0, 5.0], [-1.0, 1.0, 5.0], [-1.0, 9.0, 5.0]])
    asked = np.array([[1, 0, -1], [0, -1, -1], [0, -1, -1], [0, -1, -1]])
    found = attribute_accuracy(logits, asked)
    first, second, third = found.by_attribute
    assert (first.value, first.count, second.value, second.count, third) == (0.75, 4, 1.0, 1, None)
    assert found.value == pytest.approx((0.75 + 1) / 2) and found.count == 4


def test_the_interval_of_attributes_knows_that_answers_of_one_sample_belong_together() -> None:
    """Ten attributes that are right or wrong together are worth one: the interval is as wide as for one."""
    rng, inside, widths = np.random.default_rng(0), [], []
    for _ in range(500):
        right = rng.random((300, 1)) < 0.8
        found = attribute_accuracy(np.where(right, 1.0, -1.0).repeat(10, axis=1), np.ones((300, 10), np.int8))
        inside.append(found.low <= 0.8 <= found.high)
        widths.append(found.high - found.low)
    assert 0.92 < np.mean(inside) < 0.985
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 300), rel=0.02)
