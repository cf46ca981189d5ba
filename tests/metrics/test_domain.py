"""The domain classifier learns, repeats itself, and comes back from its file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.schema_metrics import DomainConfig
from pipeline.metrics.domain import (
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
