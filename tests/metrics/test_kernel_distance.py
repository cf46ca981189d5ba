"""KID and CMMD against brute force, and their behaviour for equal and different sets."""

import numpy as np
import pytest

from pipeline.metrics.kernel_distance import cmmd, kid, polynomial_mmd2


def test_polynomial_mmd_equals_the_double_sum() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(1, 1, size=(5, 3))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 3 + 1) ** 3

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert polynomial_mmd2(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_kid_has_no_bias_from_few_images_where_a_frechet_distance_would() -> None:
    rng = np.random.default_rng(1)
    values = [
        kid(rng.normal(size=(40, 8)), rng.normal(size=(40, 8)), subsets=1, size=40, seed=0).mean for _ in range(400)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20


def test_kid_is_a_function_of_its_seed_and_grows_with_the_difference() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(200, 8)), rng.normal(size=(300, 8))
    same, near, far = (kid(x, y + shift, subsets=20, size=100, seed=5) for shift in (0, 0.3, 1.0))
    assert same == kid(x, y, subsets=20, size=100, seed=5)
    assert same.mean < near.mean < far.mean
    assert kid(x, y, subsets=3, size=1000, seed=0).size == 200


def test_cmmd_equals_the_double_sum_for_any_block_and_is_zero_for_equal_sets() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 5)), rng.normal(1, 1, size=(20, 5))
    u, v = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 200).mean())

    expected = 1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v))
    assert cmmd(x, y, block=7) == pytest.approx(expected, rel=1e-9)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_equal_numbers_of_every_class_bring_kid_below_zero() -> None:
    """Other rows of the set are of the same class a little too rarely, and the diagonal is what is left out."""
    rng = np.random.default_rng(4)
    centres = 3 * rng.normal(size=(10, 8))
    values = []
    for _ in range(60):
        x, y = (np.repeat(centres, 4, 0) + 0.1 * rng.normal(size=(40, 8)) for _ in range(2))
        values.append(polynomial_mmd2(x, y))
    assert max(values) < 0
