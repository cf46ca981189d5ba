"""Precision, recall, density and coverage against brute force, and what they say of generators with known faults."""

import numpy as np
import pytest

from pipeline.metrics.manifolds import density_coverage, precision_recall, radii

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(500, 6))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2))


@pytest.mark.parametrize("block", [33, 4096])
def test_equal_to_brute_force_for_any_block(block: int) -> None:
    x, y, k = RNG.normal(0.5, 1, (120, 6)), REAL[:150], 3
    x_radius = np.sort(distances(x, x), 1)[:, k]
    y_radius = np.sort(distances(y, y), 1)[:, k]
    between = distances(x, y)
    found = precision_recall(x, y, k=k, block=block)
    assert found.precision == pytest.approx((between <= y_radius).any(1).mean(), abs=1e-12)
    assert found.recall == pytest.approx((between <= x_radius[:, None]).any(0).mean(), abs=1e-12)
    dense = density_coverage(x, y, k=k, block=block)
    assert dense.density == pytest.approx((between < y_radius).sum() / (k * len(x)), abs=1e-12)
    assert dense.coverage == pytest.approx((between.min(0) < y_radius).mean(), abs=1e-12)


def test_one_pass_finds_the_neighbours_of_every_order_and_says_how_far_it_is() -> None:
    y, told = np.repeat(REAL[:90], 2, axis=0), []  # twins: the nearest other row is at no distance
    found = radii(y, (1, 5, 2), block=50, tick=told.append)
    brute = np.sort(distances(y, y) ** 2, 1)
    np.testing.assert_allclose(found, brute[:, [1, 5, 2]].T, atol=1e-12)
    assert told == [50, 50, 50, 30]
    given = radii(REAL, (3, 5))
    assert precision_recall(y, REAL, reaches=given[0]) == precision_recall(y, REAL)
    assert density_coverage(y, REAL, reaches=given[1]) == density_coverage(y, REAL)


def test_a_collapsed_generator_has_high_precision_and_low_recall() -> None:
    collapsed = REAL[0] + 1e-3 * RNG.normal(size=(500, 6))
    found, dense = precision_recall(collapsed, REAL), density_coverage(collapsed, REAL)
    assert found.precision > 0.95 and found.recall < 0.05
    assert dense.coverage < 0.05


def test_noise_over_everything_has_low_precision_and_covers_recall() -> None:
    found = precision_recall(RNG.normal(0, 4, (500, 6)), REAL)
    assert found.precision < 0.4 and found.recall > 0.9


def test_the_true_distribution_has_both_and_density_and_coverage_near_one() -> None:
    fresh = RNG.normal(size=(500, 6))
    found, dense = precision_recall(fresh, REAL), density_coverage(fresh, REAL)
    assert found.precision > 0.8 and found.recall > 0.8
    assert dense.density == pytest.approx(1, abs=0.15) and dense.coverage > 0.9


def test_too_few_images_for_a_neighbour_is_said() -> None:
    with pytest.raises(ValueError, match="needs more than 3 images"):
        precision_recall(REAL[:3], REAL)
