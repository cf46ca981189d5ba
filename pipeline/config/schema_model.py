"""Settings of the networks: one class a kind, told apart by `kind`, with the rules that concern several fields or the
images, and the registration that says where the network itself stands. Torch-free."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Settings
from pipeline.config.registry import NETWORKS, Choice, Role, network

Condition = Literal["none", "class", "attributes"]
Positive = Annotated[int, Field(ge=1)]


class ModelConfig(Choice):
    """The base of every network's settings, and the type of a field that takes any registered kind."""

    registry = NETWORKS
    condition: Condition = "none"

    @property
    def is_a(self) -> Role:
        """What the network is called for."""
        return NETWORKS[self.kind].is_a

    @property
    def objective(self) -> str:
        """What trains the network unless the config says otherwise."""
        return NETWORKS[self.kind].objective

    @property
    def has_posterior(self) -> bool:
        """Whether an autoencoder's latents are drawn from a normal distribution, and so have a divergence."""
        return False

    def problems(self, image_size: int) -> Iterator[str]:  # noqa: ARG002
        """What is wrong with these settings for square images of `image_size` pixels (or latents of that size)."""
        yield from ()

    def micro_batch_problems(self, micro: int) -> Iterator[str]:  # noqa: ARG002
        """What is wrong where a rank computes `micro` images at once."""
        yield from ()

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """[d, h, w] of the latents of images [C, H, W]; of an autoencoder alone."""
        raise TypeError(f"a network of kind {self.kind} has no latents that are small images, as for images {shape}")


@network("pipeline.models.simple_unet:SimpleUNet", is_a="denoiser", objective="denoising", blocks=True)
class SimpleUNetConfig(ModelConfig):
    """The plain U-Net of a first report: pairs of convolutions, max-pool down, bilinear up, embeddings added."""

    kind: Literal["simple_unet"]
    condition: Condition = "class"
    width: Positive = 32
    multipliers: tuple[Positive, ...] = (1, 2, 4)  # one a level, from the image's size down by halves
    attention: tuple[int, ...] = ()  # resolutions with self-attention; () is none
    heads: Positive = 4
    embedding_scale: float = Field(1.0, gt=0)  # multiplies the noise level

    def problems(self, image_size: int) -> Iterator[str]:
        """Levels, attention and its heads."""
        yield from _levels(self, image_size)
        for size, multiplier in zip(resolutions(self.multipliers, image_size), self.multipliers, strict=True):
            channels = self.width * multiplier
            if size in self.attention and channels % self.heads:
                yield (
                    f"model.heads: found {self.heads}, but the {channels} channels at {size} px do not divide into "
                    f"that many heads. {_near(channels)}"
                )


@network("pipeline.models.additive_unet:AdditiveUNet", is_a="denoiser", objective="denoising")
class AdditiveUNetConfig(ModelConfig):
    """A U-Net without norms whose skips are added: what a first experiment without a time input builds."""

    kind: Literal["additive_unet"]
    condition: Literal["none"] = "none"
    width: Positive = 64
    multipliers: tuple[Positive, ...] = (1, 2, 4, 8, 16)  # one a level, from the image's size down by halves
    noise_level: bool = False  # tell the noise level, added to every level's maps; false: the network sees x alone

    def problems(self, image_size: int) -> Iterator[str]:
        """Levels."""
        yield from _halvings(self.multipliers, len(self.multipliers) - 1, image_size)


