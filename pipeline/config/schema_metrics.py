"""Settings of evaluation (which feature networks, references, checks), and the registered metrics. Torch-free.

The name, direction and needs of a metric stand here once.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from pipeline.config.base import Settings
from pipeline.config.explain import own_settings
from pipeline.config.registry import METRICS, Direction, known_metric, metric

Resize = Literal["tf1", "clean", "torchmetrics"]
WIDTHS = ("64", "192", "768")  # of Inception's earlier layers
InceptionFeatures = Annotated[
    Literal["64", "192", "768", "2048", "spatial", "logits"],
    BeforeValidator(lambda name: str(name) if type(name) is int else name),  # [64,192] are numbers for YAML and Hydra
]


class DomainConfig(Settings):
    """The small classifier that the reference stage trains on the data set itself. Needs no download."""

    enabled: bool = True
    width: int = Field(24, ge=8)  # channels of the first stage
    features: int = Field(64, ge=8)  # dimensions of the features
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

    cnniqa: Path | None = None  # trained on LIVE: 0 to about 100, lower is better
    cnniqa_koniq: Path | None = None  # trained on KonIQ-10k: 0 to 1, higher is better
    niqe: Path | None = None
    images: int = Field(1000, ge=1)  # scored one by one, at most
    brisque: Path | None = None  # libsvm model `allmodel`; `allrange` (with the same prefix) lies beside it

    def weights(self) -> dict[str, Path]:
        """The files of the measures that are on, by the metric's name."""
        paths = {"niqe": self.niqe, "brisque": self.brisque, "cnniqa": self.cnniqa, "cnniqa-koniq": self.cnniqa_koniq}
        return {name: path for name, path in paths.items() if path is not None}

    @staticmethod
    def setting(metric: str) -> str:
        """The setting that switches a metric on."""
        return f"evaluate.quality.{metric.replace('-', '_')}"


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
    options: dict[str, dict[str, Any]] = {}  # of metrics that have settings of their own, by the metric's name

    @field_validator("options")
    @classmethod
    def _of_metrics(cls, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Checked by each metric's own class of settings."""
        for name, values in options.items():
            settings = METRICS[name].settings if name in METRICS else None
            if settings is None:
                known = ", ".join(METRICS.names(lambda kind: kind.settings is not None)) or "none has any"
                raise ValueError(f"found '{name}', expected a metric with settings of its own: {known}")
            own_settings(settings, values)
        return options

    def measures_in(self, network: str) -> bool:
        """Whether a feature network is switched on."""
        return self.domain.enabled if network == "domain" else getattr(self, network).weights is not None


def network_of(name: str) -> str | None:
    """The network in whose features a number of this name is measured; None where it needs none, or is unknown."""
    kind, words = known_metric(name), name.partition("@")[0].split("-")
    if kind is None or not kind.place or kind.needs == "image":
        return None
    if len(kind.networks) == 1:
        return kind.networks[0]
    return next((network for network in _NETWORKS if network in words), "inception")


def in_loop_metrics(condition: str) -> tuple[str, ...]:
    """What training measures of samples, as the names of "in_loop/<name>": of a model with this condition."""
    accuracy = {"class": (CLASS_ACCURACY,), "attributes": (ATTRIBUTE_ACCURACY,)}
    return (DOMAIN_DISTANCE, *accuracy.get(condition, ()))


def _below_zero(name: str, value: float) -> str:
    if value < 0 and name.endswith("-infinity"):
        return "below 0: too few images for the extrapolation; read it as 0"
    return ""


def _kid_below_zero(_: str, value: float) -> str:
    said = "below 0: no difference seen, around which an unbiased estimate scatters; read it as 0"
    return said if value < 0 else ""


def _knows_no_noise(name: str, _: float) -> str:
    said = "the domain classifier never saw noise: pure noise may get 0.7 and more; trust it beside fd-domain only"
    return said if name.endswith("-domain") else ""


_NETWORKS = ("domain", "inception", "dinov2", "clip")
_COMPARED = ("domain", "inception", "dinov2")  # as sets of features, by several metrics
_SUITE = "pipeline.metrics.suite"
FRECHET, DOMAIN_DISTANCE = "fd", "fd-domain"
CLASS_ACCURACY, ATTRIBUTE_ACCURACY = "accuracy-domain", "accuracy-attributes"


_MEANINGS = {
    "fd": "distance between two normal distributions fitted to features of both sets; 0: the same. fid in Inception's",
    "kid": "like fd, without its bias in small sets. Around 0, also below: no difference seen",
    "is": "inception score: each image clearly of one class, all classes there. Knows nothing of the reference",
    "accuracy-domain": "share of samples in which a classifier of the data sees the class that was asked for",
    "accuracy-attributes": "share of asked attributes that a classifier of the data sees in the samples",
    "precision": "share of samples that look like reference images: fidelity",
    "recall": "share of reference images that samples come close to: variety",
    "density": "like precision, counting how many reference images are near; 1 for the reference itself",
    "coverage": "share of reference images with a sample near them; 1 for the reference itself",
    "cmmd": "distance in CLIP's features that assumes no normal distribution; 0: the same",
    "copy-rate": "share of samples nearer to a training image than almost all held-out images are",
    "niqe": "distortion of single images, by their statistics alone",
    "brisque": "distortion of single images, as people rated it",
    "cnniqa": "distortion of single images, as a network learned it from ratings",
    "cnniqa-koniq": "quality of single images, 0 to 1, as a network learned it from ratings of photographs",
    "compression": "how many times fewer numbers the latents have than the image",
    "kl-per-dimension": "bits of information, in nats, that each number of the latents carries",
    "dead-channels": "channels of the latents that carry nothing",
    "psnr": "how exactly pixels are reconstructed, in decibels; 25 is soft, 35 hard to tell from the original",
    "ssim": "how well structure is reconstructed; 1: exactly",
    "l1": "mean absolute error of reconstructed pixels",
    "l2": "mean squared error of reconstructed pixels",
    "loss": "what training minimises, on images that it does not see",
    "error": "mean squared error of the estimate",
    "kl": "distance of the latents from a normal distribution, in nats",
    "perceptual": "distance of reconstructed images in a network's features",
}


def _metric(name: str, place: str = "", *, direction: Direction | None, **facts: Any) -> None:
    metric(name, place, direction=direction, meaning=_MEANINGS[name], **facts)


def _compared(name: str, function: str, direction: Direction, **facts: Any) -> None:
    """A metric of the features, or with needs=logits of the classes, that three of the networks give."""
    facts = {"usual": (name, f"{name}-domain"), **facts}
    _metric(name, f"{_SUITE}:{function}", direction=direction, networks=_COMPARED, **facts)


# In the features of a network. Frechet distances in Inception's are called fid and sfid; the numbers of reconstructions
# begin with r.
_FID = ("fid", "sfid", "rfd", "rfid", "rsfid")
_compared(FRECHET, "frechet", "minimize", also=_FID, full=False, note=_below_zero, usual=("fid", DOMAIN_DISTANCE))
_compared("kid", "kernel", "minimize", least=0.0, note=_kid_below_zero)
_compared("is", "class_score", "maximize", also=("ris",), needs="logits")
for _name, _needs in ((CLASS_ACCURACY, "logits"), (ATTRIBUTE_ACCURACY, "attributes")):
    _place = f"{_SUITE}:{_needs}_accuracy"
    _metric(_name, _place, direction="maximize", usual=(_name,), networks=("domain",), needs=_needs)
_compared("precision", "precision", "maximize", note=_knows_no_noise)
_compared("recall", "recall", "maximize")
_compared("density", "density", "maximize", usual=(), note=_knows_no_noise)
_compared("coverage", "coverage", "maximize", usual=())
_metric("cmmd", f"{_SUITE}:clip_distance", direction="minimize", networks=("clip",))

# Of single images; the others are measured by jobs in their own ways: copies, reconstruction, use of latents, losses.
_metric("copy-rate", direction="minimize", variants=False)
_IMAGE = {"niqe": 112, "brisque": 8, "cnniqa": 32}  # and their least size
for _name, _size in _IMAGE.items():  # with the published weights all three grow with distortion
    _place = f"pipeline.metrics.quality:{_name}"
    _metric(_name, _place, direction="minimize", needs="image", least_size=_size)
_place = "pipeline.metrics.quality:cnniqa_koniq"
_metric("cnniqa-koniq", _place, direction="maximize", needs="image", least_size=7)
for _name in ("compression", "kl-per-dimension", "dead-channels"):
    _metric(_name, direction=None)
for _name in ("psnr", "ssim"):
    _metric(_name, direction="maximize", also=(f"mean_{_name}",))
for _name in ("l1", "l2"):
    _metric(_name, direction="minimize", also=(f"mean_{_name}",))
for _name in ("loss", "error", "kl", "perceptual"):
    _metric(_name, direction="minimize")
