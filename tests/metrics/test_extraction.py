"""Pieces of work: any division, order, batch or kill gives the same features and the same distance."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.metrics.extraction import Work, all_features, all_moments, extract, grouped_moments
from pipeline.metrics.features import Extractor
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.moments import merged, moments

IMAGES = np.random.default_rng(0).integers(0, 256, (103, 8, 8, 3), dtype=np.uint8)


def network() -> Extractor:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.SiLU(), nn.Conv2d(12, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Extractor("test", {"kind": "test"}, ("features",), lambda x: {"features": net(x.float() / 64)})


def computed(directory, *, block: int, batch: int, parts: int) -> Work:
    work = Work(directory, len(IMAGES), block, batch)
    for part in reversed(range(parts)):
        extract(work, lambda k: IMAGES[k], network(), of="x", part=(part, parts), device="cpu")
    assert not work.missing()
    return work


def test_the_distance_does_not_depend_on_ranks_batches_or_blocks(tmp_path) -> None:
    reference = moments(np.random.default_rng(1).normal(size=(50, 5)))
    values = [
        frechet_distance(all_moments(computed(tmp_path / str(k), **how), "features"), reference)
        for k, how in enumerate(
            (
                {"block": 103, "batch": 103, "parts": 1},
                {"block": 16, "batch": 16, "parts": 2},
                {"block": 10, "batch": 1, "parts": 3},
                {"block": 7, "batch": 5, "parts": 20},
            )
        )
    ]
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)


def test_two_ranks_give_the_bytes_of_one(tmp_path) -> None:
    one = computed(tmp_path / "one", block=16, batch=8, parts=1)
    two = computed(tmp_path / "two", block=16, batch=8, parts=2)
    for number in range(one.blocks):
        assert one.path(number).read_bytes() == two.path(number).read_bytes()


def test_what_is_finished_is_not_computed_again(tmp_path) -> None:
    work = computed(tmp_path, block=16, batch=8, parts=1)
    work.path(3).unlink()
    read: list[int] = []

    def reading(indices: np.ndarray) -> np.ndarray:
        read.extend(indices.tolist())
        return IMAGES[indices]

    extract(work, reading, network(), of="x", device="cpu")
    assert read == list(range(48, 64))


@pytest.mark.parametrize("groups", [1, 4, 10, 200])
def test_groups_of_seeds_join_to_the_whole_whatever_the_blocks(tmp_path, groups: int) -> None:
    work = computed(tmp_path, block=16, batch=16, parts=1)
    parts, features = grouped_moments(work, "features", groups), all_features(work, "features")
    assert [p.count for p in parts] == [(g + 1) * 103 // groups - g * 103 // groups for g in range(groups)]
    np.testing.assert_allclose(merged(parts).scatter, moments(features).scatter, rtol=1e-10, atol=1e-10)
    if groups == 4:
        np.testing.assert_allclose(parts[1].mean, features[25:51].astype(np.float64).mean(0), rtol=1e-12)
