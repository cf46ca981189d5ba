"""The Frechet distance against its closed forms."""

import numpy as np
import pytest
from scipy import linalg

from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.moments import Moments, moments


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(11, mean, covariance * 10)


def test_commuting_covariances_have_a_closed_form() -> None:
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0.1, 5, 6), rng.uniform(0.1, 5, 6)
    m, n = rng.normal(size=6), rng.normal(size=6)
    one, other = gaussian(m, (rotation * a) @ rotation.T), gaussian(n, (rotation * b) @ rotation.T)
    expected = ((m - n) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


def test_any_covariances_as_by_the_matrix_square_root() -> None:
    rng = np.random.default_rng(2)
    x, y = (
        rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)),
        rng.normal(size=(150, 12)) @ rng.normal(size=(12, 12)),
    )
    one, other = moments(x), moments(y)
    root = linalg.sqrtm(one.covariance @ other.covariance).real
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), rel=1e-12)


def test_a_set_is_at_distance_zero_from_itself_also_with_fewer_images_than_dimensions() -> None:
    few = moments(np.random.default_rng(3).normal(size=(20, 64)))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


def test_a_shift_and_a_scale_add_up() -> None:
    x = np.random.default_rng(4).normal(size=(400, 5))
    one = moments(x)
    assert frechet_distance(one, moments(x + 2.0)) == pytest.approx(5 * 4.0, rel=1e-10)
    centred = x - x.mean(0)
    spread = np.trace(moments(centred).covariance)
    assert frechet_distance(moments(centred), moments(3 * centred)) == pytest.approx(4 * spread, rel=1e-10)


def test_different_features_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="different features"):
        frechet_distance(moments(np.eye(3)), moments(np.eye(4)))
