"""Averages against their closed forms."""

import weakref

import numpy as np
import pytest
import torch

from pipeline import ema


def run_average(decay_at, values, *, batch=4):
    average = {"w": torch.tensor([values[0]], dtype=torch.float64)}
    for step, value in enumerate(values, start=1):
        weights = {"w": torch.tensor([value], dtype=torch.float64)}
        ema.update(average, weights, decay=decay_at(step * batch, batch))
    return float(average["w"])


def test_half_life_halves_the_share_of_what_was_there():
    values = [1.0] + [0.0] * 25

    def decay(images, batch):
        return ema.exponential_decay(images, batch=batch, half_life=100, ramp_up=None)

    assert run_average(decay, values) == pytest.approx(0.5)


def test_ramp_up_makes_it_independent_of_the_first_weights():
    decay = ema.exponential_decay(8, batch=4, half_life=1e9, ramp_up=0.05)
    assert decay == pytest.approx(0.5 ** (4 / 0.4))


@pytest.mark.parametrize("gamma", [1.0, 6.94, 16.97])
def test_power_average_of_a_line_has_the_mean_of_its_profile(gamma):
    """The mean of x over p(x) = (g+1) x^g / t^(g+1) is t (g+1) / (g+2)."""
    steps = 20_000
    found = run_average(lambda images, batch: ema.power_decay(images, batch=batch, gamma=gamma), range(steps))
    assert found == pytest.approx(steps * (gamma + 1) / (gamma + 2), rel=1e-3)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_published_pairs_of_width_and_exponent(width, gamma):
    """Karras et al. 2024, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert ema.gamma_of(width) == pytest.approx(gamma, abs=5e-3)


@pytest.mark.parametrize("every", [250, 2])  # 2: four thousand are stored, of which some are used
def test_stored_averages_rebuild_another_length(every):
    """Post hoc: a width that was never tracked, from two that were, against tracking it."""
    rng = np.random.default_rng(0)
    batch, steps = 1, 4000
    values = np.cumsum(rng.normal(size=steps)) / 30
    tracked = {w: torch.zeros(1, dtype=torch.float64) for w in (0.05, 0.10, 0.075)}
    stored = []
    for step, value in enumerate(values, start=1):
        for width, average in tracked.items():
            decay = ema.power_decay(step, batch=batch, gamma=ema.gamma_of(width))
            ema.update({"w": average}, {"w": torch.tensor([value])}, decay=decay)
        if step % every == 0:
            stored += [(step, w, {"w": tracked[w].clone()}) for w in (0.05, 0.10)]
    coefficients = ema.solve_weights(
        [s for s, _, _ in stored],
        [ema.gamma_of(w) for _, w, _ in stored],
        time=steps,
        gamma=ema.gamma_of(0.075),
    )
    assert np.count_nonzero(coefficients) <= ema.MOST_SOLVED
    rebuilt = ema.combine([a for _, _, a in stored], coefficients)
    assert float(rebuilt["w"]) == pytest.approx(float(tracked[0.075]), abs=0.02)
    exact = ema.solve_weights([10.0], [3.0], time=10.0, gamma=3.0)
    assert exact == pytest.approx([1.0])


@pytest.mark.parametrize("times", [[12_000], [11_000, 12_000], range(1000, 12_001, 1000)])
@pytest.mark.parametrize("width", [0.03, 0.075, 0.15, 0.28])
def test_whatever_is_kept_weights_that_never_moved_are_rebuilt_as_they_are(times, width):
    """An average is a mean, however few checkpoints it is rebuilt from and whatever its length."""
    stored = [(t, ema.gamma_of(w)) for t in times for w in (0.05, 0.10)]
    coefficients = ema.solve_weights(
        [t for t, _ in stored], [g for _, g in stored], time=12_000, gamma=ema.gamma_of(width)
    )
    still = [{"w": torch.tensor([3.0, -0.01])} for _ in stored]
    torch.testing.assert_close(ema.combine(still, coefficients)["w"], still[0]["w"])


def test_counters_are_copied_not_averaged():
    average = {"n": torch.tensor(3)}
    ema.update(average, {"n": torch.tensor(8)}, decay=0.9)
    assert average["n"] == 8


def test_averages_are_taken_one_at_a_time():
    """The same sum as of all of them stacked; those that were taken before need not be there any more."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 3, generator=generator) for _ in range(30)]
    coefficients = np.random.default_rng(0).normal(size=30)
    alive = weakref.WeakSet()
    largest = 0

    def stored():
        nonlocal largest
        for k, value in enumerate(values):
            copy = value.clone()
            alive.add(copy)
            largest = max(largest, len(alive))
            one = {"w": copy, "n": torch.tensor(k)}
            del copy
            yield one
            del one

    found = ema.combine(stored(), coefficients)
    expected = torch.stack([float(c) * v.double() for c, v in zip(coefficients, values, strict=True)]).sum(0)
    torch.testing.assert_close(found["w"], expected.float(), rtol=0, atol=1e-6)
    assert found["n"] == 29
    assert largest <= 2
