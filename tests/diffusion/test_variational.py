"""The variational bound has the value it must have."""

import math
from collections.abc import Callable

import pytest
import torch
from oracles import Gaussian
from torch import Tensor

from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig
from pipeline.diffusion import variational
from pipeline.diffusion.build import build_process
from pipeline.diffusion.posterior import large_variance, small_variance

DATA = Gaussian(mean=0.0, std=0.25)
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * DATA.std**2) - math.log2(variational.GREY_LEVEL)  # bits a pixel


def _images(count: int = 8, size: int = 64) -> Tensor:
    """8-bit images of Gaussian pixels (so narrow that clipping at [-1, 1] takes 6e-5 of them)."""
    x = DATA.std * torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def _noise(like: Tensor) -> Callable[[int], Tensor]:
    return lambda t: torch.randn(like.shape, generator=torch.Generator().manual_seed(100 + t), dtype=like.dtype)


def _table(timesteps: int) -> Tensor:
    return torch.tensor(DDPMLevels(kind="ddpm", schedule="cosine", timesteps=timesteps).sigmas, dtype=torch.float64)


@pytest.mark.parametrize(("place", "variance"), [(0.0, small_variance), (1.0, large_variance)])
def test_terms_of_a_gaussian_have_their_analytic_value(
    place: float, variance: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Both distributions of a step are known; their expected divergence is a sum of squares."""
    table, x0 = _table(40), _images()
    bound = variational.bits_per_dimension(DATA.denoise, x0, table, noise=_noise(x0), place=lambda: place)
    sigma, after = table[1:], table[:-1]
    true, model = small_variance(sigma, after), variance(sigma, after)
    spread = DATA.std**2 * sigma**2 / (DATA.std**2 + sigma**2)  # E|x0 - D|^2
    gap = (1 - after**2 / sigma**2) ** 2 * spread
    analytic = ((model / true).log() + true / model + gap / model - 1) / 2 / math.log(2)
    torch.testing.assert_close(bound.terms[:, 1:].mean(dim=0), analytic, rtol=0.04, atol=1e-4)


def test_the_prior_term_has_its_analytic_value() -> None:
    x0, sigma = _images(), torch.tensor(5.0, dtype=torch.float64)
    alpha_bar = 1 / 26
    mean_square = (x0**2).mean(dim=(1, 2, 3))
    nats = (alpha_bar * mean_square + (1 - alpha_bar) - math.log(1 - alpha_bar) - 1) / 2
    torch.testing.assert_close(variational.prior_bound(x0, sigma), nats / math.log(2))


def _best_places(table: Tensor) -> list[Tensor]:
    """Where the variance of p(x_next | x) stands between small and large: for Gaussian data it is known."""
    after = torch.cat([torch.zeros(1, dtype=table.dtype), table[:-1]])
    unknown = DATA.std**2 * table**2 / (DATA.std**2 + table**2)  # of x0 given x
    best = small_variance(table, after) + (1 - after**2 / table**2) ** 2 * unknown
    small, large = small_variance(table, after), large_variance(table, after)
    small[0] = small[1] / (1 + table[0] ** 2)  # timestep 0 takes the small variance of timestep 1
    return list((best / small).log() / (large / small).log())


@pytest.mark.parametrize("timesteps", [20, 100])
def test_the_bound_of_a_gaussian_is_its_entropy(timesteps: int) -> None:
    """With the exact mean and variance of every step nothing is lost, however few steps there are."""
    table, x0 = _table(timesteps), _images()
    table = torch.cat([torch.tensor([0.01], dtype=torch.float64), table])  # resolves a grey level
    places = iter(_best_places(table))
    bound = variational.bits_per_dimension(DATA.denoise, x0, table, noise=_noise(x0), place=lambda: next(places))
    assert bound.total.mean().item() == pytest.approx(ENTROPY, abs=0.02)


def test_a_fixed_variance_costs_bits_and_more_steps_win_them_back() -> None:
    def gap(timesteps: int) -> float:
        noise = _noise(x0)
        bound = variational.bits_per_dimension(DATA.denoise, x0, _table(timesteps), noise=noise, place=lambda: 1.0)
        return float(bound.total.mean()) - ENTROPY

    x0 = _images()
    gaps = [gap(25), gap(50), gap(100)]
    assert gaps[0] > 1.5 * gaps[1] > 1.5**2 * gaps[2] > 0.05


def test_grey_levels_share_the_whole_mass() -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, std in ((0.0, 0.3), (0.95, 0.1), (-1.5, 0.004)):
        log_mass = variational.grey_level_log_likelihood(
            levels,
            mean=torch.tensor(mean, dtype=torch.float64),
            log_std=torch.tensor(math.log(std), dtype=torch.float64),
        )
        assert log_mass.exp().sum().item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("log_std", [-7.0, -3.0, 0.0, 9.0])
def test_grey_levels_far_from_the_mean_keep_a_finite_cost_and_slope(log_std: float) -> None:
    """Also in float32, for pixels inside and outside the range, at both ends."""
    x = torch.tensor([0.9, -0.9, 1.0, -1.0, 1.3, 0.0])
    mean = torch.tensor([-0.9, 0.9, -3.0, 2.0, -1.0, 0.0], requires_grad=True)
    spread = torch.tensor(log_std, requires_grad=True)
    log_mass = variational.grey_level_log_likelihood(x, mean=mean, log_std=spread)
    log_mass.sum().backward()
    assert mean.grad is not None and spread.grad is not None
    assert log_mass.isfinite().all() and mean.grad.isfinite().all() and spread.grad.isfinite()
    assert (mean.grad[:5] * (x - mean)[:5] >= 0).all()  # towards the pixel
    distance = 1.8 * math.exp(-log_std)
    if distance > 10:  # the slope of a Gaussian's logarithm, at the near edge of the level
        assert mean.grad[0].item() == pytest.approx((1.8 - 1 / 255) * math.exp(-2 * log_std), rel=0.02)


def _learned(raw: Tensor, *, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Hybrid and plain loss of a network with mean output 0 and the given variance channel; and the bound."""
    settings = {"parametrisation": "eps", "levels": DDPMLevels(kind="ddpm", timesteps=60)}
    hybrid = build_process(DiffusionConfig(**settings, learned_variance=True, vlb_share=share))
    plain = build_process(DiffusionConfig(**settings))
    assert hybrid.table is not None
    x0 = _images(count=6, size=8)
    sigma, noise = hybrid.table[[0, 1, 10, 30, 50, 59]].view(-1, 1, 1, 1), _noise(x0)(0)
    both = hybrid.loss(lambda x, *_: torch.cat([x.tanh(), raw.expand_as(x)], 1), x0, sigma=sigma, noise=noise)
    alone = plain.loss(lambda x, *_: x.tanh(), x0, sigma=sigma, noise=noise)
    s = hybrid.scales(sigma)
    x = x0 + sigma * noise
    bound = variational.step_bound(
        x0,
        s.c_skip * x + s.c_out * (s.c_in * x).tanh(),
        timesteps=torch.tensor([0, 1, 10, 30, 50, 59]),
        table=hybrid.table,
        place=(raw + 1) / 2,
    )
    return both, alone, bound


def test_the_hybrid_loss_is_the_simple_one_plus_its_share_of_the_bound() -> None:
    both, alone, bound = _learned(torch.full((6, 1, 1, 1), 0.3, dtype=torch.float64), share=0.001)
    torch.testing.assert_close(both, alone + 0.001 * 60 * bound)


def test_the_bound_teaches_the_variance_and_leaves_the_mean_alone() -> None:
    process = build_process(
        DiffusionConfig(parametrisation="eps", levels=DDPMLevels(kind="ddpm", timesteps=60), learned_variance=True)
    )
    assert process.table is not None
    x0 = _images(count=2, size=8)
    sigma, noise = process.table[[3, 40]].view(-1, 1, 1, 1), _noise(x0)(0)
    mean, raw = noise.clone().requires_grad_(), torch.zeros_like(noise, requires_grad=True)
    process.loss(lambda *_: torch.cat([mean, raw], 1), x0, sigma=sigma, noise=noise).sum().backward()
    assert mean.grad is not None and raw.grad is not None
    assert mean.grad.abs().max() < 1e-12  # the noise itself was predicted: L_simple is at its minimum
    assert raw.grad.abs().min() > 0


def test_the_best_variance_of_a_point_is_the_small_one() -> None:
    """A perfect denoiser (x0 known) makes the true posterior the best answer: bound 0 at place 0, above elsewhere."""
    table, x0 = _table(30), _images(count=1, size=4)

    def term(place: float) -> float:
        return float(
            variational.step_bound(
                x0, x0, timesteps=torch.tensor([12]), table=table, place=torch.tensor(place, dtype=torch.float64)
            )
        )  # fmt: skip

    assert term(0.0) == pytest.approx(0.0, abs=1e-12)
    assert 0 < term(0.3) < term(1.0)
