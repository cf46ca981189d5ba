"""No-reference quality: fits recover what they fit, distortions score worse, other programs get the same numbers."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from torch.nn import functional

from pipeline.config.registry import higher_is_better
from pipeline.config.schema_metrics import QualityConfig
from pipeline.metrics.quality import Brisque, CnnIqa, Niqe, _read_libsvm, brisque_features
from pipeline.metrics.quality_suite import (
    BLOCK,
    Scorer,
    build_scorers,
    measure_quality,
    quality_work,
    score_blocks,
)
from pipeline.metrics.scene_statistics import asymmetric_fit, grey, halved, normalised, symmetric_fit
from pipeline.runtime.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def flowers(shared: Path) -> list[np.ndarray]:
    """Three full-size photographs, uint8 [H, W, 3]."""
    with tarfile.open(shared / "data" / "102flowers_sample.tgz") as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".jpg")][:3]
        files = [tar.extractfile(m).read() for m in members]
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_the_symmetric_fit_recovers_a_generalised_gaussian(shape: float) -> None:
    values = RNG.gamma(1 / shape, 1, 200_000) ** (1 / shape) * RNG.choice([-1, 1], 200_000)
    found, deviation = symmetric_fit(values)
    assert found == pytest.approx(shape, rel=0.05) and deviation == pytest.approx(values.std(), rel=0.01)


def test_the_asymmetric_fit_sees_both_halves_apart() -> None:
    values = RNG.normal(size=300_000)
    values = np.where(RNG.random(300_000) < 0.25, -np.abs(values), 3 * np.abs(values))  # sides weigh as their scales
    shape, left, right = asymmetric_fit(values)
    assert shape == pytest.approx(2, rel=0.05)
    assert left == pytest.approx(1, rel=0.02) and right == pytest.approx(3, rel=0.02)
    assert np.isnan(asymmetric_fit(np.zeros(10))).all()


def test_niqe_reads_an_image_of_128_pixels_in_blocks_that_overlap(shared: Path, flowers: list[np.ndarray]) -> None:
    """Four blocks of 96 pixels at the corners; where two fit side by side, those of the publication."""
    niqe = Niqe(shared / "weights" / "niqe_pris_params.npz")
    assert [niqe.accepts(*size) for size in ((64, 64), (96, 96), (96, 112), (128, 128))] == [False, False, True, True]
    assert [niqe.overlaps(*size) for size in ((128, 128), (96, 192), (192, 192))] == [True, False, False]
    image = np.asarray(Image.fromarray(flowers[0]).resize((128, 128), Image.Resampling.LANCZOS))
    noisy = np.clip(image + RNG.normal(0, 40, image.shape), 0, 255).astype(np.uint8)
    assert np.isfinite(niqe(image)) and niqe(image) < niqe(noisy)


def test_local_contrast_makes_noise_of_any_strength_alike() -> None:
    noise = RNG.normal(size=(200, 200))
    values = [normalised(128 + scale * noise, border="nearest").std() for scale in (10, 40)]
    assert values[0] == pytest.approx(values[1], rel=0.1)


def test_halving_keeps_a_ramp_a_ramp_and_its_mean() -> None:
    ramp = np.add.outer(np.arange(64.0), np.zeros(32))
    half = halved(ramp)
    assert half.shape == (32, 16)
    np.testing.assert_allclose(half[4:-4, 0], np.arange(0.5, 64, 2)[4:-4], rtol=1e-12)
    assert halved(np.ones((7, 5))) == pytest.approx(np.ones((4, 3)))


def test_other_programs_get_the_same_numbers_on_real_photographs(flowers, shared: Path) -> None:
    """NIQE: the code of basicsr 1.4.2; of its baboon.png it says 5.72958, MATLAB R2021a 5.72957, this code 5.72971.
    BRISQUE: features by pyiqa 0.1.16, predicted by libsvm 3.37 on the same model; piq 0.8.0 finds the same
    features of images with even sides. All three need torchvision, and were run elsewhere. CNN-IQA: see below.

    NIQE differs in the third place only where whole areas are saturated: there the sign of (pixel - mean) is rounding.
    """
    niqe, brisque = Niqe(shared / "weights" / "niqe_pris_params.npz"), Brisque(shared / "weights" / "brisque_allmodel")
    found = [(niqe(image), brisque(image)) for image in flowers]
    np.testing.assert_allclose([n for n, _ in found], [3.32621988, 2.88666140, 2.43762477], rtol=2e-3)
    np.testing.assert_allclose([b for _, b in found], [75.0724287, 55.0150779, 54.2606889], rtol=1e-3)


def test_blur_and_noise_are_worse_than_the_photograph(flowers, shared: Path) -> None:
    niqe = Niqe(shared / "weights" / "niqe_pris_params.npz")
    image = flowers[1]
    blurred = gaussian_filter(image, (3, 3, 0))
    noisy = np.clip(image + RNG.normal(0, 30, image.shape), 0, 255).astype(np.uint8)
    assert niqe(image) < niqe(blurred) and niqe(image) < niqe(noisy)


def test_the_support_vectors_are_all_read(shared: Path, tmp_path: Path) -> None:
    gamma, rho, weights, vectors = _read_libsvm(shared / "weights" / "brisque_allmodel")
    assert (gamma, rho) == (0.05, -67.8283) and vectors.shape == (970, 36)
    assert weights.sum() == pytest.approx(0, abs=1e-6)  # as the constraint of the regression asks
    (tmp_path / "allmodel").write_text("svm_type c_svc\nkernel_type linear\nSV\n1 1:2\n")
    with pytest.raises(UserError, match="no libsvm regression"):
        Brisque(tmp_path / "allmodel")


def test_cnniqa_is_the_mean_over_patches_of_a_plain_reading_of_the_paper(flowers, shared: Path) -> None:
    path = shared / "weights" / "CNNIQA-LIVE.pth"
    network, state = CnnIqa(path), torch.load(path, map_location="cpu", weights_only=True)
    image = flowers[0][:100, :140]
    kernel, scores = np.ones((3, 3)) / 9, []
    luma = np.asarray(Image.fromarray(image).convert("L")).astype(np.float32) / 255
    for i in range(0, 96, 32):
        for j in range(0, 128, 32):
            patch = luma[i : i + 32, j : j + 32]
            mean, square = (convolve2d(p, kernel, boundary="symm", mode="same") for p in (patch, patch**2))
            x = (patch - mean) / (np.sqrt(np.maximum(square - mean**2, 0)) + 1)
            h = functional.conv2d(torch.from_numpy(x).float()[None, None], state["conv1.weight"], state["conv1.bias"])
            h = torch.cat([h.amax((2, 3)), h.amin((2, 3))], 1)
            for name in ("fc1", "fc2"):
                h = functional.linear(h, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
            scores.append(float(functional.linear(h, state["fc3.weight"], state["fc3.bias"])))
    assert network.score(image) == pytest.approx(np.mean(scores), rel=1e-5)


def test_cnniqa_of_koniq_reads_the_whole_image_in_colour(flowers, tmp_path: Path) -> None:
    """With random weights: those of KonIQ-10k are not at hand."""
    torch.manual_seed(0)
    shapes = {"conv1": (50, 3, 7, 7), "fc1": (800, 100), "fc2": (800, 800), "fc3": (1, 800)}
    state = {f"{name}.weight": 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": 0.1 * torch.randn(shape[0]) for name, shape in shapes.items()}
    path = tmp_path / "koniq.pth"
    torch.save({"params": state}, path)
    (scorer,) = build_scorers(QualityConfig(cnniqa_koniq=path))
    for image in (flowers[0][:50, :60], flowers[0][:50, :60, :1]):
        x = torch.from_numpy(np.broadcast_to(image, (50, 60, 3)).copy()).permute(2, 0, 1)[None] / 255
        h = functional.conv2d(x, state["conv1.weight"], state["conv1.bias"])
        h = torch.cat([h.amax((2, 3)), h.amin((2, 3))], 1)
        for name in ("fc1", "fc2"):
            h = functional.linear(h, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
        expected = functional.linear(h, state["fc3.weight"], state["fc3.bias"])
        assert scorer.score(image) == pytest.approx(float(expected), rel=1e-4)
    assert scorer.name == "cnniqa-koniq" and higher_is_better(scorer.name) and not higher_is_better("cnniqa")


def test_grey_is_luma_and_a_grey_image_is_itself() -> None:
    image = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    np.testing.assert_allclose(grey(image), image @ [0.2989, 0.5870, 0.1140], atol=0.55)
    np.testing.assert_array_equal(grey(image[:, :, :1]), image[:, :, 0])
    assert brisque_features(image.repeat(8, 0).repeat(8, 1)).shape == (36,)


def test_images_too_small_are_said_and_not_scored(shared: Path, tmp_path: Path) -> None:
    small = RNG.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    weights = shared / "weights"
    cfg = QualityConfig(niqe=weights / "niqe_pris_params.npz", cnniqa=weights / "CNNIQA-LIVE.pth")
    found = scored(small, build_scorers(cfg), tmp_path)
    assert found.metrics.keys() == {"cnniqa"} and len(found.details["cnniqa"]["values"]) == 4
    assert any("niqe was not measured" in w for w in found.notes)


def scored(images: np.ndarray, scorers: list[Scorer], folder: Path, *, parts: int = 1, done: tuple[int, ...] = ()):
    """What the suite says of images beside themselves, in parts; the blocks `done` must not be scored again."""
    read: list[int] = []

    def reading(indices: np.ndarray) -> np.ndarray:
        read.extend(indices.tolist())
        return images[indices]

    work = quality_work(folder / "samples", scorers, count=len(images), most=1000)
    for part in reversed(range(parts)):
        score_blocks(work, reading, scorers, of="x", part=(part, parts))
    assert not {k // BLOCK for k in read} & set(done)
    return measure_quality(work, work, scorers, size=images.shape[1:3])


def test_scores_survive_a_kill_and_do_not_depend_on_who_made_them(tmp_path: Path, shared: Path) -> None:
    images = RNG.integers(0, 256, (150, 32, 32, 1), dtype=np.uint8)
    images[7] = 90  # flat
    scorers = build_scorers(QualityConfig(brisque=shared / "weights" / "brisque_allmodel"))
    whole = scored(images, scorers, tmp_path / "whole")
    direct = [scorers[0].score(image) for image in images]
    assert whole.metrics["brisque"] == pytest.approx(np.nanmean(direct), rel=1e-12)
    assert whole.details["brisque"]["count"] == 149 and whole.details["brisque"]["values"][7] is None
    assert scored(images, scorers, tmp_path / "parts", parts=2) == whole
    quality_work(tmp_path / "whole" / "samples", scorers, count=150, most=1000).path(1).unlink()
    assert scored(images, scorers, tmp_path / "whole", done=(0, 2)) == whole
