"""Guidance wraps denoisers and does nothing where it should do nothing."""

import pytest
import torch
from oracles import Gaussian, Mixture
from torch import Tensor

from pipeline.config.schema_diffusion import DiffusionConfig, GuidanceConfig, SamplerConfig
from pipeline.diffusion import guidance
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import build_generator, guided
from pipeline.diffusion.preconditioning import Denoise

CLASS = Mixture(weights=(1.0,), means=(0.7,), stds=(0.1,)).denoise
ALL = Mixture().denoise
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
SIGMA = torch.tensor(0.8, dtype=torch.float64)


def _guided(**settings: object) -> Tensor:
    return guided(GuidanceConfig.model_validate(settings), CLASS, ALL)(X, SIGMA)


def test_guidance_1_is_the_conditional_and_0_the_unconditional() -> None:
    assert torch.equal(_guided(scale=1.0), CLASS(X, SIGMA))
    torch.testing.assert_close(_guided(scale=0.0), ALL(X, SIGMA))
    torch.testing.assert_close(guidance.extrapolated(CLASS, ALL, factor=1.0)(X, SIGMA), CLASS(X, SIGMA))


def test_ho_counts_from_zero_where_cfg_counts_from_one() -> None:
    torch.testing.assert_close(_guided(scale=2.0, convention="ho"), _guided(scale=3.0))
    assert torch.equal(_guided(scale=0.0, convention="ho"), CLASS(X, SIGMA))
    # Ho & Salimans 2022, equation 6, in noise: (1 + w) eps(x, c) - w eps(x)
    eps, eps_all = (X - CLASS(X, SIGMA)) / SIGMA, (X - ALL(X, SIGMA)) / SIGMA
    torch.testing.assert_close(_guided(scale=2.0, convention="ho"), X - SIGMA * (3 * eps - 2 * eps_all))


def test_an_interval_guides_inside_and_leaves_the_conditional_outside() -> None:
    torch.testing.assert_close(_guided(scale=4.0, interval=(0.5, 1.0)), _guided(scale=4.0))
    assert torch.equal(_guided(scale=4.0, interval=(0.9, 1.0)), CLASS(X, SIGMA))


def test_outside_its_interval_guidance_costs_nothing() -> None:
    def refuse(x: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError(f"asked at {sigma} for {x.shape}")

    cfg = GuidanceConfig(scale=4.0, interval=(0.9, 1.0))
    assert torch.equal(guided(cfg, CLASS, refuse)(X, SIGMA), CLASS(X, SIGMA))


def test_full_rescaling_restores_the_conditionals_contrast() -> None:
    contrast = CLASS(X, SIGMA).flatten(1).std(dim=1)
    torch.testing.assert_close(_guided(scale=6.0, rescale=1.0).flatten(1).std(dim=1), contrast)
    halfway = _guided(scale=6.0, rescale=0.5).flatten(1).std(dim=1)
    torch.testing.assert_close(halfway, (contrast + _guided(scale=6.0).flatten(1).std(dim=1)) / 2)


def test_rescaling_asks_the_conditional_once() -> None:
    calls: list[float] = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return CLASS(x, sigma)

    guided(GuidanceConfig(scale=3.0, rescale=0.7), counted, ALL)(X, SIGMA)
    assert len(calls) == 1


def test_autoguidance_extrapolates_between_two_qualities() -> None:
    blurred: Denoise = Gaussian(std=0.6).denoise
    cfg = GuidanceConfig(kind="autoguidance", scale=2.0, guide_model="runs/small")
    torch.testing.assert_close(guided(cfg, CLASS, blurred)(X, SIGMA), 2 * CLASS(X, SIGMA) - blurred(X, SIGMA))


def test_guided_samples_move_away_from_what_is_not_the_class() -> None:
    def network(z: Tensor, cond: Tensor, labels: Tensor | None) -> Tensor:
        """Exact for class 0 (mean 0.7) and for unknown (label 1: the whole mixture), in edm's scales."""
        assert labels is not None
        sigma = (4 * cond).exp().view(-1, 1, 1, 1)
        s = process.scales(sigma)
        x = z / s.c_in
        wanted = torch.where(labels.view(-1, 1, 1, 1) == 0, CLASS(x, sigma), ALL(x, sigma))
        return (wanted - s.c_skip * x) / s.c_out

    process = build_process(DiffusionConfig())
    noise = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, unknown = torch.zeros(64, dtype=torch.long), torch.ones(64, dtype=torch.long)
    results = {}
    for scale in (1.0, 2.0):
        cfg = SamplerConfig(steps=24, guidance=GuidanceConfig(scale=scale), clip=1.0)
        generate = build_generator(cfg, process, network, condition=label, hidden=unknown)
        results[scale] = generate(noise, lambda _: noise)
    assert results[1.0].mean().item() == pytest.approx(0.7, abs=0.02)
    assert results[1.0].std().item() == pytest.approx(0.1, abs=0.02)
    assert results[2.0].mean() > results[1.0].mean()
    assert results[2.0].max() <= 1


def test_labels_are_hidden_per_image_by_their_own_number() -> None:
    labels, u = torch.tensor([4, 7, 2, 9]), torch.tensor([0.05, 0.5, 0.099, 0.2])
    assert guidance.hide_labels(labels, u, share=0.1, unknown=10).tolist() == [10, 7, 10, 9]
    assert guidance.hide_labels(labels[1:2], u[1:2], share=0.1, unknown=10).tolist() == [7]
    assert guidance.hide_labels(labels, u, share=0.0, unknown=10).equal(labels)


def test_attributes_are_hidden_together_or_one_by_one() -> None:
    attributes = torch.tensor([[0, 1, 1], [1, 0, -1]], dtype=torch.int8)
    whole = guidance.hide_labels(attributes, torch.tensor([0.9, 0.01]), share=0.1, unknown=-1)
    assert whole.tolist() == [[0, 1, 1], [-1, -1, -1]] and whole.dtype == torch.int8
    u = torch.tensor([[0.01, 0.9, 0.9], [0.9, 0.02, 0.9]])
    assert guidance.hide_labels(attributes, u, share=0.1, unknown=-1).tolist() == [[-1, 1, 1], [1, -1, -1]]
