"""Rules of training an autoencoder. Torch-free; each returns sentences."""

from collections.abc import Iterator

from pipeline.config.autoencoder import KINDS
from pipeline.config.durations import needs_images, to_images
from pipeline.config.schema import Config

SMALLEST = 21  # px, of images that SqueezeNet 1.0 has all its maps for
_HERE = "autoencoder"


def check_autoencoder(cfg: Config) -> Iterator[str]:
    """Everything that is wrong with the loss of an autoencoder or a VAE; nothing for other models."""
    if cfg.model.kind not in (*KINDS, "vae"):
        return
    yield from _perceptual(cfg)
    if cfg.model.kind == "vae":
        yield from _vae(cfg)
    elif cfg.autoencoder.adversarial_weight:
        yield from _critic(cfg)


def missing_weights(cfg: Config) -> Iterator[str]:
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


def _perceptual(cfg: Config) -> Iterator[str]:
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


def _vae(cfg: Config) -> Iterator[str]:
    for name, value in (
        ("adversarial_weight", cfg.autoencoder.adversarial_weight),
        ("degradation", cfg.autoencoder.degradation.active),
    ):
        if value:
            yield f"{_HERE}.{name}: set, but model.kind=vae is trained by its ELBO alone. Leave it at its default."


def _critic(cfg: Config) -> Iterator[str]:
    layers, size = cfg.autoencoder.discriminator.layers, cfg.data.image_size
    if size >> layers < 3:
        fitting = max((n for n in range(1, layers) if size >> n >= 3), default=None)
        yield (
            f"{_HERE}.discriminator.layers: found {layers}, but images of {size} px are then too small: the "
            f"last two convolutions need 3 px, and {size} / 2^{layers} is {size / 2**layers:g}. "
            + (f"Use at most {fitting}." if fitting else "Use larger images.")
        )
    yield from late_start(cfg, train_images=None)


def late_start(cfg: Config, *, train_images: int | None) -> Iterator[str]:
    """What is wrong where the critic would begin after the end; nothing where that cannot be known yet."""
    start, duration, batch = cfg.autoencoder.adversarial_start, cfg.train.duration, cfg.train.global_batch
    if train_images is None and needs_images(start) != needs_images(duration):
        return
    images = train_images or 1_000_000  # where both are epochs, any number compares them
    if to_images(start, batch=batch, train_images=images) >= to_images(duration, batch=batch, train_images=images):
        yield (
            f"{_HERE}.adversarial_start: found '{start}', but training ends after '{duration}': the critic would "
            f"never play. Start it earlier, or set {_HERE}.adversarial_weight=0."
        )
