"""Moments merge exactly, however the images were divided."""

import numpy as np
import pytest

from pipeline.metrics.moments import merged, moments


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(1000.0, 1.0, (503, 7)).astype(np.float32)  # far from 0: cancellation shows


@pytest.mark.parametrize("pieces", [1, 2, 7, 503])
def test_any_division_gives_the_same_moments(features: np.ndarray, pieces: int) -> None:
    whole = features.astype(np.float64)
    total = merged(moments(part) for part in np.array_split(features, pieces))
    assert total.count == 503
    np.testing.assert_allclose(total.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance, np.cov(whole.T), rtol=1e-9, atol=1e-12)


def test_an_empty_part_changes_nothing(features: np.ndarray) -> None:
    alone, joined = moments(features), merged([moments(features[:0]), moments(features), moments(features[:0])])
    np.testing.assert_array_equal(alone.scatter, joined.scatter)
    np.testing.assert_array_equal(alone.mean, joined.mean)


def test_one_image_has_no_covariance(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        _ = moments(features[:1]).covariance
