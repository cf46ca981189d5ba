"""Settings of evaluation: which feature networks, which references, which checks."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Settings

Resize = Literal["tf1", "clean", "torchmetrics"]
InceptionFeatures = Annotated[
    Literal["64", "192", "768", "2048", "spatial", "logits"],
    BeforeValidator(lambda name: str(name) if type(name) is int else name),  # [64,192] are numbers for YAML and Hydra
]


class DomainConfig(Settings):
    """The small classifier that the reference stage trains on the data set itself. Needs no download."""

    enabled: bool = True
    width: int = Field(24, ge=8)  # channels of the first stage
    features: int = Field(64, ge=8)  # dimensions of the feature space
    batch: int = Field(64, ge=1)
    lr: float = Field(2e-3, gt=0)
    max_images: int = Field(120_000, ge=1)  # images seen in training, at most
    target_accuracy: float = Field(0.995, gt=0, le=1)  # on the validation split; training stops early there
    patience: int = Field(4, ge=1)  # checks without a better validation loss before training stops
    seed: int = Field(0, ge=0)


class InceptionConfig(Settings):
    """FID's InceptionV3 of 2015-12-05, from a local file. Off while `weights` is null."""

    weights: Path | None = None  # pytorch-fid's .pth, NVIDIA's torchscript .pt, or a folded .npz
    sha256: str | None = None  # expected hash of that file; null: recorded but not checked
    resize: Resize = "tf1"
    features: tuple[InceptionFeatures, ...] | None = None  # null: all it has


class LibraryConfig(Settings):
    """A feature network of the library `transformers`. Off while `weights` is null."""

    weights: Path | None = None  # a local folder with config.json and model.safetensors or pytorch_model.bin
    sha256: str | None = None  # expected hash of that file


class QualityConfig(Settings):
    """No-reference quality of single images. Each is off while its path is null."""

    cnniqa: Path | None = None
    niqe: Path | None = None
    images: int = Field(1000, ge=1)  # scored one by one, at most
    brisque: Path | None = None  # libsvm model `allmodel`; `allrange` (with the same prefix) lies beside it


class EvaluateConfig(Settings):
    """What is measured on a sample set."""

    samples: str | None = None  # "step-000012000/<protocol>"; null: every finished sample set without a result
    reference_splits: tuple[str, ...] = ("train", "valid")  # the first names the metric, the others add "@split"
    batch: int = Field(256, ge=1)  # images through a network at once; numbers do not depend on it
    block: int = Field(512, ge=1)  # images of one restartable piece of work
    reference_features: int = Field(50_000, ge=1)  # most reference features kept for KID, precision, neighbours
    domain: DomainConfig = DomainConfig()
    inception: InceptionConfig = InceptionConfig()
    dinov2: LibraryConfig = LibraryConfig()
    clip: LibraryConfig = LibraryConfig()
    quality: QualityConfig = QualityConfig()
    splits: int = Field(10, ge=1)  # of the inception score
    kid_subsets: int = Field(100, ge=1)
    kid_subset_size: int = Field(1000, ge=2)
    neighbours: int = Field(3, ge=1)  # k of precision and recall; density and coverage use 5, as published
    confidence_blocks: int = Field(10, ge=2)  # seed blocks of the confidence interval
    copies: bool = True  # look for copies of training images; reads the training split twice
    copy_level: float = Field(0.01, gt=0, lt=0.5)  # share of held-out images that the copy check may flag
    worst: int = Field(16, ge=0)  # copies shown in the picture of the worst cases
    seed: int = Field(2020, ge=0)  # of subsets and permutations
