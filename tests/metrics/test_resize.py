"""Each resize protocol equals the program it is named after."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from pipeline.metrics.resize import PROTOCOLS, matrix, resize

SIZES = [(32, 299), (64, 299), (299, 299), (512, 299), (333, 299), (7, 5)]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_clean_is_pillows_bicubic_in_floating_point_without_its_overshoot(before: int, after: int) -> None:
    pixels = RNG.integers(0, 256, (before, before)).astype(np.float32)
    expected = np.asarray(Image.fromarray(pixels, "F").resize((after, after), Image.Resampling.BICUBIC))
    found = resize(torch.from_numpy(pixels)[None, None], after, "clean")[0, 0]
    np.testing.assert_allclose(found, expected.clip(0, 255), atol=2e-4)  # as clean-fid's resize ends
    assert before >= after or expected.max() > 256


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_torchmetrics_is_torchs_antialiased_bilinear(before: int, after: int) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (1, 3, before, before)).astype(np.float32))
    expected = functional.interpolate(images, (after, after), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(
        resize(images, after, "torchmetrics"), expected, rtol=0, atol=1e-2
    )  # torch finds positions in float32


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_tf1_reads_between_the_pixels_at_k_times_the_ratio(before: int, after: int) -> None:
    line = RNG.integers(0, 256, before).astype(np.float64)
    place = np.minimum(np.arange(after) * (before / after), before - 1)  # the last pixel is repeated
    expected = np.interp(place, np.arange(before), line)
    found = matrix(before, after, "tf1").double().numpy() @ line
    np.testing.assert_allclose(found, expected, atol=2e-2)  # positions are float32, as in TensorFlow


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flat_image_stays_flat_and_the_same_size_stays_the_same(protocol: str) -> None:
    assert torch.allclose(matrix(100, 299, protocol).sum(1), torch.ones(299), atol=1e-6)
    torch.testing.assert_close(matrix(64, 64, protocol), torch.eye(64), rtol=0, atol=1e-6)


def test_the_protocols_differ_as_soon_as_sizes_do() -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (1, 3, 64, 64)).astype(np.float32))
    found = [resize(images, 299, p) for p in PROTOCOLS]
    assert min(float((a - b).abs().max()) for a, b in [(found[0], found[1]), (found[0], found[2])]) > 1
