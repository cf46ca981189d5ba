"""The domain classifier: a small network trained on the data set itself, whose features measure without any download.

Numbers in its features compare models of one data set with each other, and with nothing else: they are called
`fd-domain`, `is-domain` and `accuracy-domain`, never FID.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.schema_metrics import DomainConfig
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import atomic_path
from pipeline.runtime.random import Stream, uniform

SIDE = 32  # larger images are averaged down to this: the classifier is to be cheap
ROTATION = "rotation"  # the task where there are no labels: which of four rotations (Gidaris et al. 2018)
LABELS = "labels"


@dataclass(frozen=True)
class Shape:
    """What the network is built from."""

    channels: int
    size: int
    classes: int
    width: int
    features: int
    task: str  # LABELS or ROTATION


class DomainClassifier(nn.Module):
    """Stages of two convolutions, each at half the resolution of the one before, down to 4 pixels."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        stages: list[nn.Module] = []
        side, width, before = min(shape.size, SIDE), shape.width, shape.channels
        while True:
            stages.append(_stage(before, width, stride=1 if not stages else 2))
            if side <= 4 or len(stages) == 4:
                break
            before, width, side = width, min(width * 2, shape.width * 4), side // 2
        self.stages = nn.Sequential(*stages)
        self.features = nn.Linear(width, shape.features)
        self.head = nn.Linear(shape.features, shape.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] in [-1, 1] -> (features [B, D], logits [B, K])."""
        if images.shape[-1] > SIDE:
            images = functional.adaptive_avg_pool2d(images, SIDE)
        features = functional.silu(self.features(self.stages(images).mean((2, 3))))
        return features, self.head(features)


def _stage(before: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, stride, 1, bias=False),
        nn.GroupNorm(8 if width % 8 == 0 else 1, width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
        nn.GroupNorm(8 if width % 8 == 0 else 1, width),
        nn.SiLU(),
    )


@dataclass(frozen=True)
class Examples:
    """Labelled images by number: `read(indices)` -> uint8 [B, H, W, C]; `labels` int64 [N] (ignored by ROTATION)."""

    read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """A classifier and how it came about: images seen, and accuracy and loss on the validation examples."""

    network: DomainClassifier
    seen: int
    accuracy: float
    loss: float


def train_classifier(
    train: Examples, valid: Examples, shape: Shape, *, cfg: DomainConfig, tick: Callable[[int], None] | None = None
) -> Trained:
    """Train until the validation accuracy reaches the target, or stops improving, or `max_images` are seen.

    Deterministic: the order, shifts and rotations are functions of (seed, epoch), the weights of the seed. The weights
    kept are those with the lowest validation loss.
    """
    network = DomainClassifier(shape)
    initialise(network, torch.Generator().manual_seed(cfg.seed))
    optimiser = torch.optim.AdamW(network.parameters(), lr=cfg.lr, weight_decay=1e-2)
    check_every = max(len(train.labels), cfg.max_images // 20)
    best = Trained(network, 0, 0.0, float("inf"))
    state = {k: v.clone() for k, v in network.state_dict().items()}
    seen, next_check, since = 0, check_every, 0
    for images, labels in _batches(train, shape, cfg):
        for group in optimiser.param_groups:
            group["lr"] = cfg.lr * min(1.0, (seen + 1) / 2000) * (0.05 + 0.95 * (1 - seen / cfg.max_images))
        loss = functional.cross_entropy(network(images)[1], labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seen += len(images)
        if tick is not None:
            tick(len(images))
        if seen >= min(next_check, cfg.max_images):
            next_check = seen + check_every
            now = _checked(network, valid, shape, seen=seen, batch=cfg.batch)
            since = 0 if now.loss < best.loss else since + 1
            if now.loss < best.loss:
                best, state = now, {k: v.clone() for k, v in network.state_dict().items()}
            if now.accuracy >= cfg.target_accuracy or since >= cfg.patience or seen >= cfg.max_images:
                break
    network.load_state_dict(state)
    network.eval()
    return best


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core: sums then have one order, so the weights are the same on any machine of the same make.

    A network this small gains little from a second one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """He's normal weights for convolutions and linear layers, zero biases, from the generator alone."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _batches(train: Examples, shape: Shape, cfg: DomainConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (images [B, C, H, W] in [-1, 1], labels [B]), epoch after epoch, each image moved by up to one pixel."""
    count = len(train.labels)
    for first in itertools.count(0, count):
        visits = torch.arange(first, first + count)
        order = uniform(cfg.seed, Stream.ORDER, visits, dtype=torch.float64).argsort()
        for chosen in torch.split(order, cfg.batch):
            indices = chosen.numpy()
            images = _moved(_read(train, indices), visits[chosen], cfg.seed)
            turns = (uniform(cfg.seed, Stream.AUGMENT, visits[chosen], draw=1) * 4).long()
            yield _task(images, torch.from_numpy(train.labels[indices]), turns, task=shape.task)


