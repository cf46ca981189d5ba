"""The domain classifier learns, repeats itself, and comes back from its file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.schema_metrics import DomainConfig
from pipeline.metrics.domain import (
    ATTRIBUTES,
    LABELS,
    ROTATION,
    Examples,
    Shape,
    domain_features,
    load_classifier,
    save_classifier,
    train_classifier,
)
from pipeline.runtime.errors import UserError

QUICK = DomainConfig(width=8, features=16, batch=32, max_images=6000, patience=20)


def bars(count: int, seed: int, kinds: int = 3) -> Examples:
    """Images of one noisy bar: at the left, at the top, or on the diagonal; the class is which."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, kinds, count).astype(np.int64)
    images = rng.integers(0, 60, (count, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        place = rng.integers(0, 4)
        if label == 0:
            image[:, place] += 150
        elif label == 1:
            image[place] += 150
        else:
            image[np.arange(8), np.arange(8)] += 150
    return Examples(lambda indices: images[indices], labels)


def test_it_learns_labels_and_stops_at_the_target() -> None:
    trained = train_classifier(bars(600, 0), bars(200, 1), Shape(1, 8, 3, 8, 16, LABELS), cfg=QUICK)
    assert trained.accuracy >= 0.95
    assert trained.seen <= QUICK.max_images + QUICK.batch


def test_it_learns_attributes_alone_and_beside_labels() -> None:
    """Attribute 0 says whether the bar lies at the left, 1 is known of half of the images, 2 is a coin."""

    def with_attributes(count: int, seed: int) -> Examples:
        plain, rng = bars(count, seed), np.random.default_rng([seed, 1])  # not the labels' own numbers
        left, top, coin = plain.labels == 0, plain.labels == 1, rng.integers(0, 2, count)
        top = np.where(rng.random(count) < 0.5, top, -1)
        return Examples(plain.read, plain.labels, np.stack([left, top, coin], axis=1).astype(np.int8))

    alone = train_classifier(
        with_attributes(600, 0), with_attributes(200, 1), Shape(1, 8, 0, 8, 16, ATTRIBUTES, 3), cfg=QUICK
    )
    assert min(alone.by_attribute[:2]) > 0.95 and alone.by_attribute[2] == pytest.approx(0.5, abs=0.15)
    assert alone.accuracy == pytest.approx(np.mean(alone.by_attribute), abs=1e-6)
    both = train_classifier(
        with_attributes(600, 0), with_attributes(200, 1), Shape(1, 8, 3, 8, 16, LABELS, 3), cfg=QUICK
    )
    assert both.accuracy > 0.95 and min(both.by_attribute[:2]) > 0.95
    images = torch.from_numpy(bars(5, 2).read(np.arange(5))).permute(0, 3, 1, 2)
    shapes = {name: tuple(value.shape) for name, value in domain_features(both.network)(images).items()}
    assert shapes == {"features": (5, 16), "logits": (5, 3), "attributes": (5, 3)}


def test_without_labels_it_learns_rotations() -> None:
    trained = train_classifier(bars(600, 0, 1), bars(200, 1, 1), Shape(1, 8, 4, 8, 16, ROTATION), cfg=QUICK)
    assert trained.accuracy > 0.9  # the bars stand in the left half; 1/4 would be chance


def test_the_same_seed_gives_the_same_weights_and_the_file_gives_them_back(tmp_path: Path) -> None:
    cfg, shape = QUICK.model_copy(update={"max_images": 800}), Shape(1, 8, 3, 8, 16, LABELS)
    one, two = (train_classifier(bars(200, 0), bars(50, 1), shape, cfg=cfg) for _ in range(2))
    save_classifier(one, tmp_path / "a.safetensors")
    loaded = load_classifier(tmp_path / "a.safetensors").state_dict()
    for name, value in two.network.state_dict().items():
        assert torch.equal(value, loaded[name])


def test_features_do_not_depend_on_the_batch_and_other_sizes_are_refused() -> None:
    cfg = QUICK.model_copy(update={"max_images": 100})
    trained = train_classifier(bars(100, 0), bars(50, 1), Shape(1, 8, 3, 8, 16, LABELS), cfg=cfg)
    run = domain_features(trained.network)
    images = torch.from_numpy(bars(33, 2).read(np.arange(33))).permute(0, 3, 1, 2)
    with torch.no_grad():
        whole, single = run(images), torch.cat([run(image[None])["features"] for image in images])
    torch.testing.assert_close(whole["features"], single, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="trained on images"):
        run(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
