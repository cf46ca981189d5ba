"""Changes to images: Pillow's, keyed by sample index, and the same in any batch."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from pydantic import ValidationError
from scipy import stats

from pipeline.config.schema import AugmentConfig
from pipeline.data.augment import (
    augment,
    augment_draws,
    brightness,
    contrast,
    flipped,
    hue,
    moved,
    saturation,
    sharpness,
)

COLOURS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.1, "sharpness": 2.0, "sharpness_share": 0.5}
EVERYTHING = AugmentConfig(**COLOURS, rotation=20, shift=0.1)
FACTORS = (0.0, 0.3, 1.0, 1.7)


def augmented(images, sample_indices, *, seed, cfg):
    return augment(images, augment_draws(sample_indices, seed=seed), cfg=cfg)


def smooth_pixels(height: int = 24, width: int = 20) -> np.ndarray:
    """A colourful uint8 [H, W, 3] without hard edges."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 3 + k) * np.cos(y / (4 + k)) for k in range(3)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    return ((images[0].permute(1, 2, 0) + 1) * 127.5).numpy()


@pytest.mark.parametrize(
    ("change", "enhance", "tolerance"),
    [
        (brightness, ImageEnhance.Brightness, 1.01),
        (contrast, ImageEnhance.Contrast, 1.51),  # Pillow rounds the mean grey to a byte
        (saturation, ImageEnhance.Color, 1.51),
        (sharpness, ImageEnhance.Sharpness, 1.51),
    ],
)
@pytest.mark.parametrize("factor", FACTORS)
def test_equals_pillow_but_for_its_rounding(change, enhance, tolerance, factor):
    pixels = smooth_pixels()
    expected = np.asarray(enhance(Image.fromarray(pixels)).enhance(factor), dtype=np.float64)
    found = to_pixels(change(to_tensor(pixels), torch.tensor([factor])))
    assert np.abs(found - expected).max() <= tolerance


@pytest.mark.parametrize("change", [brightness, contrast, saturation, sharpness])
@pytest.mark.parametrize("channels", [1, 3])
def test_factor_one_changes_nothing(change, channels):
    images = to_tensor(smooth_pixels())[:, :channels]
    assert torch.allclose(change(images, torch.ones(1)), images, atol=1e-6)


def test_hue_keeps_luma_and_grey_and_comes_round():
    images = 0.3 * to_tensor(smooth_pixels())  # far from the clipping at -1 and 1
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    turned = hue(images, torch.tensor([0.2]))
    assert not torch.allclose(turned, images, atol=0.05)
    assert torch.allclose((turned * luma).sum(1), (images * luma).sum(1), atol=1e-6)
    assert torch.allclose(hue(turned, torch.tensor([0.8])), images, atol=1e-5)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(hue(grey, torch.tensor([0.2])), grey, atol=1e-6)


def test_hue_turns_red_towards_green_through_a_third_of_the_circle():
    red = torch.tensor([0.2, -0.2, -0.2]).view(1, 3, 1, 1)
    found = hue(red, torch.tensor([-1 / 3])).flatten(), hue(red, torch.tensor([1 / 3])).flatten()
    assert {int(values.argmax()) for values in found} == {1, 2}


def test_a_change_does_not_know_its_batch():
    sample_indices = torch.arange(100, 116)
    images = torch.rand(16, 3, 33, 31, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = augmented(images, sample_indices, seed=3, cfg=EVERYTHING)
    for size in (1, 3, 5):
        pieces = zip(images.split(size), sample_indices.split(size), strict=True)
        parts = [augmented(some, numbers, seed=3, cfg=EVERYTHING) for some, numbers in pieces]
        assert torch.equal(torch.cat(parts), whole)
    assert whole.min() >= -1 and whole.max() <= 1
    assert not torch.equal(augmented(images, sample_indices + 1, seed=3, cfg=EVERYTHING), whole)
    assert not torch.equal(augmented(images, sample_indices, seed=4, cfg=EVERYTHING), whole)


def test_a_quarter_turn_and_whole_pixels_are_exact():
    images = to_tensor(smooth_pixels(16, 16)).repeat(2, 1, 1, 1)
    none, quarter = torch.zeros(2), torch.tensor([90.0, -180.0])
    turned = moved(images, quarter, right=none, down=none)
    assert torch.allclose(turned[:1], images[:1].rot90(1, (2, 3)), atol=1e-5)  # against the clock
    assert torch.allclose(turned[1:], images[1:].rot90(2, (2, 3)), atol=1e-5)
    shifted = moved(images, none, right=torch.full((2,), 3 / 16), down=torch.full((2,), -2 / 16))
    assert torch.allclose(shifted[:, :, :-2, 3:], images[:, :, 2:, :-3], atol=1e-5)
    edge = images[:, :, 2:, :3].flip(3)
    assert torch.allclose(shifted[:, :, :-2, :3], edge, atol=1e-5)  # from outside: the mirror image


def test_geometry_leaves_the_draws_of_colours_as_they_were():
    images, sample_indices = torch.rand(4, 3, 8, 8) * 2 - 1, torch.arange(4)
    plain = augmented(images, sample_indices, seed=0, cfg=AugmentConfig(brightness=0.3))
    factors = 1 - 0.3 + 0.6 * augment_draws(sample_indices, seed=0)[:, 0]
    assert torch.allclose(plain, brightness(images, factors), atol=1e-6)
    assert AugmentConfig(rotation=5).active and AugmentConfig(shift=0.1).active


def test_nothing_happens_by_default():
    images = torch.rand(4, 3, 8, 8)
    assert not AugmentConfig().active
    assert torch.equal(augmented(images, torch.arange(4), seed=0, cfg=AugmentConfig()), images)
    assert EVERYTHING.active and AugmentConfig(sharpness=0.0).active
    assert not AugmentConfig(sharpness=0.0, sharpness_share=0.0).active


def test_factors_are_uniform_in_their_range():
    sample_indices = torch.arange(20_000)
    images = torch.full((20_000, 1, 1, 1), 0.0)  # brightness maps mid grey to factor - 1
    factors = augmented(images, sample_indices, seed=1, cfg=AugmentConfig(brightness=0.5)).flatten() + 1
    assert stats.kstest(factors.numpy(), stats.uniform(0.5, 1.0).cdf).pvalue > 0.01


def test_half_of_the_sample_indices_are_mirrored():
    mirrored = flipped(torch.arange(40_000), seed=5)
    assert abs(mirrored.double().mean() - 0.5) < 0.01
    assert torch.equal(flipped(torch.arange(100, 200), seed=5), mirrored[100:200])


def test_settings_out_of_range_are_refused():
    for wrong in (
        {"hue": 0.6},
        {"brightness": -0.1},
        {"sharpness_share": 1.5},
        {"brigthness": 0.1},
        {"shift": 0.6},
        {"rotation": 181},
    ):
        with pytest.raises(ValidationError):
            AugmentConfig(**wrong)
