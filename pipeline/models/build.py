"""Settings -> network. The one place that knows which class belongs to which `kind`."""

from torch import nn

from pipeline.config.check_model import check_model
from pipeline.config.schema_model import DiTConfig, ModelConfig, SimpleUNetConfig, UNetConfig
from pipeline.models.dit import DiT
from pipeline.models.simple_unet import SimpleUNet
from pipeline.models.unet import UNet
from pipeline.runtime.errors import UserError


def build_network(cfg: ModelConfig, *, shape: tuple[int, int, int], classes: int = 0, attributes: int = 0) -> nn.Module:
    """The network of `cfg` for images [C, H, W] of `shape`, with weights drawn from torch's generator as it stands.

    Called as `network(x [B, C, H, W], noise_cond [B], condition, visits=image numbers [B]) -> [B, C, H, W]`.
    Its `conditional` says whether it wants a condition: int64 [B], where `classes` means unknown, or int8
    [B, attributes] of 0, 1 and -1 for unknown.

    Raises:
        UserError: with everything that is wrong about `cfg` for this data.
    """
    problems = check_model(cfg, shape[1], classes=classes, attributes=attributes)
    if problems:
        raise UserError("\n".join(problems))
    match cfg:
        case UNetConfig():
            return UNet(cfg, shape, classes=classes, attributes=attributes)
        case SimpleUNetConfig():
            return SimpleUNet(cfg, shape, classes=classes, attributes=attributes)
        case DiTConfig():
            return DiT(cfg, shape, classes=classes, attributes=attributes)


def count_parameters(network: nn.Module) -> int:
    """Numbers that training moves."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