def _read(examples: Examples, indices: npt.NDArray[np.int64]) -> Tensor:
    return to_input(torch.from_numpy(np.array(examples.read(indices))).permute(0, 3, 1, 2))


def _moved(images: Tensor, visits: Tensor, seed: int) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels along both axes; the border is repeated."""
    shift = (uniform(seed, Stream.AUGMENT, visits, shape=(2,)) * 3).long()
    windows = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    windows = windows.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # [B, C, 3, 3, H, W], a view
    return windows[torch.arange(len(images)), :, shift[:, 0], shift[:, 1]]


def _task(images: Tensor, labels: Tensor, turns: Tensor, *, task: str) -> tuple[Tensor, Tensor]:
    """The batch as the task has it: labels as they are, or images turned and the turn as label."""
    if task == LABELS:
        return images, labels
    turned = [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(images, turns, strict=True)]
    return torch.stack(turned), turns


@torch.no_grad()
def _checked(network: DomainClassifier, valid: Examples, shape: Shape, *, seen: int, batch: int) -> Trained:
    right, loss, count = 0.0, 0.0, len(valid.labels)
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count), dtype=np.int64)
        labels, turns = torch.from_numpy(valid.labels[indices]), torch.from_numpy(indices % 4)
        images, labels = _task(_read(valid, indices), labels, turns, task=shape.task)
        logits = network(images)[1]
        right += float((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return Trained(network, seen, right / max(count, 1), loss / max(count, 1))


def to_input(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] -> float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def save_classifier(trained: Trained, path: Path) -> None:
    """Weights and shape in one safetensors file, written at once."""
    header = {"shape": json.dumps(asdict(trained.network.shape), sort_keys=True)}
    with atomic_path(path) as partial:
        save_file({k: v.contiguous() for k, v in trained.network.state_dict().items()}, partial, header)


def load_classifier(path: Path, device: torch.device | str = "cpu") -> DomainClassifier:
    """The network of a file that `save_classifier` wrote, ready to use."""
    with safe_open(path, "pt") as file:
        network = DomainClassifier(Shape(**json.loads(file.metadata()["shape"])))
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return network.to(device).eval()


def domain_features(network: DomainClassifier) -> Callable[[Tensor], dict[str, Tensor]]:
    """uint8 [B, C, H, W] of the data set's own size -> {"features": [B, D], "logits": [B, K]}."""
    expected: tuple[Any, ...] = (network.shape.channels, network.shape.size, network.shape.size)

    def run(images: Tensor) -> dict[str, Tensor]:
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"The domain classifier was trained on images [C, H, W] of {list(expected)}, found "
                f"{list(images.shape[1:])}: these samples are of another data set. Check data=... and the sample set."
            )
        features, logits = network(to_input(images))
        return {"features": features, "logits": logits}

    return run
