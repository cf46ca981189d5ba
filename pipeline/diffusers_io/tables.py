"""What diffusers calls our settings and weights: one table for each architecture, read in both directions.

A row of `keys` is a key of diffusers' config.json: the value that diffusers takes where it is missing, and what it says
of our network (the name of a setting, or a function of all settings). A key without that must have its default: our
networks have no such choice. `weights` turns our names of tensors into those of diffusers. The same settings and
weights give the same output, within 1e-5 (tests/test_diffusers_io.py).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.config.schema_model import (
    DiffusersConfig,
    DiTConfig,
    KLAutoencoderConfig,
    ModelConfig,
    UNetConfig,
    resolutions,
)
from pipeline.runtime.errors import UserError

Json = Mapping[str, Any]
State = Mapping[str, Tensor]


class Sizes(NamedTuple):
    """What a network is built for: images [C, H, W], classes, and channels out (None: as many as in)."""

    shape: tuple[int, int, int]
    classes: int = 0
    outputs: int | None = None


class Key(NamedTuple):
    """A key of config.json, its default in diffusers, and our setting: `values` maps ours to those of diffusers."""

    name: str
    default: Any
    ours: str | Callable[[Any, Sizes], Any] | None = None
    values: Mapping[Any, Any] = {}
    reason: str = ""  # why other values have no equal here


@dataclass(frozen=True)
class Architecture:
    """A network of ours and the model of diffusers that computes the same."""

    settings: type[Any]
    names: tuple[str, ...]  # of the model in diffusers; the first is written
    keys: tuple[Key, ...]
    derived: Callable[[Json], tuple[Json, Sizes]]  # our settings and sizes that no single key says
    weights: Sequence[tuple[str, str]]  # (pattern in our name, its replacement), applied once each, in this order
    only: Sequence[tuple[str, Callable[[Any], tuple[Any, ...]], str]] = ()  # settings, values with an equal, and why
    ignored: tuple[str, ...] = ()  # keys without influence on what a trained network computes
    canonical: Callable[[Json], Json] = dict  # one spelling for all configs of the same network
    to_state: Callable[[State, Json], State] = lambda state, _: state  # after the names are those of diffusers
    from_state: Callable[[State, Json], State] = lambda state, _: state  # before the names are ours

    def config(self, model: ModelConfig, sizes: Sizes) -> dict[str, Any]:
        """All keys for a network of ours."""
        out: dict[str, Any] = {"_class_name": self.names[0]}
        for key in self.keys:
            value = getattr(model, key.ours) if isinstance(key.ours, str) else key.default
            value = key.ours(model, sizes) if callable(key.ours) else value
            out[key.name] = key.values.get(value, value) if key.values else value
        return out


def to_config(model: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    """The config.json of the network in diffusers that equals ours.

    Raises:
        UserError: listing every setting that diffusers lacks.
    """
    if isinstance(model, DiffusersConfig):
        return model.settings
    table = _table(model)
    problems = [
        f"model.{name}: found {getattr(model, name)}, expected {' or '.join(map(str, allowed(model)))} ({why})"
        for name, allowed, why in table.only
        if getattr(model, name) not in allowed(model)
    ]
    if problems:
        raise UserError(f"This network has no equal in diffusers' {table.names[0]}: {'; '.join(problems)}.")
    return table.config(model, sizes)


def from_config(config: Json) -> tuple[ModelConfig, Sizes]:
    """Our settings for a config.json of diffusers, and the sizes that the network was built for.

    Raises:
        UserError: listing every key with a value that our networks have no equal of.
    """
    name = str(config.get("_class_name"))
    table = next((table for table in TABLES if name in table.names), None)
    if table is None:
        raise UserError(f"_class_name: found {name}, expected {' or '.join(n for t in TABLES for n in t.names)}.")
    keys = {key.name: key for key in table.keys}
    given = {key: _listed(value) for key, value in config.items() if not key.startswith("_")}
    known = table.canonical({key.name: key.default for key in table.keys} | given)
    settings, sizes = table.derived(known)
    direct = {key.ours: _ours(key, known[key.name]) for key in table.keys if isinstance(key.ours, str)}
    model = table.settings.model_validate(direct | dict(settings))
    ours = table.canonical(table.config(model, sizes))
    problems = [
        f"{key}: found {value}, " + (_expected(keys[key], ours[key]) if key in ours else "which is not known here")
        for key, value in known.items()
        if key not in table.ignored and value != ours.get(key) and (key in ours or value)
    ]
    if problems:
        raise UserError(f"This {name} has no equal among our networks: {'; '.join(problems)}.")
    return model, sizes


def as_it_is(config: Json) -> tuple[DiffusersConfig, Sizes] | None:
    """A denoiser that has no equal among ours, to be built by diffusers itself; None for other kinds of conditions.

    Ours are a noise level and a class; the last row of the class table is taken for "no label".
    """
    side, rows = config.get("sample_size"), config.get("num_class_embeds")
    other = config.get("time_embedding_type") == "fourier" or config.get("class_embed_type")
    if config.get("_class_name") != "UNet2DModel" or other or not isinstance(side, int):
        return None
    model = DiffusersConfig(kind="diffusers", condition="class" if rows else "none", settings=dict(config))
    shape = (config.get("in_channels", 3), side, side)
    return model, Sizes(shape, (rows or 1) - 1, config.get("out_channels", 3))


def to_weights(model: ModelConfig, sizes: Sizes, state: State) -> dict[str, Tensor]:
    """Our weights under the names of diffusers."""
    if isinstance(model, DiffusersConfig):
        return {name.removeprefix("network."): tensor for name, tensor in state.items()}
    table, out = _table(model), dict[str, Tensor]()
    for name, tensor in state.items():
        names = _names(table, name)
        out.update(zip(names, (part.contiguous() for part in tensor.chunk(len(names))), strict=True))
    return dict(table.to_state(out, table.config(model, sizes)))


def from_weights(model: ModelConfig, config: Json, state: State, *, like: State) -> dict[str, Tensor]:
    """Weights of diffusers under our names. `config` is their config.json; `like` has our names and shapes.

    Raises:
        UserError: naming tensors that are missing, left over, or of another shape.
    """
    state = {_modern(name): tensor for name, tensor in state.items()}
    if isinstance(model, DiffusersConfig):
        return {f"network.{name}": tensor for name, tensor in state.items()}
    table = _table(model)
    state = table.from_state(state, config)
    wanted = {name: _names(table, name) for name in like}
    missing = [name for names in wanted.values() for name in names if name not in state]
    extra = sorted(set(state) - {name for names in wanted.values() for name in names})
    if missing or extra:
        raise UserError(
            f"weights: {len(missing)} tensors are missing ({_few(missing)}) and {len(extra)} have no place "
            f"({_few(extra)}). The folder's config.json describes another network than its weights hold."
        )
    out = {name: torch.cat([state[part] for part in parts]) for name, parts in wanted.items()}
    wrong = [f"{name}: {list(out[name].shape)}, expected {list(like[name].shape)}" for name in out
             if out[name].numel() != like[name].numel()]  # fmt: skip
    if wrong:
        raise UserError(f"weights: {len(wrong)} tensors have another shape ({_few(wrong)}).")
    return {name: tensor.reshape(like[name].shape) for name, tensor in out.items()}


def _table(model: ModelConfig) -> Architecture:
    for table in TABLES:
        if isinstance(model, table.settings):
            return table
    raise UserError(f"model.kind={model.kind} has no equal in diffusers: use `--format safetensors`.")


def _ours(key: Key, value: Any) -> Any:
    """Our setting for a value of diffusers; one that has no equal stays as it is, and is then seen to differ."""
    return next((ours for ours, its in key.values.items() if its == value), next(iter(key.values), value))


def _names(table: Architecture, name: str) -> tuple[str, ...]:
    """The tensors of diffusers that ours is made of: queries, keys and values are stacked here and apart there."""
    for pattern, replacement in table.weights:
        name = re.sub(pattern, replacement, name)
    return tuple(name.replace(".to_qkv.", f".to_{x}.") for x in "qkv") if ".to_qkv." in name else (name,)


def _modern(name: str) -> str:
    """Files of diffusers before 0.17 call the parts of attention otherwise."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = re.sub(rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
    return name


