"""Settings -> networks. The one place that knows which class belongs to which `kind`."""

import torch
from torch import nn

from pipeline.config.check_model import check_model
from pipeline.config.schema_model import (
    BottleneckAutoencoderConfig,
    DiffusersConfig,
    DiTConfig,
    KLAutoencoderConfig,
    ModelConfig,
    PatchDiscriminatorConfig,
    SimpleUNetConfig,
    StyleGANConfig,
    UNetConfig,
    VAEConfig,
)
from pipeline.models.autoencoder import BottleneckAutoencoder, KLAutoencoder
from pipeline.models.diffusers_network import DiffusersNetwork
from pipeline.models.discriminator import PatchDiscriminator, StyleDiscriminator
from pipeline.models.dit import DiT
from pipeline.models.simple_unet import SimpleUNet
from pipeline.models.stylegan import StyleGenerator
from pipeline.models.unet import UNet
from pipeline.models.vae import VAE
from pipeline.runtime.errors import UserError


def build_network(
    cfg: ModelConfig,
    *,
    shape: tuple[int, int, int],
    classes: int = 0,
    attributes: int = 0,
    outputs: int | None = None,
) -> nn.Module:
    """The network of `cfg` for images [C, H, W] of `shape`, with weights drawn from torch's generator as it stands.

    Denoisers (simple_unet, unet, dit, diffusers) are called as
    `network(x [B, C, H, W], noise_cond [B], condition, visits=image numbers [B]) -> [B, C, H, W]`; autoencoders have
    `encode` and `decode`; stylegan is its generator. `network.conditional` says whether it wants a condition: int64
    [B], where `classes` means unknown, or int8 [B, attributes] of 0, 1 and -1 for unknown. `outputs` are a denoiser's
    channels out, None as many as in: a learned variance needs twice as many.

    Convolutions run in channels-last order, which a CPU and tensor cores both prefer; values do not depend on it.

    Raises:
        UserError: with everything that is wrong about `cfg` for this data.
    """
    problems = check_model(cfg, shape[1], classes=classes, attributes=attributes)
    if problems:
        raise UserError("\n".join(problems))
    network = _network(cfg, shape, classes=classes, attributes=attributes, outputs=outputs)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _network(
    cfg: ModelConfig, shape: tuple[int, int, int], *, classes: int, attributes: int, outputs: int | None
) -> nn.Module:
    match cfg:
        case UNetConfig():
            return UNet(cfg, shape, classes=classes, attributes=attributes, outputs=outputs)
        case SimpleUNetConfig():
            return SimpleUNet(cfg, shape, classes=classes, attributes=attributes, outputs=outputs)
        case DiTConfig():
            return DiT(cfg, shape, classes=classes, attributes=attributes, outputs=outputs)
        case DiffusersConfig():
            return DiffusersNetwork(cfg, classes=classes)
        case KLAutoencoderConfig():
            return KLAutoencoder(cfg, shape)
        case BottleneckAutoencoderConfig():
            return BottleneckAutoencoder(cfg, shape)
        case VAEConfig():
            return VAE(cfg, shape, classes=classes, attributes=attributes)
        case StyleGANConfig():
            return StyleGenerator(cfg, shape, classes=classes, attributes=attributes)


def build_critic(
    cfg: StyleGANConfig | PatchDiscriminatorConfig,
    *,
    shape: tuple[int, int, int],
    classes: int = 0,
    attributes: int = 0,
) -> nn.Module:
    """The second player: scores of images [C, H, W] of `shape`, high where they look real."""
    if isinstance(cfg, PatchDiscriminatorConfig):
        return PatchDiscriminator(cfg, shape[0])
    return StyleDiscriminator(cfg, shape, classes=classes, attributes=attributes)


def count_parameters(network: nn.Module) -> int:
    """Numbers that training moves."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
