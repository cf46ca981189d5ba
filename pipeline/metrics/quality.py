"""No-reference quality of single images: NIQE, BRISQUE, CNN-IQA. Weights by local path."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.metrics.scene_statistics import (
    Array,
    asymmetric_fit,
    grey,
    halved,
    neighbours,
    normalised,
    spread,
    symmetric_fit,
    tail,
)
from pipeline.runtime.errors import UserError

Score = Callable[[npt.NDArray[np.uint8]], float]
Measure = tuple[Score, Callable[[int, int], bool]]  # the score of an image [H, W, C], and of which sizes

NIQE_BLOCK = 96
NIQE_LEAST_SHIFT = 16  # pixels between overlapping blocks: nearer ones are nearly the same
PATCH = 32  # of CNN-IQA
_NIQE_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_BRISQUE_SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))


class Niqe:
    """NIQE (Mittal, Soundararajan & Bovik 2013): lower is better, good photographs have about 3.

    `path`: an .npz with `mu_pris_param` [1, 36] and `cov_pris_param` [36, 36]. Blocks of 96 pixels lie side by side, as
    published. An image that holds one alone, such as one of 128 x 128, is read in overlapping blocks at its corners: a
    covariance needs two. Their scores compare with those of images of the same size alone.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.mean: Array = file["mu_pris_param"].astype(np.float64).reshape(-1)
            self.covariance: Array = file["cov_pris_param"].astype(np.float64)

    @staticmethod
    def accepts(height: int, width: int) -> bool:
        """Whether an image of this size has the two blocks that a covariance needs, overlapping or not."""
        return min(height, width) >= NIQE_BLOCK and max(height, width) >= NIQE_BLOCK + NIQE_LEAST_SHIFT

    @staticmethod
    def overlaps(height: int, width: int) -> bool:
        """Whether blocks of an image of this size overlap."""
        return (height // NIQE_BLOCK) * (width // NIQE_BLOCK) < 2

    def __call__(self, image: npt.NDArray[np.uint8]) -> float:
        """The score of one image [H, W, 1 or 3]; nan where it is flat nearly everywhere."""
        overlaps = self.overlaps(*image.shape[:2])
        rows, columns = (_starts(size, overlaps=overlaps) for size in image.shape[:2])
        scaled = grey(image)[: rows[-1] + NIQE_BLOCK, : columns[-1] + NIQE_BLOCK]
        features = []
        for scale in (1, 2):
            values, side = normalised(scaled, border="nearest"), NIQE_BLOCK // scale
            corners = [(top // scale, left // scale) for top in rows for left in columns]
            features.append(np.array([_niqe_features(values[y : y + side, x : x + side]) for y, x in corners]))
            scaled = halved(scaled)
        found = np.concatenate(features, axis=1)
        whole = found[~np.isnan(found).any(axis=1)]
        if len(whole) < 2:
            return float("nan")
        gap = self.mean - np.nanmean(found, axis=0)
        inverse = np.linalg.pinv((self.covariance + np.cov(whole, rowvar=False)) / 2)  # eq. 10
        return float(np.sqrt(gap @ inverse @ gap))


def _starts(size: int, *, overlaps: bool) -> list[int]:
    """Where blocks begin on a side of `size` pixels: even numbers, as the second scale halves them."""
    last = (size - NIQE_BLOCK) // 2 * 2
    if overlaps:
        return [0, last] if last >= NIQE_LEAST_SHIFT else [0]
    return list(range(0, size - NIQE_BLOCK + 1, NIQE_BLOCK))


def _niqe_features(block: Array) -> list[float]:
    """18 numbers of one block at one scale (section 2.3)."""
    shape, left, right = asymmetric_fit(block)
    features = [shape, (left + right) / 2 * spread(shape)]
    for product in neighbours(block, _NIQE_SHIFTS):
        shape, left, right = asymmetric_fit(product)
        left, right = left * spread(shape), right * spread(shape)
        features += [shape, (right - left) * tail(shape), left, right]
    return features


class Brisque:
    """BRISQUE (Mittal, Moorthy & Bovik 2012): lower is better, 0 to 100 on the photographs it was fitted to.

    `path`: the release's libsvm model `allmodel`; the ranges of its inputs, `allrange`, lie beside it under the same
    prefix.
    """

    def __init__(self, path: Path) -> None:
        self.gamma, self.rho, self.weights, self.vectors = _read_libsvm(path)
        ranges = path.with_name(path.name.replace("model", "range"))
        if ranges == path or not ranges.is_file():
            raise UserError(f"evaluate.quality.brisque: {path} needs its ranges beside it, expected {ranges}.")
        rows = [line.split() for line in ranges.read_text().splitlines()[2:] if line.strip()]
        self.low, self.high = (np.array([float(row[k]) for row in rows]) for k in (1, 2))

    def __call__(self, image: npt.NDArray[np.uint8]) -> float:
        """The score of one image [H, W, 1 or 3]; nan for a flat one."""
        scaled = -1 + 2 * (brisque_features(image) - self.low) / (self.high - self.low)
        kernel = np.exp(-self.gamma * ((self.vectors - scaled) ** 2).sum(1))
        return float(self.weights @ kernel - self.rho)


def brisque_features(image: npt.NDArray[np.uint8]) -> Array:
    """The 36 features of one image, 18 at each of two scales (table I)."""
    features: list[float] = []
    scaled = grey(image)
    for _ in range(2):
        values = normalised(scaled, border="zeros")
        shape, deviation = symmetric_fit(values)
        features += [shape, deviation**2]
        for product in neighbours(values, _BRISQUE_SHIFTS):
            shape, left, right = asymmetric_fit(product)
            features += [shape, (right - left) * tail(shape) * spread(shape), left**2, right**2]
        scaled = halved(scaled)
    return np.array(features)


def _read_libsvm(path: Path) -> tuple[float, float, Array, Array]:
    """gamma, rho, weights [S] and support vectors [S, 36] of a regression with a Gaussian kernel."""
    head, _, body = path.read_text().partition("SV\n")
    facts = dict(line.split(maxsplit=1) for line in head.splitlines() if " " in line)
    if facts.get("svm_type") != "epsilon_svr" or facts.get("kernel_type") != "rbf":
        raise UserError(f"evaluate.quality.brisque: {path} is no libsvm regression with kernel rbf, found {facts}.")
    weights, vectors = [], np.zeros((len(body.splitlines()), 36))
    for row, line in enumerate(body.splitlines()):
        weight, *entries = line.split()
        weights.append(float(weight))
        for entry in entries:
            number, _, value = entry.partition(":")
            vectors[row, int(number) - 1] = float(value)
    return float(facts["gamma"]), float(facts["rho"]), np.array(weights), vectors


class CnnIqa(nn.Module):
    """CNN-IQA (Kang et al. 2014) as D. Li's implementation has it; trained on LIVE, it predicts a distortion: lower is
    better. The score of an image is the mean over its whole 32-pixel patches.

    `path`: a state dict of conv1 [50, 1, 7, 7] and fc1, fc2, fc3.
    """

    channels = 1

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(self.channels, 50, 7)
        self.fc1, self.fc2, self.fc3 = nn.Linear(100, 800), nn.Linear(800, 800), nn.Linear(800, 1)
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.load_state_dict(state.get("params", state))
        self.eval().requires_grad_(False)

    @staticmethod
    def accepts(height: int, width: int) -> bool:
        """Whether an image of this size holds a patch."""
        return min(height, width) >= PATCH

    def forward(self, patches: Tensor) -> Tensor:
        """Grey patches [P, 1, 32, 32] with values 0 to 1 -> scores [P]."""
        return self._scores(_contrast(patches))

    def _scores(self, x: Tensor) -> Tensor:
        h = self.conv1(x).flatten(2)
        h = torch.cat([h.amax(2), h.amin(2)], 1)
        return torch.as_tensor(self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(h)))))[:, 0])

    def score(self, image: npt.NDArray[np.uint8]) -> float:
        """The score of one image [H, W, 1 or 3]."""
        rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
        values = _pillow_grey(image)[: rows * PATCH, : columns * PATCH].astype(np.float32) / 255
        patches = values.reshape(rows, PATCH, columns, PATCH).swapaxes(1, 2).reshape(-1, 1, PATCH, PATCH)
        with torch.no_grad():
            return float(self(torch.from_numpy(np.ascontiguousarray(patches))).mean())


