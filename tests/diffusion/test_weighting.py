"""Losses are those of the papers, whatever the coordinates."""

import pytest
import torch
from oracles import Gaussian
from torch import Tensor

from pipeline.config.schema_diffusion import DiffusionConfig
from pipeline.diffusion import weighting
from pipeline.diffusion.build import build_balance, build_process
from pipeline.diffusion.uncertainty import LossBalance

GENERATOR = torch.Generator().manual_seed(3)
X0 = torch.randn(6, 2, 4, 4, generator=GENERATOR, dtype=torch.float64)
NOISE = torch.randn(6, 2, 4, 4, generator=GENERATOR, dtype=torch.float64)
OUTPUT = torch.randn(6, 2, 4, 4, generator=GENERATOR, dtype=torch.float64)
SIGMA = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 70.0], dtype=torch.float64).view(-1, 1, 1, 1)
ALPHA = 1 / (1 + SIGMA**2).sqrt()

TARGETS = {
    "eps": NOISE,
    "x0": X0,
    "v": ALPHA * NOISE - ALPHA * SIGMA * X0,
    "flow": NOISE - X0,
}


def _loss(cfg: DiffusionConfig) -> Tensor:
    return build_process(cfg).loss(lambda *_: OUTPUT, X0, sigma=SIGMA, noise=NOISE)


@pytest.mark.parametrize("name", TARGETS)
def test_the_plain_loss_is_the_error_of_what_the_paper_predicts(name: str) -> None:
    expected = ((OUTPUT - TARGETS[name]) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(_loss(DiffusionConfig(parametrisation=name)), expected, rtol=1e-7, atol=1e-9)


def test_edm_weighting_is_the_plain_loss_of_edm() -> None:
    torch.testing.assert_close(_loss(DiffusionConfig(weighting="edm")), _loss(DiffusionConfig(weighting="plain")))


def test_the_loss_is_the_weighted_error_of_the_denoiser() -> None:
    cfg = DiffusionConfig(parametrisation="v", weighting="min_snr")
    process = build_process(cfg)
    s, x = process.scales(SIGMA), X0 + SIGMA * NOISE
    error = ((s.c_skip * x + s.c_out * OUTPUT - X0) ** 2).mean(dim=(1, 2, 3))
    expected = torch.minimum(SIGMA.flatten() ** -2, torch.tensor(5.0, dtype=torch.float64)) * error
    torch.testing.assert_close(_loss(cfg), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "closed"), [
    ("eps", SIGMA**-2), ("x0", torch.ones_like(SIGMA)), ("v", 1 + SIGMA**-2), ("edm", 4 + SIGMA**-2),
])  # fmt: skip
def test_plain_weights_are_functions_of_the_signal_to_noise_ratio(name: str, closed: Tensor) -> None:
    torch.testing.assert_close(build_process(DiffusionConfig(parametrisation=name)).weight(SIGMA), closed)


def test_snr_weighting_of_x0_is_the_plain_loss_of_eps() -> None:
    torch.testing.assert_close(
        weighting.snr(SIGMA), build_process(DiffusionConfig(parametrisation="eps")).weight(SIGMA)
    )
    torch.testing.assert_close(weighting.min_snr(5.0)(SIGMA), weighting.snr(SIGMA).clamp(max=5.0))


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
def test_the_best_denoiser_has_the_posterior_variance_as_loss(name: str) -> None:
    data, generator = Gaussian(), torch.Generator().manual_seed(0)
    process = build_process(DiffusionConfig(parametrisation=name, weighting="uniform"))
    sigma = torch.full((4, 1, 1, 1), 0.7, dtype=torch.float64)
    x0 = data.mean + data.std * torch.randn(4, 1, 200, 200, generator=generator, dtype=torch.float64)
    s = process.scales(sigma)

    def perfect(z: Tensor, *_: Tensor | None) -> Tensor:
        x = z / s.c_in
        return (data.denoise(x, sigma) - s.c_skip * x) / s.c_out

    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    loss = process.loss(perfect, x0, sigma=sigma, noise=noise)
    assert loss.mean().item() == pytest.approx(0.25 * 0.49 / (0.25 + 0.49), rel=0.01)


def test_learned_uncertainty_starts_neutral_and_ends_at_the_loss() -> None:
    balance = build_balance(DiffusionConfig(learned_uncertainty=True))
    assert isinstance(balance, LossBalance)
    sigma = torch.logspace(-2, 1.5, 64)
    loss = 0.05 + 2 / (1 + sigma)
    torch.testing.assert_close(balance(loss, sigma), loss)
    optimiser = torch.optim.LBFGS(balance.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = balance(loss, sigma).mean()
        value.backward()
        return value

    optimiser.step(closure)
    torch.testing.assert_close(balance.uncertainty(sigma).exp(), loss, rtol=0.02, atol=0.0)


def test_without_learned_uncertainty_nothing_is_added() -> None:
    balance, loss = build_balance(DiffusionConfig()), torch.tensor([1.0, 2.0])
    assert balance(loss, SIGMA) is loss and not list(balance.parameters())
