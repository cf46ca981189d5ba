"""The numbers of torch-fidelity 0.4.0's own functions on features that a seed fixes, written down.

Its package cannot be imported without torchvision; `metric_fid`, `metric_kid`, `metric_isc` and `metric_prc` were run
alone, with FID from mean and `numpy.cov`, KID over 20 subsets of 300, the inception score over 10 splits, k = 3.
"""

import numpy as np
import pytest

from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.inception_score import inception_score
from pipeline.metrics.kernel_distance import kid
from pipeline.metrics.manifolds import precision_recall
from pipeline.metrics.moments import moments

RNG = np.random.default_rng(0)
FAKE = RNG.normal(0.1, 1, (700, 64)).astype(np.float32)
REAL = RNG.normal(0, 1.1, (900, 64)).astype(np.float32)


def test_frechet_distance() -> None:
    assert frechet_distance(moments(FAKE), moments(REAL)) == pytest.approx(4.449888063686984, rel=1e-6)


def test_kernel_distance_with_the_same_subsets() -> None:
    found = kid(FAKE, REAL, subsets=20, size=300, seed=2020)
    assert (found.mean, found.std) == pytest.approx((0.03719933032989502, 0.0075513938425482725), rel=1e-5)


def test_inception_score_with_the_same_permutation() -> None:
    found = inception_score(FAKE, splits=10, seed=2020)
    assert (found.mean, found.std) == pytest.approx((1.5916662145451972, 0.026607202148613604), rel=1e-9)


def test_precision_and_recall() -> None:
    found = precision_recall(FAKE, REAL, k=3)
    assert (found.precision, found.recall) == pytest.approx((0.8700000047683716, 0.27666667103767395), abs=1e-7)