class CnnIqaKoniq(CnnIqa):
    """CNN-IQA as pyiqa trained it on KonIQ-10k: it predicts how good people find an image, from 0 to 1, higher is
    better. It reads the whole image in colour, without the contrast of `CnnIqa`.

    `path`: a state dict of conv1 [50, 3, 7, 7] and fc1, fc2, fc3, or one that holds it as `params`.
    """

    channels = 3

    @staticmethod
    def accepts(height: int, width: int) -> bool:
        """Whether an image of this size is as large as the filters."""
        return min(height, width) >= 7

    def score(self, image: npt.NDArray[np.uint8]) -> float:
        """The score of one image [H, W, 1 or 3]."""
        colour = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32) / 255
        with torch.no_grad():
            return float(self._scores(torch.from_numpy(colour).permute(2, 0, 1)[None])[0])


def _pillow_grey(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pillow's conversion to "L" in its own integers."""
    if image.shape[2] == 1:
        return image[:, :, 0]
    red, green, blue = (image[:, :, k].astype(np.int64) for k in range(3))
    return np.asarray((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16, np.uint8)


def _contrast(patches: Tensor) -> Tensor:
    """(x - mean) / (deviation + 1) over 3 x 3 pixels; at the border the edge pixel counts twice (eq. 1)."""
    padded = functional.pad(patches, (1, 1, 1, 1), mode="replicate")  # by one pixel, the same as mirroring
    mean = functional.avg_pool2d(padded, 3, 1)
    square = functional.avg_pool2d(padded**2, 3, 1)
    return (patches - mean) / ((square - mean**2).clamp_min(0).sqrt() + 1)


def niqe(weights: Path) -> Measure:
    """NIQE, and the sizes that it accepts."""
    measure = Niqe(weights)
    return measure, measure.accepts


def brisque(weights: Path) -> Measure:
    """BRISQUE, and the sizes that it accepts."""
    return Brisque(weights), lambda height, width: min(height, width) >= 8


def cnniqa(weights: Path) -> Measure:
    """CNN-IQA, and the sizes that it accepts."""
    network = CnnIqa(weights)
    return network.score, network.accepts


def cnniqa_koniq(weights: Path) -> Measure:
    """CNN-IQA of KonIQ-10k, and the sizes that it accepts."""
    network = CnnIqaKoniq(weights)
    return network.score, network.accepts
