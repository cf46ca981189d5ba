"""Rules of a network's settings that concern several fields or the images. Torch-free; each returns sentences."""

from collections.abc import Iterator

from pipeline.config.schema_model import (
    BottleneckAutoencoderConfig,
    Condition,
    DiTConfig,
    KLAutoencoderConfig,
    ModelConfig,
    SimpleUNetConfig,
    StyleGANConfig,
    UNetConfig,
    VAEConfig,
)


def check_model(
    cfg: ModelConfig, image_size: int, *, classes: int | None = None, attributes: int | None = None
) -> list[str]:
    """Everything that is wrong with a network for square images of `image_size` pixels (or latents of that size).

    `classes` and `attributes` are counts of the data set, None where they are not known yet.
    """
    problems = list(_condition(cfg.condition, classes, attributes))
    match cfg:
        case UNetConfig():
            problems += [*_levels(cfg, image_size), *_unet(cfg, image_size)]
        case SimpleUNetConfig():
            problems += [*_levels(cfg, image_size), *_simple_unet(cfg, image_size)]
        case DiTConfig():
            problems += _dit(cfg, image_size)
        case KLAutoencoderConfig() | BottleneckAutoencoderConfig():
            problems += [*_halvings(cfg.multipliers, len(cfg.multipliers) - 1, image_size), *_groups(cfg)]
        case VAEConfig():
            problems += [*_halvings(cfg.multipliers, len(cfg.multipliers), image_size), *_groups(cfg)]
        case StyleGANConfig():
            problems += _stylegan(image_size)
    return problems


def latent_shape(
    cfg: KLAutoencoderConfig | BottleneckAutoencoderConfig, shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    """[d, h, w] of the latents of images [C, H, W]."""
    halvings = len(cfg.multipliers) - 1
    return cfg.latent_channels, shape[1] >> halvings, shape[2] >> halvings


def resolutions(multipliers: tuple[int, ...], image_size: int) -> list[int]:
    """The sizes of the maps of a U-Net's levels, from the image's down."""
    return [image_size >> level for level in range(len(multipliers))]


def _condition(condition: Condition, classes: int | None, attributes: int | None) -> Iterator[str]:
    if condition == "class" and classes == 0:
        yield (
            "model.condition: found class, but the data set has no labels. Use model.condition=none, or put each "
            "class of images in a folder of its own."
        )
    if condition == "attributes" and attributes == 0:
        yield "model.condition: found attributes, but the data set has none. Use model.condition=none or class."


def _halvings(multipliers: tuple[int, ...], halvings: int, image_size: int) -> Iterator[str]:
    if not multipliers:
        yield "model.multipliers: found none, expected one a level, such as [1,2,2]."
    elif image_size % 2**halvings:
        yield (
            f"model.multipliers: found {len(multipliers)} levels, which halve the image {halvings} times, but "
            f"the size {image_size} is not a multiple of {2**halvings}. Use fewer levels or another size."
        )


def _levels(cfg: UNetConfig | SimpleUNetConfig, image_size: int) -> Iterator[str]:
    problems = list(_halvings(cfg.multipliers, len(cfg.multipliers) - 1, image_size))
    yield from problems
    sizes = resolutions(cfg.multipliers, image_size)
    found = [("attention", size) for size in cfg.attention]
    if isinstance(cfg, UNetConfig):
        found += [("attention_up", size) for size in cfg.attention_up or ()]
    for name, size in found:
        if not problems and size not in sizes:
            yield (
                f"model.{name}: found {size}, but with images of {image_size} px and {len(sizes)} levels the maps "
                f"have sizes {sizes}: attention at {size} would never occur. Use one of them, or [] for no attention."
            )


def _groups(cfg: KLAutoencoderConfig | BottleneckAutoencoderConfig | VAEConfig) -> Iterator[str]:
    for multiplier in sorted(set(cfg.multipliers)):
        channels = cfg.width * multiplier
        if channels % cfg.groups:
            yield (
                f"model.groups: found {cfg.groups}, but {channels} channels (width {cfg.width} times {multiplier}) "
                f"do not divide into that many groups. {_near(channels)}"
            )


def _stylegan(image_size: int) -> Iterator[str]:
    if image_size < 4 or image_size & (image_size - 1):
        yield f"data.image_size: found {image_size}, but model.kind=stylegan doubles from 4 px: use 8, 16, 32, 64, ..."


def _unet(cfg: UNetConfig, image_size: int) -> Iterator[str]:
    sizes, known = resolutions(cfg.multipliers, image_size), set[int]()
    for level, (size, multiplier) in enumerate(zip(sizes, cfg.multipliers, strict=True)):
        channels = cfg.width * multiplier
        at = f"the {channels} channels at {size} px (width {cfg.width} times {multiplier})"
        if channels % cfg.groups and channels not in known:
            known.add(channels)
            yield f"model.groups: found {cfg.groups}, but {at} do not divide into that many groups. {_near(channels)}"
        middle = cfg.attends_middle and level == len(sizes) - 1
        attends = middle or size in (*cfg.attention, *cfg.attends_up)
        if attends and cfg.head_channels and channels % cfg.head_channels:
            yield (
                f"model.head_channels: found {cfg.head_channels}, but {at} do not divide into heads of that size. "
                f"{_near(channels)}"
            )


def _simple_unet(cfg: SimpleUNetConfig, image_size: int) -> Iterator[str]:
    for size, multiplier in zip(resolutions(cfg.multipliers, image_size), cfg.multipliers, strict=True):
        channels = cfg.width * multiplier
        if size in cfg.attention and channels % cfg.heads:
            yield (
                f"model.heads: found {cfg.heads}, but the {channels} channels at {size} px do not divide into that "
                f"many heads. {_near(channels)}"
            )


def _dit(cfg: DiTConfig, image_size: int) -> Iterator[str]:
    if image_size % cfg.patch:
        yield (
            f"model.patch: found {cfg.patch}, but images of {image_size} px do not divide into patches of that size. "
            f"{_near(image_size)}"
        )
    if cfg.width % (4 * cfg.heads):
        yield (
            f"model.heads: found {cfg.heads} with model.width={cfg.width}, expected a width that is a multiple of "
            "4 * heads (heads of equal, even size; positions take a quarter of the width each)."
        )


def _near(number: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return f"Divisors of {number}: {', '.join(map(str, divisors))}."
