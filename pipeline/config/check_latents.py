"""Rules of a diffusion model of latents. Torch-free; each returns sentences."""

from collections.abc import Iterator

from pipeline.config.autoencoder import KINDS, Facts
from pipeline.config.schema import Config

DENOISERS = ("unet", "simple_unet", "dit", "diffusers")


def check_latents(cfg: Config, autoencoder: Facts | None) -> Iterator[str]:
    """Everything that is wrong with training on latents; `autoencoder` is None where nothing is known of it yet."""
    if cfg.latents is None:
        return
    yield from _settings(cfg)
    if autoencoder is not None:
        yield from _autoencoder(cfg, autoencoder)


def _settings(cfg: Config) -> Iterator[str]:
    if cfg.model.kind not in DENOISERS:
        yield (
            f"latents: set, but model.kind={cfg.model.kind} is not trained on latents. Use one of "
            f"{', '.join(DENOISERS)}, or latents=null."
        )
    if cfg.train.augmentation.active:
        yield (
            f"train.augmentation: found {cfg.train.augmentation}, but latents are of images as they are. Leave its "
            "settings at their defaults, or use latents=null."
        )
    process = cfg.diffusion
    if "edm" in (process.parametrisation, process.weighting) and process.sigma_data != 1:
        yield (
            f"diffusion.sigma_data: found {process.sigma_data:g}, but latents are normalised to a deviation of 1. Set "
            "diffusion.sigma_data=1."
        )
    if cfg.sample.sampler.clip is not None:
        yield (
            f"sample.sampler.clip: found {cfg.sample.sampler.clip:g}, but latents have no bound as pixels have. Set "
            "sample.sampler.clip=null."
        )
    if cfg.latents and cfg.latents.overrides and cfg.latents.experiment is None:
        yield "latents.overrides: set, but latents.experiment is null, so no autoencoder is trained. Set it too."


def _autoencoder(cfg: Config, known: Facts) -> Iterator[str]:
    latents, size = cfg.latents, cfg.data.image_size
    if latents is None:
        return
    if known.kind not in KINDS:
        yield f"latents.autoencoder: {latents.autoencoder} is a {known.kind}, expected one of {', '.join(KINDS)}."
        return
    if known.channels != cfg.data.channels:
        yield (
            f"data.channels: found {cfg.data.channels}, but the autoencoder {latents.autoencoder} takes images of "
            f"{known.channels}. Set data.channels={known.channels}, or choose another autoencoder."
        )
    if size % known.factor:
        below = size // known.factor * known.factor
        near = " or ".join(str(n) for n in (below, below + known.factor) if n)
        yield (
            f"data.image_size: found {size}, but the autoencoder {latents.autoencoder} shrinks images {known.factor} "
            f"times, and {size} is not a multiple of {known.factor}. Use {near}."
        )
    if latents.weights == "average" and not known.averaged:
        yield (
            f"latents.weights: found 'average', but {latents.autoencoder} keeps no averages "
            "(train.average.half_life=null). Use latents.weights=network."
        )
