"""The domain classifier: a small network trained on the data set itself, whose features measure without any download.

Numbers in its features compare models of one data set with each other, and with nothing else: they are called
`fd-domain`, `is-domain`, `accuracy-domain` and `accuracy-attributes`, never FID. It learns classes, attributes or both,
whichever the data has, and rotations where it has neither.
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
ROTATION = "rotation"  # the task where nothing is known of an image: which of four rotations (Gidaris et al. 2018)
LABELS = "labels"
ATTRIBUTES = "attributes"  # no labels, but attributes


@dataclass(frozen=True)
class Shape:
    """What the network is built from."""

    channels: int
    size: int
    classes: int
    width: int
    features: int
    task: str  # LABELS, ATTRIBUTES or ROTATION
    attributes: int = 0  # beside labels, or alone (classes = 0)


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
        if shape.classes:
            self.head = nn.Linear(shape.features, shape.classes)
        if shape.attributes:
            self.attributes = nn.Linear(shape.features, shape.attributes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] in [-1, 1] -> "features" [B, D]; "logits" [B, K] of the classes, "attributes" [B, A]
        logits of their presence, where it has such a head."""
        if images.shape[-1] > SIDE:
            images = functional.adaptive_avg_pool2d(images, SIDE)
        out = {"features": functional.silu(self.features(self.stages(images).mean((2, 3))))}
        if self.shape.classes:
            out["logits"] = self.head(out["features"])
        if self.shape.attributes:
            out["attributes"] = self.attributes(out["features"])
        return out


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
    """Images by number: `read(indices)` -> uint8 [B, H, W, C]; `labels` int64 [N] (used by LABELS alone);
    `attributes` [N, A] of 0, 1 and -1 for unknown, where there are any."""

    read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]
    labels: npt.NDArray[np.int64]
    attributes: npt.NDArray[np.int8] | None = None


@dataclass(frozen=True)
class Trained:
    """A classifier and how it came about: images seen, and accuracy and loss on the validation examples.

    `accuracy` is that of the classes, or, without any, the mean over attributes.
    """

    network: DomainClassifier
    seen: int
    accuracy: float
    loss: float
    by_attribute: tuple[float, ...] = ()  # share of right answers where the attribute is known


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
    for images, truth in _batches(train, shape, cfg):
        for group in optimiser.param_groups:
            group["lr"] = cfg.lr * min(1.0, (seen + 1) / 2000) * (0.05 + 0.95 * (1 - seen / cfg.max_images))
        loss = _loss(network(images), truth)
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
            reached = min([now.accuracy, *now.by_attribute]) >= cfg.target_accuracy
            if reached or since >= cfg.patience or seen >= cfg.max_images:
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


def _loss(found: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """Mean cross entropy of the classes, plus that of the attributes that are known."""
    total = torch.zeros(())
    if "logits" in truth:
        total = total + functional.cross_entropy(found["logits"], truth["logits"])
    if "attributes" in truth:
        known = (truth["attributes"] >= 0).float()
        wanted = truth["attributes"].clamp_min(0).float()
        error = functional.binary_cross_entropy_with_logits(found["attributes"], wanted, known, reduction="sum")
        total = total + error / known.sum().clamp_min(1)
    return total


def _batches(train: Examples, shape: Shape, cfg: DomainConfig) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Endless (images [B, C, H, W] in [-1, 1], truth), epoch after epoch, each image moved by up to one pixel."""
    count = len(train.labels)
    for first in itertools.count(0, count):
        sample_indices = torch.arange(first, first + count)
        order = uniform(cfg.seed, Stream.ORDER, sample_indices, dtype=torch.float64).argsort()
        for chosen in torch.split(order, cfg.batch):
            indices = chosen.numpy()
            images = _moved(_read(train, indices), sample_indices[chosen], cfg.seed)
            turns = (uniform(cfg.seed, Stream.AUGMENT, sample_indices[chosen], draw=1) * 4).long()
            yield _task(images, _truth(train, indices, shape), turns, task=shape.task)


def _read(examples: Examples, indices: npt.NDArray[np.int64]) -> Tensor:
    return to_input(torch.from_numpy(np.array(examples.read(indices))).permute(0, 3, 1, 2))


def _moved(images: Tensor, sample_indices: Tensor, seed: int) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels along both axes; the border is repeated."""
    shift = (uniform(seed, Stream.AUGMENT, sample_indices, shape=(2,)) * 3).long()
    windows = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    windows = windows.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # [B, C, 3, 3, H, W], a view
    return windows[torch.arange(len(images)), :, shift[:, 0], shift[:, 1]]


def _truth(examples: Examples, indices: npt.NDArray[np.int64], shape: Shape) -> dict[str, Tensor]:
    """What the network is to find: "logits" [B] classes, "attributes" [B, A]."""
    truth = {"logits": torch.from_numpy(examples.labels[indices])} if shape.task == LABELS else {}
    if shape.attributes and examples.attributes is not None:
        truth["attributes"] = torch.from_numpy(np.asarray(examples.attributes[indices]))
    return truth


def _task(images: Tensor, truth: dict[str, Tensor], turns: Tensor, *, task: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The batch as the task has it: as it is, or images turned and the turn as class."""
    if task != ROTATION:
        return images, truth
    turned = [torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(images, turns, strict=True)]
    return torch.stack(turned), {"logits": turns}


@torch.no_grad()
def _checked(network: DomainClassifier, valid: Examples, shape: Shape, *, seen: int, batch: int) -> Trained:
    right, loss, count = 0.0, 0.0, len(valid.labels)
    right_of, known_of = torch.zeros(shape.attributes), torch.zeros(shape.attributes)
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count), dtype=np.int64)
        turns = torch.from_numpy(indices % 4)
        images, truth = _task(_read(valid, indices), _truth(valid, indices, shape), turns, task=shape.task)
        found = network(images)
        loss += float(_loss(found, truth)) * len(indices)
        if "logits" in truth:
            right += float((found["logits"].argmax(1) == truth["logits"]).sum())
        if "attributes" in truth:
            known = truth["attributes"] >= 0
            right_of += (((found["attributes"] > 0) == (truth["attributes"] == 1)) & known).sum(0)
            known_of += known.sum(0)
    by_attribute = (right_of / known_of.clamp_min(1)).tolist()
    accuracy = right / max(count, 1) if shape.classes else float(np.mean(by_attribute))
    return Trained(network, seen, accuracy, loss / max(count, 1), tuple(by_attribute))


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
    """uint8 [B, C, H, W] of the data set's own size -> what the network gives, "features" and the rest."""
    expected: tuple[Any, ...] = (network.shape.channels, network.shape.size, network.shape.size)

    def run(images: Tensor) -> dict[str, Tensor]:
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"The domain classifier was trained on images [C, H, W] of {list(expected)}, found "
                f"{list(images.shape[1:])}: these samples are of another data set. Check data=... and the sample set."
            )
        found: dict[str, Tensor] = network(to_input(images))
        return found

    return run