@network("pipeline.models.unet:UNet", is_a="denoiser", objective="denoising", blocks=True)
class UNetConfig(ModelConfig):
    """The ADM / DDPM++ class of U-Net."""

    kind: Literal["unet"]
    condition: Condition = "class"
    width: Positive = 64
    multipliers: tuple[Positive, ...] = (1, 2, 2)  # one a level, from the image's size down by halves
    blocks: Positive = 2  # residual blocks a level
    attention: tuple[int, ...] = (8,)  # resolutions with self-attention, the middle then has it too; () is none at all
    attention_up: tuple[int, ...] | None = None  # resolutions of the way up; None: those of `attention`
    middle_attention: bool | None = None  # None: where any resolution has it
    head_channels: Positive | None = 32  # None: one head as wide as the map
    groups: Positive = 32  # of every group norm
    norm_eps: float = Field(1e-5, gt=0)  # added to the variance in every group norm
    dropout: float = Field(0.0, ge=0, lt=1)
    scale_shift: bool = True  # the embedding scales and shifts the norm; false: it is added before it, as in DDPM
    resample: Literal["block", "conv"] = "block"  # up and down in a residual block (ADM), or by a convolution (DDPM)
    downsample_padding: Literal["symmetric", "end"] = "symmetric"  # of resample=conv; end: right and below, as in DDPM
    embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    embedding_order: Literal["cos_sin", "sin_cos"] = "cos_sin"  # which half of the features comes first
    embedding_shift: int = Field(0, ge=0)  # subtracted from the number of frequencies in their exponents; DDPM: 1
    embedding_scale: float = Field(1.0, gt=0)  # multiplies the noise level; fourier: deviation of the frequencies
    embedding_width: int | None = Field(None, ge=2)  # features of the noise level; None: width
    condition_width: Positive | None = None  # of the vector that tells blocks noise level and label; None: 4 * width
    condition_channels: Positive | None = None  # tell the condition as so many constant channels of the input instead
    # Tell blocks noise level and condition as so many constant channels beside their maps, in place of scale_shift.
    concat_channels: Positive | None = None

    @property
    def attends_up(self) -> tuple[int, ...]:
        """Resolutions with attention on the way up."""
        return self.attention if self.attention_up is None else self.attention_up

    @property
    def attends_middle(self) -> bool:
        """Whether the middle has attention."""
        return bool(self.attention or self.attends_up) if self.middle_attention is None else self.middle_attention

    def problems(self, image_size: int) -> Iterator[str]:
        """Levels, attention and its heads, groups of the norms."""
        yield from _levels(self, image_size)
        sizes, known = resolutions(self.multipliers, image_size), set[int]()
        for level, (size, multiplier) in enumerate(zip(sizes, self.multipliers, strict=True)):
            channels = self.width * multiplier
            at = f"the {channels} channels at {size} px (width {self.width} times {multiplier})"
            if channels % self.groups and channels not in known:
                known.add(channels)
                yield (
                    f"model.groups: found {self.groups}, but {at} do not divide into that many groups. "
                    f"{_near(channels)}"
                )
            middle = self.attends_middle and level == len(sizes) - 1
            attends = middle or size in (*self.attention, *self.attends_up)
            if attends and self.head_channels and channels % self.head_channels:
                yield (
                    f"model.head_channels: found {self.head_channels}, but {at} do not divide into heads of that "
                    f"size. {_near(channels)}"
                )


@network("pipeline.models.dit:DiT", is_a="denoiser", objective="denoising", blocks=True)
class DiTConfig(ModelConfig):
    """The diffusion transformer with adaLN-zero (Peebles & Xie 2023)."""

    kind: Literal["dit"]
    condition: Condition = "class"
    patch: Positive = 2
    width: Positive = 384
    depth: Positive = 12
    heads: Positive = 6
    mlp_ratio: float = Field(4.0, gt=0)
    qk_norm: bool = True  # RMS norm of queries and keys (Dehghani et al. 2023): steadier in bf16
    mlp_norm_eps: float = Field(1e-6, gt=0)  # added to the variance in the norms before the MLPs; others have 1e-6
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding_scale: float = Field(1.0, gt=0)  # multiplies the noise level

    def problems(self, image_size: int) -> Iterator[str]:
        """Patches and heads."""
        if image_size % self.patch:
            yield (
                f"model.patch: found {self.patch}, but images of {image_size} px do not divide into patches of that "
                f"size. {_near(image_size)}"
            )
        if self.width % (4 * self.heads):
            yield (
                f"model.heads: found {self.heads} with model.width={self.width}, expected a width that is a multiple "
                "of 4 * heads (heads of equal, even size; positions take a quarter of the width each)."
            )


@network("pipeline.models.diffusers_network:DiffusersNetwork", is_a="denoiser", objective="denoising")
class DiffusersConfig(ModelConfig):
    """A denoiser of diffusers that no network of ours equals, as diffusers builds it: to sample from and to score."""

    kind: Literal["diffusers"]
    condition: Literal["none", "class"] = "none"
    settings: dict[str, Any]  # its config.json


class _ConvAutoencoderConfig(ModelConfig):
    """What both autoencoders have: levels of convolutions, and a small image in the middle."""

    condition: Literal["none"] = "none"
    width: Positive = 64
    multipliers: tuple[Positive, ...] = (1, 2, 4)  # one a level: a code's sides are 2^(levels - 1) times smaller
    latent_channels: Positive = 4
    groups: Positive = 32  # of every group norm

    def problems(self, image_size: int) -> Iterator[str]:
        """Levels, and groups of the norms."""
        yield from _halvings(self.multipliers, len(self.multipliers) - 1, image_size)
        yield from _groups(self.width, self.multipliers, self.groups)

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """[d, h, w] of the latents of images [C, H, W]."""
        halvings = len(self.multipliers) - 1
        return self.latent_channels, shape[1] >> halvings, shape[2] >> halvings


