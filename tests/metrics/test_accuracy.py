"""Conditional accuracy counts what it says."""

import numpy as np
import pytest

from pipeline.metrics.accuracy import conditional_accuracy, wilson


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


def test_no_class_asked_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample"):
        conditional_accuracy(np.zeros((2, 3)), np.array([-1, -1]))
