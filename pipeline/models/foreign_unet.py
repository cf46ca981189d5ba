"""Our U-Net as diffusers' `UNet2DModel`: settings and names. Same weights, same output (tested within 1e-5)."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.schema_model import UNetConfig, resolutions
from pipeline.models.foreign import differences, renamed
from pipeline.runtime.errors import UserError

CLASS_NAME = "UNet2DModel"

theirs = renamed(
    (
        (r"^noise_embedding\.first\.", "time_embedding.linear_1."),
        (r"^noise_embedding\.second\.", "time_embedding.linear_2."),
        (r"^condition\.rows\.", "class_embedding."),
        (r"^(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2.resnets."),
        (r"^(down|up)\.(\d+)\.attentions\.", r"\1_blocks.\2.attentions."),
        (r"^(down|up)\.(\d+)\.resample\.", r"\1_blocks.\2.\1samplers.0."),
        (r"^middle\.blocks\.", "mid_block.resnets."),
        (r"^middle\.attentions\.", "mid_block.attentions."),
        (r"^middle_last\.", "mid_block.resnets.1."),
        (r"^norm_out\.", "conv_norm_out."),
        (r"\.embed\.", ".time_emb_proj."),
        (r"\.skip\.", ".conv_shortcut."),
        (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
        (r"\.to_out\.", ".to_out.0."),
    )
)


def obstacles(cfg: UNetConfig) -> list[str]:
    """Why this U-Net cannot be a `UNet2DModel`; empty where it can."""
    found = []
    if cfg.embedding != "sinusoidal":
        found.append(f"model.embedding={cfg.embedding}: theirs divides the output by the noise level; use sinusoidal")
    if cfg.embedding_width not in (None, cfg.width):
        found.append(f"model.embedding_width={cfg.embedding_width}: theirs is always model.width={cfg.width}")
    if cfg.embedding_scale != 1:
        found.append(f"model.embedding_scale={cfg.embedding_scale}: theirs takes the noise level as it is; use 1")
    if cfg.condition == "attributes":
        found.append("model.condition=attributes: theirs knows classes only")
    return found


def to_config(
    cfg: UNetConfig, shape: tuple[int, int, int], *, classes: int, outputs: int | None = None
) -> dict[str, Any]:
    """The `config.json` of the `UNet2DModel` that equals our network for images [C, H, W] of `shape`.

    Raises:
        UserError: listing every setting that theirs cannot follow.
    """
    problems = obstacles(cfg)
    if problems:
        raise UserError("This U-Net has no equal in diffusers: " + "; ".join(problems) + ".")
    attended = [size in cfg.attention for size in resolutions(cfg.multipliers, shape[1])]
    plain = {"conv": ("DownBlock2D", "UpBlock2D"), "block": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")}
    down, up = plain[cfg.resample]
    sampling = {"conv": "conv", "block": "resnet"}[cfg.resample]
    return {
        "_class_name": CLASS_NAME,
        "sample_size": shape[1],
        "in_channels": shape[0],
        "out_channels": outputs or shape[0],
        "time_embedding_type": "positional",
        "time_embedding_dim": cfg.condition_width,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["AttnDownBlock2D" if attention else down for attention in attended],
        "up_block_types": ["AttnUpBlock2D" if attention else up for attention in reversed(attended)],
        "block_out_channels": [cfg.width * multiplier for multiplier in cfg.multipliers],
        "layers_per_block": cfg.blocks,
        "downsample_padding": 1,
        "downsample_type": sampling,
        "upsample_type": sampling,
        "dropout": cfg.dropout,
        "act_fn": "silu",
        "attention_head_dim": cfg.head_channels,
        "norm_num_groups": cfg.groups,
        "attn_norm_num_groups": cfg.groups,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if cfg.scale_shift else "default",
        "add_attention": bool(cfg.attention),
        "num_class_embeds": classes + 1 if cfg.condition == "class" else None,
        "class_embed_type": None,
    }


def from_config(theirs: Mapping[str, Any]) -> tuple[UNetConfig, tuple[int, int, int], int]:
    """Our settings for one of their `config.json`, the images' shape, and the number of classes.

    The last row of their class table is taken for "no label". Raises `UserError` listing every setting that our
    network cannot follow.
    """
    size, widths = theirs["sample_size"], list(theirs["block_out_channels"])
    attended = [kind.startswith("Attn") for kind in theirs["down_block_types"]]
    rows = theirs.get("num_class_embeds")
    cfg = UNetConfig(
        kind="unet",
        condition="class" if rows else "none",
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=theirs["layers_per_block"],
        attention=tuple(size >> level for level, attention in enumerate(attended) if attention),
        head_channels=theirs.get("attention_head_dim") or 8,
        groups=theirs["norm_num_groups"],
        dropout=theirs.get("dropout", 0.0),
        scale_shift=theirs.get("resnet_time_scale_shift") == "scale_shift",
        resample="block" if theirs.get("downsample_type") == "resnet" else "conv",
        condition_width=theirs.get("time_embedding_dim"),
    )
    shape = (theirs["in_channels"], size, size)
    outputs = theirs.get("out_channels")
    differing = differences(theirs, to_config(cfg, shape, classes=(rows or 1) - 1, outputs=outputs))
    if differing:
        raise UserError("This UNet2DModel has no equal among our networks: " + "; ".join(differing) + ".")
    return cfg, shape, (rows or 1) - 1