@network("pipeline.models.autoencoder:KLAutoencoder", is_a="autoencoder", objective="autoencoding", blocks=True)
class KLAutoencoderConfig(_ConvAutoencoderConfig):
    """Images to latents that are nearly normal, and back (Rombach et al. 2022): f is 2 to the levels less one.

    Three levels are f4, four are f8; latent_channels are d3, d4, d8.
    """

    kind: Literal["kl_autoencoder"]
    blocks: Positive = 2  # residual blocks a level
    attention: bool = True  # in the middle, one head

    @property
    def has_posterior(self) -> bool:
        """Yes: mean and variance."""
        return True


@network("pipeline.models.autoencoder:BottleneckAutoencoder", is_a="autoencoder", objective="autoencoding")
class BottleneckAutoencoderConfig(_ConvAutoencoderConfig):
    """A convolutional encoder to a small code without noise, and a decoder: what reconstructs degraded images."""

    kind: Literal["bottleneck_autoencoder"]
    width: Positive = 32
    latent_channels: Positive = 2
    groups: Positive = 8


@network("pipeline.models.vae:VAE", is_a="vector_autoencoder", objective="variational")
class VAEConfig(ModelConfig):
    """A variational autoencoder to one vector (Kingma & Welling 2014): the baseline that samples in one step."""

    kind: Literal["vae"]
    condition: Condition = "none"
    width: Positive = 32
    multipliers: tuple[Positive, ...] = (1, 2, 4)  # each level halves the image
    latent: Positive = 64
    groups: Positive = 8  # of every group norm

    def problems(self, image_size: int) -> Iterator[str]:
        """Levels, and groups of the norms."""
        yield from _halvings(self.multipliers, len(self.multipliers), image_size)
        yield from _groups(self.width, self.multipliers, self.groups)


@network("pipeline.models.stylegan:StyleGenerator", is_a="generator", objective="adversarial")
class StyleGANConfig(ModelConfig):
    """A small StyleGAN2 (Karras et al. 2020): generator and discriminator, the baseline of the adversarial kind."""

    kind: Literal["stylegan"]
    condition: Condition = "none"
    width: Positive = 64  # channels at the image's size; doubled with every halving up to `width_max`
    width_max: Positive = 256
    latent: Positive = 128  # of z and of the style w
    mapping_layers: Positive = 4
    deviation_group: Positive = 4  # images whose spread the discriminator sees: consecutive image numbers
    # The discriminator's weights too are normal, and scaled when used (Karras et al. 2018, section 4.1)
    equalized: bool = False
    filtered: bool = False  # maps are smoothed where their size changes, as in the paper (docs/gan.md)

    def micro_batch_problems(self, micro: int) -> Iterator[str]:
        """The discriminator sees whole groups."""
        if micro % self.deviation_group:
            yield (
                f"model.deviation_group: found {self.deviation_group}, which does not divide the {micro} images that a "
                "rank computes at once. Change train.micro_batch or train.global_batch, or use one of "
                f"{', '.join(str(n) for n in range(1, micro + 1) if micro % n == 0)}."
            )

    def problems(self, image_size: int) -> Iterator[str]:
        """The generator doubles its maps."""
        if image_size < 4 or image_size & (image_size - 1):
            yield (
                f"data.image_size: found {image_size}, but model.kind={self.kind} doubles from 4 px: "
                "use 8, 16, 32, 64, ..."
            )


class PatchDiscriminatorConfig(Settings):
    """Real or not, for overlapping patches (Isola et al. 2017): the discriminator of an autoencoder's training."""

    width: Positive = 64
    layers: Positive = 3  # halvings: 3 sees patches of 70 px


def check_model(
    cfg: ModelConfig, image_size: int, *, classes: int | None = None, attributes: int | None = None
) -> list[str]:
    """Everything that is wrong with a network for square images of `image_size` pixels (or latents of that size).

    `classes` and `attributes` are counts of the data set, None where they are not known yet.
    """
    return [*_condition(cfg.condition, classes, attributes), *cfg.problems(image_size)]


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


def _groups(width: int, multipliers: tuple[int, ...], groups: int) -> Iterator[str]:
    for multiplier in sorted(set(multipliers)):
        channels = width * multiplier
        if channels % groups:
            yield (
                f"model.groups: found {groups}, but {channels} channels (width {width} times {multiplier}) do not "
                f"divide into that many groups. {_near(channels)}"
            )


def _near(number: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return f"Divisors of {number}: {', '.join(map(str, divisors))}."
