"""Precision, recall, density and coverage against brute force, and what they say of generators with known faults."""

import numpy as np
import pytest

from pipeline.metrics.manifolds import DensityCoverage, PrecisionRecall, density_coverage, precision_recall, radii

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


@pytest.mark.parametrize("block", [64, 300, 1024])
@pytest.mark.parametrize("dimensions", [64, 768])
def test_copies_are_in_every_ball_that_reaches_them_for_any_block(dimensions: int, block: int) -> None:
    """A generator that gives back every real image four times: its balls have no size, and hold the image itself."""
    real = np.random.default_rng(1).gamma(0.5, 30.0, (300, dimensions)).astype(np.float32)
    copies = np.repeat(real, 4, axis=0)
    assert precision_recall(copies, real, block=block) == PrecisionRecall(1.0, 1.0)
    assert density_coverage(copies, real, block=block).coverage == 1.0
    one = np.repeat(real[:1], 700, axis=0)
    assert precision_recall(one, real, block=block) == PrecisionRecall(1.0, 1 / 300)
    repeated = np.repeat(real[:60], 10, axis=0)  # real balls without a size, of which only the edge is reached
    assert density_coverage(real[:60], repeated, block=block) == DensityCoverage(0.0, 0.0)


def test_a_set_of_repeated_copies_recalls_every_image() -> None:
    """Balls without a size, around copies, hold the image itself; products of 2,048 numbers round otherwise."""
    for seed in range(4):
        real = np.random.default_rng(seed).normal(size=(30, 2048)).astype(np.float32)
        assert precision_recall(np.repeat(real, 37, axis=0), real).recall == 1.0


@pytest.mark.parametrize("block", [7, 64, 1024])
def test_ties_are_decided_as_by_differences_in_float64(block: int) -> None:
    """Shared images are exactly as far from some others as those balls reach: at their edge, and so not within it."""
    rng = np.random.default_rng(2)
    y = rng.gamma(0.5, 30.0, (150, 200)).astype(np.float32)
    x = np.concatenate([y[20:60], y[20:60], rng.gamma(0.5, 30.0, (40, 200)).astype(np.float32)])
    x_radius, y_radius = (np.sort(distances(z.astype(np.float64), z), 1)[:, 3] for z in (x, y))
    five, between = np.sort(distances(y.astype(np.float64), y), 1)[:, 5], distances(x.astype(np.float64), y)
    expected = (between <= y_radius).any(1).mean(), (between <= x_radius[:, None]).any(0).mean()
    assert precision_recall(x, y, block=block) == PrecisionRecall(*expected)
    assert (between == five).sum() >= 40  # there are ties, or this would say nothing
    expected = (between < five).sum() / (5 * len(x)), (between < five).any(0).mean()
    assert density_coverage(x, y, block=block) == DensityCoverage(*expected)


def test_one_pass_finds_the_neighbours_of_every_order_and_says_how_far_it_is() -> None:
    y, told = np.repeat(REAL[:90], 2, axis=0), []  # twins: the nearest other row is at no distance
    found = radii(y, (1, 5, 2), block=50, tick=told.append)
    brute = np.sort(distances(y, y) ** 2, 1)
    np.testing.assert_allclose(found, brute[:, [1, 5, 2]].T, atol=1e-12)
    assert told == [100, 80]  # a block of 50 different rows, and one of 40
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
