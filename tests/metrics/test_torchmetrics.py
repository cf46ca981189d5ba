"""The same numbers as torchmetrics, where it computes the defined thing, on the same features."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.inception_score import inception_score
from pipeline.metrics.kernel_distance import kid
from pipeline.metrics.moments import moments

RNG = np.random.default_rng(0)
FAKE, REAL = (torch.from_numpy(RNG.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)) for n in (120, 150))


class Flat(nn.Module):
    """Pixels as features, so that both sides see the same ones."""

    num_features = 48

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 64


def features(images: Tensor) -> np.ndarray:
    return Flat()(images).numpy()


def test_frechet_distance() -> None:
    metric = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    metric.update(REAL, real=True)
    metric.update(FAKE, real=False)
    ours = frechet_distance(moments(features(FAKE)), moments(features(REAL)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-3)


def test_kernel_distance_over_whole_sets() -> None:
    metric = KernelInceptionDistance(feature=Flat(), subsets=3, subset_size=120)
    metric.update(REAL[:120], real=True)
    metric.update(FAKE, real=False)
    ours = kid(features(FAKE), features(REAL[:120]), subsets=1, size=120, seed=0)
    assert ours.mean == pytest.approx(float(metric.compute()[0]), rel=1e-3)


def test_inception_score_over_one_split() -> None:
    metric = InceptionScore(feature=Flat(), splits=1)
    metric.update(FAKE)
    ours = inception_score(features(FAKE), splits=1, seed=0)
    assert ours.mean == pytest.approx(float(metric.compute()[0]), rel=1e-3)