def _expected(key: Key, ours: Any) -> str:
    values = " or ".join(map(str, key.values.values())) or ours
    return f"expected {values}" + (f" ({key.reason})" if key.reason else "")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"


def _channels(cfg: UNetConfig | KLAutoencoderConfig, _: Sizes) -> list[int]:
    return [cfg.width * multiplier for multiplier in cfg.multipliers]


def _widths(channels: Sequence[int]) -> dict[str, Any]:
    """`_channels` backwards."""
    width = math.gcd(*channels)
    return {"width": width, "multipliers": tuple(number // width for number in channels)}


# ---- the U-Net of DDPM and ADM ----

_SAMPLING = {"conv": "conv", "block": "resnet"}
_DOWN = {"conv": "DownBlock2D", "resnet": "ResnetDownsampleBlock2D"}  # levels without attention
_UP = {"conv": "UpBlock2D", "resnet": "ResnetUpsampleBlock2D"}
_ONE_WAY = "the size changes in one way at all levels"


def _down(cfg: UNetConfig, sizes: Sizes) -> list[str]:
    levels = resolutions(cfg.multipliers, sizes.shape[1])
    return ["AttnDownBlock2D" if size in cfg.attention else _DOWN[_SAMPLING[cfg.resample]] for size in levels]


def _up(cfg: UNetConfig, sizes: Sizes) -> list[str]:
    levels = reversed(resolutions(cfg.multipliers, sizes.shape[1]))
    return ["AttnUpBlock2D" if size in cfg.attends_up else _UP[_SAMPLING[cfg.resample]] for size in levels]


def _features(cfg: UNetConfig) -> tuple[int | None, ...]:
    return (None, cfg.width) if cfg.multipliers[0] == 1 else (cfg.width * cfg.multipliers[0],)


def _unet(config: Json) -> tuple[Json, Sizes]:
    """The last row of diffusers' class table is taken for "no label"."""
    size, rows, first = config["sample_size"], config["num_class_embeds"], config["block_out_channels"][0]
    if not isinstance(size, int):
        raise UserError(f"sample_size: found {size}, expected the side of square images. Write it into config.json.")
    widths = _widths(config["block_out_channels"])
    down = tuple(size >> k for k, kind in enumerate(config["down_block_types"]) if kind.startswith("Attn"))
    up = tuple(size >> k for k, kind in enumerate(reversed(config["up_block_types"])) if kind.startswith("Attn"))
    embedding, middle = config["time_embedding_dim"], config["add_attention"]
    settings = {
        "kind": "unet",
        "condition": "class" if rows else "none",
        **widths,
        "attention": down,
        "attention_up": None if up == down else up,
        "middle_attention": None if middle == bool(down or up) else middle,
        "embedding_width": None if first == widths["width"] else first,
        "condition_width": None if embedding == 4 * widths["width"] else embedding,
    }
    return settings, Sizes((config["in_channels"], size, size), (rows or 1) - 1, config["out_channels"])


def _unet_canonical(config: Json) -> Json:
    """Blocks say by name, or by downsample_type, how they change the size; at the last level that means nothing."""
    out, used = dict(config), set[Any]()
    for way, plain in (("down", _DOWN), ("up", _UP)):
        types = [kind.removeprefix("UNetRes") for kind in config[f"{way}_block_types"]]
        named = {block: how for how, block in plain.items()}
        used |= {named.get(kind, config[f"{way}sample_type"]) for kind in types[:-1]}
        out[f"{way}_block_types"] = ["without attention" if kind in named else kind for kind in types]
    sampling = " and ".join(sorted(used)) or "conv"
    out |= {"downsample_type": sampling, "upsample_type": sampling}
    out["downsample_padding"] = 1 if sampling == "resnet" else config["downsample_padding"]
    out["act_fn"] = "silu" if config["act_fn"] == "swish" else config["act_fn"]
    out["time_embedding_dim"] = config["time_embedding_dim"] or 4 * config["block_out_channels"][0]
    normed = config["attn_norm_num_groups"] is None and config["resnet_time_scale_shift"] == "default"
    if normed or not config["add_attention"]:  # of the middle alone
        out["attn_norm_num_groups"] = config["norm_num_groups"]
    size = config["sample_size"]
    out["sample_size"] = size[0] if isinstance(size, list) and size == size[:1] * 2 else size
    return out


UNET = Architecture(
    settings=UNetConfig,
    names=("UNet2DModel",),
    keys=(
        Key("sample_size", None, lambda _, sizes: sizes.shape[1]),
        Key("in_channels", 3, lambda _, sizes: sizes.shape[0]),
        Key("out_channels", 3, lambda _, sizes: sizes.outputs or sizes.shape[0]),
        Key("block_out_channels", [224, 448, 672, 896], _channels),
        Key("layers_per_block", 2, "blocks"),
        Key("down_block_types", ["DownBlock2D"] + 3 * ["AttnDownBlock2D"], _down, reason="or AttnDownBlock2D"),
        Key("up_block_types", 3 * ["AttnUpBlock2D"] + ["UpBlock2D"], _up, reason="or AttnUpBlock2D"),
        Key("add_attention", True, lambda cfg, _: cfg.attends_middle),
        Key("attention_head_dim", 8, "head_channels"),
        Key("norm_num_groups", 32, "groups"),
        Key("attn_norm_num_groups", None, lambda cfg, _: cfg.groups, reason="attention has the norm of all others"),
        Key("norm_eps", 1e-5, "norm_eps"),
        Key("dropout", 0.0, "dropout"),
        Key("resnet_time_scale_shift", "default", "scale_shift", {True: "scale_shift", False: "default"}),
        Key("downsample_type", "conv", "resample", _SAMPLING, _ONE_WAY),
        Key("upsample_type", "conv", "resample", _SAMPLING, _ONE_WAY),
        Key("downsample_padding", 1, "downsample_padding", {"symmetric": 1, "end": 0}),
        Key("time_embedding_type", "positional", reason="fourier divides the output by the noise level"),
        Key("time_embedding_dim", None, lambda cfg, _: cfg.condition_width or 4 * cfg.width),
        Key("freq_shift", 0, "embedding_shift"),
        Key("flip_sin_to_cos", True, "embedding_order", {"cos_sin": True, "sin_cos": False}),
        Key("class_embed_type", None, reason="classes are rows of a table"),
        Key("num_class_embeds", None, lambda cfg, sizes: sizes.classes + 1 if cfg.condition == "class" else None),
        Key("center_input_sample", False, reason="images are in [-1, 1] already"),
        Key("mid_block_type", "UNetMidBlock2D"),
        Key("mid_block_scale_factor", 1),
        Key("act_fn", "silu"),
    ),
    derived=_unet,
    canonical=_unet_canonical,
    ignored=("num_train_timesteps",),
    only=(
        ("embedding", lambda _: ("sinusoidal",), "fourier in diffusers divides the output by the noise level"),
        ("embedding_scale", lambda _: (1,), "diffusers takes the noise level as it is"),
        ("embedding_width", _features, "diffusers has as many features as the first level has channels"),
        ("condition", lambda _: ("class", "none"), "diffusers knows classes only"),
        ("condition_channels", lambda _: (None,), "diffusers tells classes beside the noise level"),
        ("concat_channels", lambda _: (None,), "diffusers adds the embedding to maps, or scales them"),
    ),
    weights=(
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
    ),
)


# ---- the diffusion transformer ----

_SHARED = "transformer_blocks.0.norm1.emb."  # diffusers has a copy in each block of what ours has once


def _dit(config: Json) -> tuple[Json, Sizes]:
    size, width = config["sample_size"], config["num_attention_heads"] * config["attention_head_dim"]
    sizes = Sizes((config["in_channels"], size, size), config["num_embeds_ada_norm"], config["out_channels"])
    return {"kind": "dit", "width": width, "qk_norm": False}, sizes


def _dit_copied(state: State, config: Json) -> State:
    shared = [name for name in state if name.startswith(_SHARED)]
    return {**state, **{_in_block(n, k): state[n].clone() for n in shared for k in range(1, config["num_layers"])}}


def _dit_once(state: State, config: Json) -> State:
    out = dict(state)
    for name in [name for name in state if name.startswith(_SHARED)]:
        for block in range(1, config["num_layers"]):
            copy = out.pop(_in_block(name, block), None)
            if copy is not None and not torch.equal(copy, state[name]):
                raise UserError(
                    f"weights: {_in_block(name, block)} differs from {name}. Our transformer has one embedding for "
                    "all blocks; this one was trained with one a block and has no equal."
                )
    return out


def _in_block(name: str, number: int) -> str:
    return name.replace("transformer_blocks.0.", f"transformer_blocks.{number}.")


DIT = Architecture(
    settings=DiTConfig,
    names=("DiTTransformer2DModel", "Transformer2DModel"),  # and as older versions call it
    keys=(
        Key("sample_size", 32, lambda _, sizes: sizes.shape[1]),
        Key("in_channels", 4, lambda _, sizes: sizes.shape[0]),
        Key("out_channels", None, lambda _, sizes: sizes.outputs or sizes.shape[0]),
        Key("patch_size", 2, "patch"),
        Key("num_layers", 28, "depth"),
        Key("num_attention_heads", 16, "heads"),
        Key("attention_head_dim", 72, lambda cfg, _: cfg.width // cfg.heads),
        Key("attention_bias", True),
        Key("activation_fn", "gelu-approximate"),
        Key("num_embeds_ada_norm", 1000, lambda _, sizes: sizes.classes),
        Key("norm_type", "ada_norm_zero"),
        Key("norm_elementwise_affine", False),
        Key("norm_eps", 1e-5, "mlp_norm_eps"),
    ),
    derived=_dit,
    canonical=lambda config: {**config, "out_channels": config["out_channels"] or config["in_channels"]},
    ignored=("dropout", "norm_num_groups", "upcast_attention", "attention_type"),
    only=(
        ("condition", lambda _: ("class",), "diffusers always has classes"),
        ("qk_norm", lambda _: (False,), "diffusers has none"),
        ("mlp_ratio", lambda _: (4,), "diffusers has no other"),
        ("embedding_scale", lambda _: (1,), "diffusers takes the noise level as it is"),
    ),
    weights=(
        (r"^noise_embedding\.first\.", _SHARED + "timestep_embedder.linear_1."),
        (r"^noise_embedding\.second\.", _SHARED + "timestep_embedder.linear_2."),
        (r"^condition\.rows\.", _SHARED + "class_embedder.embedding_table."),
        (r"^patch_in\.", "pos_embed.proj."),
        (r"^patch_out\.", "proj_out_2."),
        (r"^modulation_out\.", "proj_out_1."),
        (r"^blocks\.(\d+)\.modulation\.", r"transformer_blocks.\1.norm1.linear."),
        (r"^blocks\.(\d+)\.attention\.to_out\.", r"transformer_blocks.\1.attn1.to_out.0."),
        (r"^blocks\.(\d+)\.attention\.", r"transformer_blocks.\1.attn1."),
        (r"^blocks\.(\d+)\.mlp_in\.", r"transformer_blocks.\1.ff.net.0.proj."),
        (r"^blocks\.(\d+)\.mlp_out\.", r"transformer_blocks.\1.ff.net.2."),
    ),
    to_state=_dit_copied,
    from_state=_dit_once,
)


# ---- the autoencoder of latent diffusion ----


def _kl(config: Json) -> tuple[Json, Sizes]:
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    return {"kind": "kl_autoencoder", **_widths(config["block_out_channels"])}, Sizes(shape)


def _kl_filled(state: State, config: Json) -> State:
    """Where diffusers leaves out the convolutions at the latent (Stable Diffusion 3, Flux), ours are the identity."""
    out, depth = dict(state), int(config["latent_channels"])
    for name, channels in (("quant_conv", 2 * depth), ("post_quant_conv", depth)):
        if not config.get(f"use_{name}", True):
            out |= {f"{name}.weight": torch.eye(channels)[..., None, None], f"{name}.bias": torch.zeros(channels)}
    return out


AUTOENCODER = Architecture(
    settings=KLAutoencoderConfig,
    names=("AutoencoderKL",),
    keys=(
        Key("sample_size", 32, lambda _, sizes: sizes.shape[1]),
        Key("in_channels", 3, lambda _, sizes: sizes.shape[0]),
        Key("out_channels", 3, lambda _, sizes: sizes.shape[0]),
        Key("latent_channels", 4, "latent_channels"),
        Key("block_out_channels", [64], _channels),
        Key("layers_per_block", 1, "blocks"),
        Key("down_block_types", ["DownEncoderBlock2D"], lambda cfg, _: ["DownEncoderBlock2D"] * len(cfg.multipliers)),
        Key("up_block_types", ["UpDecoderBlock2D"], lambda cfg, _: ["UpDecoderBlock2D"] * len(cfg.multipliers)),
        Key("mid_block_add_attention", True, "attention"),
        Key("norm_num_groups", 32, "groups"),
        Key("act_fn", "silu"),
        Key("scaling_factor", 0.18215, lambda *_: 1.0),  # here the scale of latents is measured, not a setting
    ),
    derived=_kl,
    ignored=(
        *("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"),
        *("use_quant_conv", "use_post_quant_conv"),  # see _kl_filled
    ),
    weights=(
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
    ),
    from_state=_kl_filled,
)
TABLES = (UNET, DIT, AUTOENCODER)
