"""Our transformer as diffusers' `DiTTransformer2DModel`: settings and names. Same weights, same output."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema_model import DiTConfig
from pipeline.models import foreign
from pipeline.models.foreign import differences, renamed
from pipeline.runtime.errors import UserError

CLASS_NAME = "DiTTransformer2DModel"
SHARED = "transformer_blocks.0.norm1.emb."  # their blocks hold one copy each of what ours has once

theirs = renamed(
    (
        (r"^noise_embedding\.first\.", SHARED + "timestep_embedder.linear_1."),
        (r"^noise_embedding\.second\.", SHARED + "timestep_embedder.linear_2."),
        (r"^condition\.rows\.", SHARED + "class_embedder.embedding_table."),
        (r"^patch_in\.", "pos_embed.proj."),
        (r"^patch_out\.", "proj_out_2."),
        (r"^modulation_out\.", "proj_out_1."),
        (r"^blocks\.(\d+)\.modulation\.", r"transformer_blocks.\1.norm1.linear."),
        (r"^blocks\.(\d+)\.attention\.to_out\.", r"transformer_blocks.\1.attn1.to_out.0."),
        (r"^blocks\.(\d+)\.attention\.", r"transformer_blocks.\1.attn1."),
        (r"^blocks\.(\d+)\.mlp_in\.", r"transformer_blocks.\1.ff.net.0.proj."),
        (r"^blocks\.(\d+)\.mlp_out\.", r"transformer_blocks.\1.ff.net.2."),
    )
)


def to_foreign(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Our weights as theirs, with the embeddings copied to each of the `depth` blocks."""
    out = foreign.to_foreign(state, theirs)
    shared = {name: tensor for name, tensor in out.items() if name.startswith(SHARED)}
    for number in range(1, depth):
        out.update({_in_block(name, number): tensor.clone() for name, tensor in shared.items()})
    return out


def from_foreign(state: Mapping[str, Tensor], depth: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights as ours. Raises `UserError` where their blocks' copies of the embeddings differ."""
    state = dict(state)
    for name in [name for name in state if name.startswith(SHARED)]:
        for number in range(1, depth):
            copy = state.pop(_in_block(name, number), None)
            if copy is not None and not torch.equal(copy, state[name]):
                raise UserError(
                    f"weights: {_in_block(name, number)} differs from {name}. Our transformer has one embedding for "
                    "all blocks; this one was trained with one a block and cannot be taken over."
                )
    return foreign.from_foreign(state, theirs, like)


def _in_block(name: str, number: int) -> str:
    return name.replace("transformer_blocks.0.", f"transformer_blocks.{number}.")


def obstacles(cfg: DiTConfig) -> list[str]:
    """Why this transformer cannot be a `DiTTransformer2DModel`; empty where it can."""
    found = []
    if cfg.condition != "class":
        found.append(f"model.condition={cfg.condition}: theirs always has classes")
    if cfg.qk_norm:
        found.append("model.qk_norm=true: theirs has none")
    if cfg.mlp_ratio != 4:
        found.append(f"model.mlp_ratio={cfg.mlp_ratio:g}: theirs is 4")
    if cfg.embedding_scale != 1:
        found.append(f"model.embedding_scale={cfg.embedding_scale}: theirs takes the noise level as it is; use 1")
    return found


def to_config(
    cfg: DiTConfig, shape: tuple[int, int, int], *, classes: int, outputs: int | None = None
) -> dict[str, Any]:
    """The `config.json` of the `DiTTransformer2DModel` that equals our network for images [C, H, W] of `shape`.

    Raises:
        UserError: listing every setting that theirs cannot follow.
    """
    problems = obstacles(cfg)
    if problems:
        raise UserError("This transformer has no equal in diffusers: " + "; ".join(problems) + ".")
    return {
        "_class_name": CLASS_NAME,
        "num_attention_heads": cfg.heads,
        "attention_head_dim": cfg.width // cfg.heads,
        "in_channels": shape[0],
        "out_channels": outputs or shape[0],
        "num_layers": cfg.depth,
        "dropout": 0.0,  # theirs drops elsewhere; at sampling there is none
        "attention_bias": True,
        "sample_size": shape[1],
        "patch_size": cfg.patch,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
    }


def from_config(theirs: Mapping[str, Any]) -> tuple[DiTConfig, tuple[int, int, int], int]:
    """Our settings for one of their `config.json`, the images' shape, and the number of classes.

    Raises:
        UserError: listing every setting that our network cannot follow.
    """
    heads, size = theirs["num_attention_heads"], theirs["sample_size"]
    cfg = DiTConfig(
        kind="dit",
        patch=theirs["patch_size"],
        width=heads * theirs["attention_head_dim"],
        depth=theirs["num_layers"],
        heads=heads,
        qk_norm=False,
    )
    shape, classes = (theirs["in_channels"], size, size), theirs["num_embeds_ada_norm"]
    outputs = theirs.get("out_channels")
    differing = differences(theirs, to_config(cfg, shape, classes=classes, outputs=outputs))
    if differing:
        raise UserError("This DiTTransformer2DModel has no equal among our networks: " + "; ".join(differing) + ".")
    return cfg, shape, classes
