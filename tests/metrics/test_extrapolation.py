"""The interval holds the truth, and FID at infinity is nearer to it than the plain distance."""

import numpy as np
import pytest

from pipeline.metrics.extrapolation import at_infinity, jackknife
from pipeline.metrics.frechet import Target, frechet_distance
from pipeline.metrics.moments import Moments, moments

DIMENSIONS = 16
NORMAL = Moments(10**6, np.zeros(DIMENSIONS), np.eye(DIMENSIONS) * (10**6 - 1))


def test_the_fast_distance_is_the_exact_one() -> None:
    found = moments(np.random.default_rng(0).normal(0.2, 1.3, (300, DIMENSIONS)))
    assert Target(NORMAL).quick(found) == pytest.approx(frechet_distance(found, NORMAL), rel=1e-8)


def test_extrapolation_removes_most_of_the_bias() -> None:
    plain, limits = [], []
    for seed in range(30):
        features = np.random.default_rng(seed).normal(size=(600, DIMENSIONS))
        plain.append(frechet_distance(moments(features), NORMAL))
        limit = at_infinity(features, Target(NORMAL), seed=seed)
        assert limit is not None and len(limit.points) == 15
        limits.append(limit.value)
    assert np.mean(plain) > 0.1  # the truth is 0
    assert abs(np.mean(limits)) < 0.2 * np.mean(plain)


def test_no_extrapolation_from_fewer_images_than_dimensions() -> None:
    assert at_infinity(np.zeros((20, DIMENSIONS)), Target(NORMAL), seed=0) is None


def test_the_interval_is_as_wide_as_the_distance_scatters() -> None:
    values, errors, shift = [], [], 0.5
    for seed in range(60):
        x = np.random.default_rng(seed).normal(shift, 1, (500, DIMENSIONS))
        interval = jackknife([moments(part) for part in np.array_split(x, 10)], Target(NORMAL))
        assert interval is not None and interval.low < frechet_distance(moments(x), NORMAL) < interval.high
        values.append(frechet_distance(moments(x), NORMAL))
        errors.append(interval.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_one_block_has_no_interval() -> None:
    assert jackknife([moments(np.eye(DIMENSIONS))], Target(NORMAL)) is None
