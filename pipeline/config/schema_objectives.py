"""What a network is trained for: the kinds of objectives, with their rules and what they measure, and the settings of
the losses of autoencoders, the VAE and the adversarial game. `schema_diffusion` has those of diffusion. Torch-free.

A network is trained by the objective that it is registered with. `objective.kind` names another one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.config.base import Settings
from pipeline.config.durations import Duration, needs_images, to_images
from pipeline.config.registry import OBJECTIVES, Choice, ObjectiveKind, objective
from pipeline.config.schema_model import PatchDiscriminatorConfig, StyleGANConfig

if TYPE_CHECKING:
    from pipeline.config.schema import Config

SMALLEST = 21  # px, of images that SqueezeNet 1.0 has all its maps for
_HERE = "autoencoder"
_LIKENESS = ("psnr", "ssim", "l1", "l2")


class PerceptualConfig(Settings):
    """A distance in a network's features (LPIPS: Zhang et al. 2018).

    Without `weights`, the network is the domain classifier of the prepared data; every result says which it was.
    """

    weight: float = Field(0.0, ge=0)  # in the loss; 0: not part of it
    weights: Path | None = None  # SqueezeNet 1.0 or 1.1 on ImageNet as .npz: conv1/w, fire2/conv1x1_1/w, ...
    sha256: str | None = None  # expected hash of that file; null: recorded but not checked
    scale: Literal["imagenet", "caffe"] = "imagenet"  # pixels as torchvision's weights expect them, or as Caffe's do
    heads: Path | None = None  # LPIPS's weights of single channels (lpips_v0.1_squeeze.pth); null: all count alike
    heads_sha256: str | None = None


class DegradationConfig(Settings):
    """What is done to an image that is to be reconstructed, per image; amounts are uniform from 0 to these."""

    noise: float = Field(0.0, ge=0)  # deviation of normal noise; pixels are in [-1, 1]
    blur: float = Field(0.0, ge=0)  # deviation of a Gaussian, in pixels
    mask: float = Field(0.0, ge=0, le=1)  # side of a grey square, as a share of the image's
    share: float = Field(1.0, ge=0, le=1)  # of images that are degraded at all

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return bool(self.share and (self.noise or self.blur or self.mask))


class AutoencoderConfig(Settings):
    """The loss of model.kind kl_autoencoder, bottleneck_autoencoder and vae.

    Errors are means over an image's values, and the divergence of its latent is divided by their number, so weights
    mean what they do where both are summed (Rombach et al. 2022). A VAE's loss is then its negative ELBO for a Gaussian
    decoder of variance kl_weight / 2, where reconstruction=l2 (beta is part of that variance).
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = Field(1e-6, ge=0)  # beta; a bottleneck autoencoder has none
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial_weight: float = Field(0.0, ge=0)  # 0: no discriminator
    adversarial_start: Duration = "0 steps"  # the discriminator joins here
    adaptive: bool = True  # multiply by |gradient of the error| / |gradient of the score| (Esser et al. 2021, eq. 7)
    discriminator: PatchDiscriminatorConfig = PatchDiscriminatorConfig()
    degradation: DegradationConfig = DegradationConfig()


class AdaConfig(Settings):
    """Adaptive discriminator augmentation (Karras et al. 2020, arXiv:2006.06676), for few images.

    The discriminator sees real and generated images changed with probability p. p moves so that E[sign(D(real))], the
    paper's r_t, comes to `target`.
    """

    enabled: bool = False
    # blit: mirrored, quarter turns, whole shifts; geometric: scaled, turned, stretched, shifted; colour: the paper's
    groups: tuple[Literal["blit", "geometric", "colour"], ...] = ("blit", "geometric", "colour")
    start: float = Field(0.0, ge=0, le=1)  # p before the first step
    target: float | None = Field(0.6, gt=-1, lt=1)  # null: p stays at `start`
    every: int = Field(4, ge=1)  # steps from one change of p to the next
    kimg: float = Field(500.0, gt=0)  # thousands of images in which p can go from 0 to 1


