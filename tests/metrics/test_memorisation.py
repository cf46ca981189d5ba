"""The copy check finds planted copies and stays quiet on images that nobody copied."""

import io

import numpy as np
from PIL import Image

from pipeline.metrics.memorisation import closeness, copy_rate, mirrored, pixels


def photographs(count: int, seed: int) -> np.ndarray:
    """Smooth random images [N, 16, 16, 3], a little like photographs: neighbouring pixels are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((16, 16), Image.Resampling.BICUBIC)) for c in coarse])


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer))


TRAIN = photographs(600, 0)


def close(images: np.ndarray):
    vectors = pixels(TRAIN)
    return closeness([pixels(images), pixels(mirrored(images))], lambda: [(0, vectors)], count=len(vectors))


def test_planted_copies_are_found_exact_mirrored_and_encoded_again() -> None:
    copies = np.concatenate([TRAIN[:10], TRAIN[10:20, :, ::-1], np.stack([jpeg(i) for i in TRAIN[20:30]])])
    samples = np.concatenate([copies, photographs(70, 5)])
    found = close(samples)
    rate = copy_rate(found, close(photographs(300, 7)), level=0.01)
    assert rate.flagged[:30].all()
    np.testing.assert_array_equal(found.index[:30], np.arange(30))
    assert rate.flagged[30:].mean() <= 0.03


def test_images_that_nobody_copied_are_flagged_about_as_often_as_the_level_says() -> None:
    rate = copy_rate(close(photographs(500, 11)), close(photographs(500, 12)), level=0.02)
    assert rate.rate <= 0.05 and rate.expected is not None and rate.expected <= 0.02


def test_a_blur_is_near_to_everything_and_no_copy() -> None:
    grey = np.repeat(photographs(50, 3).mean((1, 2), keepdims=True), 16, 1).repeat(16, 2).astype(np.uint8)
    blurred, sharp = close(grey), close(photographs(300, 7))
    assert np.median(blurred.distance) < np.median(sharp.distance)
    assert copy_rate(blurred, sharp, level=0.01).rate <= 0.02


def test_without_held_out_images_the_published_threshold_is_used_and_named() -> None:
    rate = copy_rate(close(TRAIN[:5]), None, level=0.01)
    assert rate.rate == 1 and rate.expected is None and rate.threshold == 0.5


def test_large_photographs_are_compared_at_a_small_size() -> None:
    large = TRAIN[:4].repeat(5, 1).repeat(5, 2)  # 80 pixels
    assert pixels(large).shape == (4, 32 * 32 * 3)
    np.testing.assert_allclose(pixels(large).mean(1), pixels(TRAIN[:4]).mean(1), atol=1e-2)
