"""Our KL autoencoder as diffusers' `AutoencoderKL`: settings and names. Same weights, same output (within 1e-5)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema_model import KLAutoencoderConfig
from pipeline.models.foreign import differences, from_foreign, renamed
from pipeline.runtime.errors import UserError

CLASS_NAME = "AutoencoderKL"

theirs = renamed(
    (
        (r"^to_moments\.", "quant_conv."),
        (r"^from_latent\.", "post_quant_conv."),
        (r"^encoder\.levels\.(\d+)\.blocks\.", r"encoder.down_blocks.\1.resnets."),
        (r"^encoder\.levels\.(\d+)\.resample\.", r"encoder.down_blocks.\1.downsamplers.0."),
        (r"^decoder\.levels\.(\d+)\.blocks\.", r"decoder.up_blocks.\1.resnets."),
        (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.up_blocks.\1.upsamplers.0."),
        (r"\.middle\.first\.", ".mid_block.resnets.0."),
        (r"\.middle\.second\.", ".mid_block.resnets.1."),
        (r"\.middle\.attention\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.middle\.attention\.to_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.middle\.attention\.", ".mid_block.attentions.0."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"\.skip\.", ".conv_shortcut."),
    )
)


def from_weights(
    state: Mapping[str, Tensor], config: Mapping[str, Any], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Their weights as ours; `like` is our network's own state.

    Where their config.json leaves out the convolutions at the latent (Stable Diffusion 3, Flux), ours are the identity.
    """
    depth = int(config["latent_channels"])
    filled = dict(state)
    for name, channels in (("quant_conv", 2 * depth), ("post_quant_conv", depth)):
        if not config.get(f"use_{name}", True):
            filled |= {f"{name}.weight": torch.eye(channels)[..., None, None], f"{name}.bias": torch.zeros(channels)}
    return from_foreign(filled, theirs, like)


def to_config(cfg: KLAutoencoderConfig, shape: tuple[int, int, int], *, scaling: float = 1.0) -> dict[str, Any]:
    """The `config.json` of the `AutoencoderKL` that equals ours. `scaling` is 1 / deviation of the latents."""
    levels = len(cfg.multipliers)
    return {
        "_class_name": CLASS_NAME,
        "in_channels": shape[0],
        "out_channels": shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [cfg.width * multiplier for multiplier in cfg.multipliers],
        "layers_per_block": cfg.blocks,
        "act_fn": "silu",
        "latent_channels": cfg.latent_channels,
        "norm_num_groups": cfg.groups,
        "sample_size": shape[1],
        "scaling_factor": scaling,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": cfg.attention,
    }


def from_config(theirs: Mapping[str, Any]) -> tuple[KLAutoencoderConfig, tuple[int, int, int]]:
    """Our settings for one of their `config.json`, and the images' shape.

    Raises:
        UserError: listing every setting that our network cannot follow.
    """
    widths, size = list(theirs["block_out_channels"]), theirs.get("sample_size", 32)
    cfg = KLAutoencoderConfig(
        kind="kl_autoencoder",
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=theirs["layers_per_block"],
        latent_channels=theirs["latent_channels"],
        groups=theirs.get("norm_num_groups", 32),
        attention=theirs.get("mid_block_add_attention", True),
    )
    shape = (theirs["in_channels"], size, size)
    ours = to_config(cfg, shape, scaling=theirs.get("scaling_factor", 1.0))
    differing = differences(theirs, {key: value for key, value in ours.items() if not key.endswith("quant_conv")})
    if differing:
        raise UserError("This AutoencoderKL has no equal among our networks: " + "; ".join(differing) + ".")
    return cfg, shape