class AdversarialConfig(Settings):
    """How a generator and its discriminator are trained.

    Penalties that are computed every n-th step count n times there (Karras et al. 2020, arXiv:1912.04958, section 3.1).
    """

    # Of Goodfellow et al. 2014 (minimax: equation 1; non_saturating: section 3), and Arjovsky et al. 2017 (wasserstein)
    loss: Literal["non_saturating", "minimax", "wasserstein"] = "non_saturating"
    r1_gamma: float = Field(1.0, ge=0)  # weight of the discriminator's gradient penalty at real images
    gradient_penalty: float = Field(0.0, ge=0)  # of wasserstein (Gulrajani et al. 2017, equation 3); usually 10
    penalty_every: int = Field(1, ge=1)  # steps; usually 16 of r1
    path_length: float = Field(
        0.0, ge=0
    )  # weight of path length regularisation (arXiv:1912.04958, equation 4); usually 2
    path_every: int = Field(4, ge=1)  # steps
    style_mixing: float = Field(0.0, ge=0, le=1)  # share of images with two styles (Karras et al. 2019, section 3.1)
    ada: AdaConfig = AdaConfig()


class ObjectiveConfig(Choice):
    """The base of every objective's settings, and the type of a field that takes any registered kind."""

    registry = OBJECTIVES

    def problems(self, cfg: "Config") -> Iterator[str]:  # noqa: ARG002
        """What is wrong with the settings that this objective reads, where `cfg` is trained by it."""
        yield from ()

    def missing(self, cfg: "Config") -> Iterator[str]:  # noqa: ARG002
        """Files that it needs and that are not where `cfg` says. Looks at the disk."""
        yield from ()

    def measures(self, cfg: "Config") -> tuple[str, ...]:  # noqa: ARG002
        """What it measures at a validation, as the names of "valid/<name>"; a metric of each name is registered."""
        return ("loss",)


@objective("pipeline.objectives.denoising:Denoising", trains=("denoiser",), diffusion=True, graphs=True)
class DenoisingObjective(ObjectiveConfig):
    """Diffusion: the settings stand in `diffusion`."""

    kind: Literal["denoising"]


@objective("pipeline.objectives.adversarial:Adversarial", trains=("generator",), graphs=True)
class AdversarialObjective(ObjectiveConfig):
    """Generator against discriminator: the settings stand in `adversarial`."""

    kind: Literal["adversarial"]

    def problems(self, cfg: "Config") -> Iterator[str]:
        """One generator is known to it. Penalties take the gradient of a gradient."""
        game = cfg.adversarial
        if not isinstance(cfg.model, StyleGANConfig):
            yield f"objective.kind: found {self.kind}, which trains model.kind=stylegan alone, not {cfg.model.kind}."
        for name in ("r1_gamma", "gradient_penalty", "path_length"):
            if (weight := getattr(game, name)) and cfg.train.compile:
                yield (
                    f"train.compile: found true with adversarial.{name}={weight:g}, which takes the gradient of a "
                    f"gradient: a compiled network has none. Set train.compile=false, or adversarial.{name}=0."
                )
        yield from _penalties(game)
        yield from _ada(game)

    def measures(self, cfg: "Config") -> tuple[str, ...]:  # noqa: ARG002
        """Nothing: a game has no loss that says how good its images are."""
        return ()


@objective("pipeline.objectives.autoencoder:Autoencoding", trains=("autoencoder",), samples=False, graphs=True)
class AutoencodingObjective(ObjectiveConfig):
    """Reconstructing images through small latents: the settings stand in `autoencoder`."""

    kind: Literal["autoencoding"]

    def problems(self, cfg: "Config") -> Iterator[str]:
        """The perceptual distance, and the game with the discriminator."""
        yield from _perceptual(cfg)
        if cfg.autoencoder.adversarial_weight:
            yield from _discriminator(cfg)

    def missing(self, cfg: "Config") -> Iterator[str]:
        """Weights of the perceptual distance."""
        yield from missing_weights(cfg)

    def measures(self, cfg: "Config") -> tuple[str, ...]:
        """The loss, its parts, and likeness to the originals."""
        kl = ("kl",) if cfg.model.has_posterior else ()
        return tuple(dict.fromkeys((*_parts(cfg), *kl, *_LIKENESS)))


