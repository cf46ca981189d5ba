"""The losses of autoencoders: closed forms, and that each belongs to its image."""

import math

import pytest
import torch

from pipeline.config.schema_objectives import DegradationConfig
from pipeline.metrics.reconstruction import psnr, ssim
from pipeline.models.posterior import Posterior, from_moments
from pipeline.objectives.autoencoder_losses import (
    LARGEST_WEIGHT,
    adaptive_weight,
    discriminator_loss,
    divergence,
    error,
    generator_loss,
)
from pipeline.objectives.degradation import blurred, degraded, square


def test_divergence_is_the_closed_form_over_the_number_of_pixel_values():
    moments = torch.stack([torch.tensor([1.5, -2.0]), torch.tensor([math.log(4.0), 0.0])]).flatten()[
        None, :, None, None
    ]
    expected = (1.5**2 + 4 - 1) / 2 - math.log(2) + 2.0**2 / 2
    found = divergence(from_moments(moments), torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    assert found.item() == pytest.approx(expected / 48, rel=1e-12)


def test_divergence_is_the_mean_log_ratio_of_the_densities():
    """Against sampling: E_q[log q - log p]."""
    torch.manual_seed(0)
    mean, std = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[0.4]], dtype=torch.float64)
    z = mean + std * torch.randn(400_000, 1, dtype=torch.float64)
    ratio = torch.distributions.Normal(mean, std).log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)
    exact = divergence(Posterior(mean, std), torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    assert ratio.mean().item() == pytest.approx(exact.item(), abs=0.005)


def test_hinge_losses_by_hand():
    real = torch.tensor([[[[2.0, 0.5]]], [[[-1.0, 1.0]]]])
    fake = torch.tensor([[[[-2.0, 0.0]]], [[[3.0, -1.0]]]])
    assert discriminator_loss(real, fake).tolist() == [(0.25 + 0.5) / 2, (1.0 + 2.0) / 2]
    assert generator_loss(fake).tolist() == [1.0, -1.0]


def last_layer(batch: int) -> tuple[torch.nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(5, 3, 3, padding=1, dtype=torch.float64)
    return layer, torch.randn(batch, 5, 6, 7, dtype=torch.float64)


def losses(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two losses [B], both nonlinear in the images of one."""
    return images.abs().flatten(1).mean(1), torch.tanh(images).square().flatten(1).sum(1)


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_weight():
    layer, inner = last_layer(4)
    images = layer(inner)
    found = adaptive_weight(*losses(images), images=images, inner=inner)
    for k in range(4):
        norms = [
            torch.autograd.grad(loss[k], layer.weight, retain_graph=True)[0].norm() for loss in losses(layer(inner))
        ]
        assert found[k].item() == pytest.approx((norms[0] / (norms[1] + 1e-6)).item(), rel=1e-9)


def test_the_adaptive_weight_of_an_image_does_not_depend_on_the_others():
    layer, inner = last_layer(6)
    images = layer(inner)
    whole = adaptive_weight(*losses(images), images=images, inner=inner)
    parts = []
    for part in inner.split(2):
        images = layer(part)
        parts.append(adaptive_weight(*losses(images), images=images, inner=part))
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-12)


def test_the_adaptive_weight_is_bounded_where_the_discriminator_says_nothing():
    layer, inner = last_layer(1)
    images = layer(inner)
    assert (
        adaptive_weight(images.sum((1, 2, 3)), (images * 0).sum((1, 2, 3)), images=images, inner=inner)
        == LARGEST_WEIGHT
    )
    assert adaptive_weight((images * 0).sum((1, 2, 3)), images.sum((1, 2, 3)), images=images, inner=inner) == 0


def test_errors_and_psnr_of_a_known_difference():
    originals = torch.zeros(1, 3, 16, 16)
    reconstructed = originals + 0.1
    assert error("l1", reconstructed, originals).item() == pytest.approx(0.1)
    assert error("l2", reconstructed, originals).item() == pytest.approx(0.01)
    assert psnr(reconstructed, originals).item() == pytest.approx(10 * math.log10(4 / 0.01), rel=1e-5)
    assert psnr(originals, originals).item() == 100
    assert ssim(originals, originals).item() == pytest.approx(1)
    assert psnr(originals + 1 + 5, originals + 1) == 100  # what cannot be shown is clipped


def test_ssim_of_flat_images_compares_their_light_from_0_to_1():
    """Equation 6 of Wang et al. 2004, of what a screen shows: 51 and 102 of 255 are 0.2 and 0.4."""
    a, b = (torch.full((1, 3, 16, 16), byte / 127.5 - 1, dtype=torch.float64) for byte in (51, 102))
    assert ssim(a, b).item() == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), rel=1e-9)


def test_ssim_is_of_each_image_and_absent_where_the_window_does_not_fit():
    torch.manual_seed(0)
    a, b = torch.rand(3, 1, 16, 16) * 2 - 1, torch.rand(3, 1, 16, 16) * 2 - 1
    assert torch.allclose(ssim(a, b)[1:2], ssim(a[1:2], b[1:2]), atol=1e-6)
    assert ssim(a[:, :, :4, :4], b[:, :, :4, :4]).isnan().all()


ALL = DegradationConfig(noise=0.5, blur=1.2, mask=0.5, share=0.7)


def test_a_degradation_belongs_to_the_sample_index():
    torch.manual_seed(0)
    images, sample_indices = torch.rand(64, 3, 12, 12) * 2 - 1, torch.arange(100, 164)
    whole = degraded(images, sample_indices, seed=3, cfg=ALL)
    assert torch.allclose(degraded(images[8:13], sample_indices[8:13], seed=3, cfg=ALL), whole[8:13], atol=1e-6)
    untouched = (whole == images).flatten(1).all(1).double().mean().item()
    assert untouched == pytest.approx(0.3, abs=0.15)
    assert not torch.allclose(degraded(images, sample_indices, seed=3, cfg=ALL, draw=1), whole)
    assert torch.equal(degraded(images, sample_indices, seed=3, cfg=DegradationConfig()), images)


def test_blur_is_the_convolution_with_a_gaussian():
    """A point becomes the Gaussian; a constant stays; variances add up."""
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    deviation = torch.tensor([2.0], dtype=torch.float64)
    once = blurred(point, deviation, reach=12)
    place = torch.arange(41).double() - 20
    gauss = torch.exp(-0.5 * (place / 2) ** 2)
    gauss = gauss / gauss.sum()
    assert torch.allclose(once[0, 0], gauss[:, None] * gauss, atol=1e-8)
    twice = blurred(once, deviation, reach=12)[0, 0].sum(0)
    assert (twice * place**2).sum().item() == pytest.approx(8.0, rel=1e-3)
    flat = torch.full((1, 2, 9, 9), 0.3, dtype=torch.float64)
    assert torch.allclose(blurred(flat, deviation, reach=6), flat)


def test_squares_have_their_size_and_touch_the_edges():
    ends = {"side": torch.tensor([0.5, 0.5]), "top": torch.tensor([0.0, 1.0]), "left": torch.tensor([1.0, 0.0])}
    mask = square(torch.zeros(2, 3, 8, 8), **ends)
    assert mask.sum((1, 2, 3)).tolist() == [16, 16]
    assert mask[0, 0, :4, 4:].all() and mask[1, 0, 4:, :4].all()
