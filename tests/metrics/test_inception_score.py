"""The inception score at its two ends, and what splits do."""

import numpy as np
import pytest

from pipeline.metrics.inception_score import inception_score


def test_sure_and_diverse_predictions_score_the_number_of_classes() -> None:
    logits = 200.0 * np.eye(8)[np.arange(800) % 8]
    assert inception_score(logits, splits=1, seed=None).mean == pytest.approx(8, rel=1e-9)


def test_a_single_class_and_pure_doubt_both_score_one() -> None:
    assert inception_score(np.tile([50.0, 0, 0], (90, 1)), splits=3, seed=0).mean == pytest.approx(1, abs=1e-9)
    assert inception_score(np.zeros((90, 5)), splits=3, seed=0).mean == pytest.approx(1, abs=1e-12)


def test_permuting_first_saves_a_set_that_is_ordered_by_class() -> None:
    logits = 200.0 * np.eye(10)[np.repeat(np.arange(10), 200)]
    assert inception_score(logits, splits=10, seed=None).mean == pytest.approx(1)
    assert inception_score(logits, splits=10, seed=1).mean > 9


def test_adding_a_constant_to_logits_changes_nothing() -> None:
    logits = np.random.default_rng(0).normal(size=(100, 6))
    one, other = (inception_score(x, splits=4, seed=3) for x in (logits, logits + 1000))
    assert one.mean == pytest.approx(other.mean, rel=1e-10) and one.std == pytest.approx(other.std, rel=1e-8)