@objective("pipeline.objectives.variational:Variational", trains=("vector_autoencoder",), graphs=True)
class VariationalObjective(ObjectiveConfig):
    """The ELBO of a VAE: the settings stand in `autoencoder`."""

    kind: Literal["variational"]

    def problems(self, cfg: "Config") -> Iterator[str]:
        """The perceptual distance; nothing else is added to the ELBO."""
        yield from _perceptual(cfg)
        yield from _vae(cfg)

    def missing(self, cfg: "Config") -> Iterator[str]:
        """Weights of the perceptual distance."""
        yield from missing_weights(cfg)

    def measures(self, cfg: "Config") -> tuple[str, ...]:
        """The loss, its parts, and likeness to the originals by the posterior's mean."""
        return (*_parts(cfg), "kl", *(f"mean_{name}" for name in _LIKENESS))


def objective_of(cfg: "Config") -> ObjectiveConfig:
    """The settings of the objective that trains `cfg`: those it names, or the ones its network is registered with."""
    if cfg.objective is not None:
        return cfg.objective
    found: ObjectiveConfig = OBJECTIVES.validate({"kind": OBJECTIVES[cfg.model.objective].name})
    return found


def objective_kind(cfg: "Config") -> ObjectiveKind:
    """What is registered of the objective that trains `cfg`."""
    return OBJECTIVES[objective_of(cfg).kind]


def check_objective(cfg: "Config") -> Iterator[str]:
    """Everything that is wrong between the objective of a config and its network, and in what the objective reads."""
    kind = objective_kind(cfg)
    if cfg.model.is_a not in kind.trains:
        yield (
            f"objective.kind: found {kind.name}, which trains a network that is a {' or a '.join(kind.trains)}, but "
            f"model.kind={cfg.model.kind} is a {cfg.model.is_a}. Leave objective out, or choose another network."
        )
    else:
        yield from objective_of(cfg).problems(cfg)


def _penalties(game: AdversarialConfig) -> Iterator[str]:
    """The Wasserstein loss needs a discriminator of bounded slope; the others know R1."""
    wasserstein = game.loss == "wasserstein"
    if wasserstein and not game.gradient_penalty:
        yield (
            "adversarial.gradient_penalty: found 0 with adversarial.loss=wasserstein, whose discriminator then grows "
            "without bound. Set adversarial.gradient_penalty=10."
        )
    if wasserstein and game.r1_gamma:
        yield (
            f"adversarial.r1_gamma: found {game.r1_gamma:g} with adversarial.loss=wasserstein, which wants slopes of 1 "
            "where R1 wants 0. Set adversarial.r1_gamma=0."
        )
    if game.gradient_penalty and not wasserstein:
        yield (
            f"adversarial.gradient_penalty: found {game.gradient_penalty:g} with adversarial.loss={game.loss}, "
            "expected 0: it belongs to wasserstein. Set adversarial.r1_gamma, or adversarial.loss=wasserstein."
        )


def _ada(game: AdversarialConfig) -> Iterator[str]:
    ada = game.ada
    if not ada.enabled:
        return
    if game.loss == "wasserstein" and ada.target is not None:
        yield (
            "adversarial.ada.target: found "
            f"{ada.target:g} with adversarial.loss=wasserstein, whose scores have no zero, so that their sign says "
            "nothing. Set adversarial.ada.target=null and a fixed adversarial.ada.start, or another loss."
        )
    if not ada.groups:
        yield (
            "adversarial.ada.groups: found none, expected some of blit, geometric, colour. Name them, or set "
            "adversarial.ada.enabled=false."
        )
    if ada.target is None and not ada.start:
        yield (
            "adversarial.ada: target is null and start is 0, so nothing would ever be changed. Set start, such as 0.3, "
            "or a target, such as 0.6."
        )


