"""Settings of the networks: one class a kind, told apart by `kind`. Rules across fields: `check_model`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Settings

Condition = Literal["none", "class", "attributes"]
Positive = Annotated[int, Field(ge=1)]


class SimpleUNetConfig(Settings):
    """The plain U-Net of a first report: pairs of convolutions, max-pool down, bilinear up, embeddings added."""

    kind: Literal["simple_unet"]
    condition: Condition = "class"
    width: Positive = 32
    multipliers: tuple[Positive, ...] = (1, 2, 4)  # one a level, from the image's size down by halves
    attention: tuple[int, ...] = ()  # resolutions with self-attention; () is none
    heads: Positive = 4
    embedding_scale: float = Field(1.0, gt=0)  # multiplies the noise level


class UNetConfig(Settings):
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

    @property
    def attends_up(self) -> tuple[int, ...]:
        """Resolutions with attention on the way up."""
        return self.attention if self.attention_up is None else self.attention_up

    @property
    def attends_middle(self) -> bool:
        """Whether the middle has attention."""
        return bool(self.attention or self.attends_up) if self.middle_attention is None else self.middle_attention


class DiTConfig(Settings):
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


class DiffusersConfig(Settings):
    """A denoiser of diffusers that no network of ours equals, as diffusers builds it: to sample from and to score."""

    kind: Literal["diffusers"]
    condition: Literal["none", "class"] = "none"
    settings: dict[str, Any]  # its config.json


class KLAutoencoderConfig(Settings):
    """Images to latents that are nearly normal, and back (Rombach et al. 2022): f is 2 to the levels less one."""

    kind: Literal["kl_autoencoder"]
    condition: Literal["none"] = "none"
    width: Positive = 64
    multipliers: tuple[Positive, ...] = (1, 2, 4)  # three levels are f4, four are f8
    blocks: Positive = 2  # residual blocks a level
    latent_channels: Positive = 4  # d3, d4, d8
    groups: Positive = 32  # of every group norm
    attention: bool = True  # in the middle, one head


class BottleneckAutoencoderConfig(Settings):
    """A convolutional encoder to a small code without noise, and a decoder: what restores degraded images."""

    kind: Literal["bottleneck_autoencoder"]
    condition: Literal["none"] = "none"
    width: Positive = 32
    multipliers: tuple[Positive, ...] = (1, 2, 4)  # one a level; a code's sides are 2^(levels - 1) times smaller
    latent_channels: Positive = 2
    groups: Positive = 8  # of every group norm


class VAEConfig(Settings):
    """A variational autoencoder to one vector (Kingma & Welling 2014): the baseline that samples in one step."""

    kind: Literal["vae"]
    condition: Condition = "none"
    width: Positive = 32
    multipliers: tuple[Positive, ...] = (1, 2, 4)  # each level halves the image
    latent: Positive = 64
    groups: Positive = 8  # of every group norm


class StyleGANConfig(Settings):
    """A small StyleGAN2 (Karras et al. 2020): generator and discriminator, the baseline of the adversarial kind."""

    kind: Literal["stylegan"]
    condition: Condition = "none"
    width: Positive = 64  # channels at the image's size; doubled with every halving up to `width_max`
    width_max: Positive = 256
    latent: Positive = 128  # of z and of the style w
    mapping_layers: Positive = 4
    deviation_group: Positive = 4  # images whose spread the discriminator sees: consecutive image numbers


class PatchDiscriminatorConfig(Settings):
    """Real or not, for overlapping patches (Isola et al. 2017): the second player of an autoencoder's training."""

    width: Positive = 64
    layers: Positive = 3  # halvings: 3 sees patches of 70 px


ModelConfig = Annotated[
    SimpleUNetConfig
    | UNetConfig
    | DiTConfig
    | DiffusersConfig
    | KLAutoencoderConfig
    | BottleneckAutoencoderConfig
    | VAEConfig
    | StyleGANConfig,
    Field(discriminator="kind"),
]
