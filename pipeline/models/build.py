"""Settings -> networks, from the registry."""

from typing import Any

import torch
from torch import nn

from pipeline.config.registry import NETWORKS
from pipeline.config.schema_model import ModelConfig, check_model
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

    Denoisers are called as
    `network(x [B, C, H, W], noise_cond [B], condition, sample_indices [B]) -> [B, C, H, W]`; autoencoders have
    `encode` and `decode`; a generator makes images. `network.conditional` says whether it wants a condition: int64
    [B], where `classes` means unknown, or int8 [B, attributes] of 0, 1 and -1 for unknown. `outputs` are a denoiser's
    channels out, None as many as in: a learned variance needs twice as many.

    Convolutions run in channels-last order, which a CPU and tensor cores both prefer; values do not depend on it.

    Raises:
        UserError: with everything that is wrong about `cfg` for this data.
    """
    problems = check_model(cfg, shape[1], classes=classes, attributes=attributes)
    if problems:
        raise UserError("\n".join(problems))
    kind = NETWORKS[cfg.kind]
    counts: dict[str, Any] = {} if kind.is_a == "autoencoder" else {"classes": classes, "attributes": attributes}
    if kind.is_a == "denoiser":
        counts["outputs"] = outputs
    network = kind.load()(cfg, shape, **counts)
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def count_parameters(network: nn.Module) -> int:
    """Numbers that training moves."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