def _parts(cfg: "Config") -> tuple[str, ...]:
    loss = cfg.autoencoder
    return ("loss", loss.reconstruction, *(("perceptual",) if loss.perceptual.weight else ()))


def missing_weights(cfg: "Config") -> Iterator[str]:
    """Files of the perceptual distance that are not where the settings say, and what to do. Looks at the disk."""
    perceptual = cfg.autoencoder.perceptual
    for name, path in (("weights", perceptual.weights), ("heads", perceptual.heads)):
        if path is not None and not path.is_file():
            yield (
                f"{_HERE}.perceptual.{name}: found no file {path}, expected the weights there. Copy them to it, give "
                f"another path, or set {_HERE}.perceptual.{name}=null "
                + (
                    "for the features of the data's own classifier."
                    if name == "weights"
                    else "to count channels alike."
                )
            )


def _perceptual(cfg: "Config") -> Iterator[str]:
    perceptual = cfg.autoencoder.perceptual
    if perceptual.weights is None:
        for name in ("sha256", "heads", "heads_sha256"):
            if getattr(perceptual, name) is not None:
                yield (
                    f"{_HERE}.perceptual.{name}: set, but {_HERE}.perceptual.weights is null, so there is no network "
                    "that it belongs to. Set the path, or leave this out."
                )
        if perceptual.weight and not cfg.evaluate.domain.enabled:
            yield (
                f"{_HERE}.perceptual.weight: found {perceptual.weight:g}, but there are no features to measure with: "
                f"{_HERE}.perceptual.weights is null and evaluate.domain.enabled is false. Set one of them."
            )
        return
    if cfg.data.image_size < SMALLEST:
        yield (
            f"{_HERE}.perceptual.weights: set, but SqueezeNet's maps of images of {cfg.data.image_size} px come to "
            f"nothing, expected {SMALLEST} px or more. Use larger images, or {_HERE}.perceptual.weights=null."
        )
    if perceptual.heads is None and perceptual.heads_sha256 is not None:
        yield f"{_HERE}.perceptual.heads_sha256: set, but {_HERE}.perceptual.heads is null. Set both or neither."


def _vae(cfg: "Config") -> Iterator[str]:
    for name, value in (
        ("adversarial_weight", cfg.autoencoder.adversarial_weight),
        ("degradation", cfg.autoencoder.degradation.active),
    ):
        if value:
            yield (
                f"{_HERE}.{name}: set, but model.kind={cfg.model.kind} is trained by its ELBO alone. Leave it at its "
                "default."
            )


def _discriminator(cfg: "Config") -> Iterator[str]:
    layers, size = cfg.autoencoder.discriminator.layers, cfg.data.image_size
    if size >> layers < 3:
        fitting = max((n for n in range(1, layers) if size >> n >= 3), default=None)
        yield (
            f"{_HERE}.discriminator.layers: found {layers}, but images of {size} px are then too small: the "
            f"last two convolutions need 3 px, and {size} / 2^{layers} is {size / 2**layers:g}. "
            + (f"Use at most {fitting}." if fitting else "Use larger images.")
        )
    yield from late_start(cfg, train_images=None)


def late_start(cfg: "Config", *, train_images: int | None) -> Iterator[str]:
    """What is wrong where the discriminator would begin after the end; nothing where that cannot be known yet."""
    start, duration, batch = cfg.autoencoder.adversarial_start, cfg.train.duration, cfg.train.global_batch
    if train_images is None and needs_images(start) != needs_images(duration):
        return
    images = train_images or 1_000_000  # where both are epochs, any number compares them
    if to_images(start, batch=batch, train_images=images) >= to_images(duration, batch=batch, train_images=images):
        yield (
            f"{_HERE}.adversarial_start: found '{start}', but training ends after '{duration}': the discriminator "
            f"would never join. Start it earlier, or set {_HERE}.adversarial_weight=0."
        )
