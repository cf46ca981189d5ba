"""The tables of diffusers' names: the same random weights give the same output in our networks and in diffusers'."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config.schema_model import DiTConfig, UNetConfig
from pipeline.diffusers_io.folder import DIFFUSERS_WEIGHTS, read
from pipeline.diffusers_io.tables import Sizes, from_config, from_weights, to_config, to_weights
from pipeline.models.build import build_network
from pipeline.runtime.errors import UserError

diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")

SIZES = Sizes((3, 16, 16), classes=5)
UNET = UNetConfig(kind="unet", width=16, multipliers=(1, 2), blocks=1, attention=(8,), head_channels=8, groups=8)
DIT = DiTConfig(kind="dit", width=48, depth=3, heads=4, patch=2, qk_norm=False)
SQUARE = {"sample_size": 16, "norm_num_groups": 8, "layers_per_block": 1}
CIFAR10 = {  # google/ddpm-cifar10-32 as its file has it, but for narrower levels
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [32, 64, 64, 64],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
DIFFUSERS = {  # configs of diffusers that our networks express
    "ddpm-cifar10-32": CIFAR10,
    "no key that has a default": {"sample_size": 8, "block_out_channels": [32, 64, 96, 128]},
    "no common width, its own embedding": {
        **SQUARE,
        "block_out_channels": [24, 40],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "time_embedding_dim": 56,
        "num_class_embeds": 6,
    },
    "attention on the way up alone, and none in the middle": {
        **SQUARE,
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["DownBlock2D"] * 3,
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "add_attention": False,
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "swish",
        "sample_size": [16, 16],
    },
    "attention in the middle alone, twice the channels out": {
        **SQUARE,
        "block_out_channels": [16, 32],
        "out_channels": 6,
        "down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "UpBlock2D"],
    },
    "as consistency models have it": {
        **SQUARE,
        "block_out_channels": [16, 32],
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
        "num_class_embeds": 6,
    },
    "a transformer": {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "sample_size": 8,
        "num_embeds_ada_norm": 5,
        "norm_eps": 1e-2,
        "dropout": 0.1,
        "out_channels": 8,
    },
}
DIFFUSERS["the transformer of older versions"] = {
    **DIFFUSERS["a transformer"],
    "_class_name": "Transformer2DModel",
    "in_channels": 4,
    "patch_size": 2,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}
OURS = {  # networks of ours that diffusers expresses
    "adm": (UNET, SIZES),
    "ddpm": (UNET.model_copy(update={"scale_shift": False, "resample": "conv", "condition": "none"}), SIZES),
    "no attention": (UNET.model_copy(update={"attention": ()}), SIZES),
    "attention at both ends": (UNET.model_copy(update={"attention": (16, 8), "resample": "conv"}), SIZES),
    "three levels": (UNET.model_copy(update={"multipliers": (1, 2, 3), "blocks": 2, "condition_width": 48}), SIZES),
    "a wide first level": (UNET.model_copy(update={"multipliers": (3, 2), "embedding_width": 48}), SIZES),
    "dit": (DIT, SIZES),
    "dit with a variance": (DIT, SIZES._replace(outputs=6)),
}


def differ(ours: torch.nn.Module, of_diffusers: torch.nn.Module, sizes: Sizes) -> float:
    x = torch.randn(4, *sizes.shape)
    noise_cond, labels = torch.tensor([0.3, 7.0, 250.0, 999.0]), torch.tensor([0, 2, 4, 5])
    labels = labels if ours.conditional else None
    with torch.no_grad():
        out = ours(x, noise_cond, labels)
        assert out.std() > 1e-3
        return (out - of_diffusers(x, timestep=noise_cond, class_labels=labels).sample).abs().max().item()


def random(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight random: at initialisation outputs are zero and would hide differences."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def built(config) -> torch.nn.Module:
    """The network of diffusers for a config.json."""
    of_diffusers = random(getattr(diffusers, config.get("_class_name", "UNet2DModel")).from_config(config))
    for block in getattr(of_diffusers, "transformer_blocks", ()):  # each block has a copy of one embedding
        block.norm1.emb.load_state_dict(of_diffusers.transformer_blocks[0].norm1.emb.state_dict())
    return of_diffusers


def from_diffusers(of_diffusers: torch.nn.Module, config) -> tuple[torch.nn.Module, Sizes]:
    """Our network with the settings and weights of one of diffusers."""
    model, sizes = from_config({"_class_name": "UNet2DModel", **config})
    ours = build_network(model, shape=sizes.shape, classes=sizes.classes, outputs=sizes.outputs).eval()
    ours.load_state_dict(
        from_weights(model, dict(of_diffusers.config), of_diffusers.state_dict(), like=ours.state_dict())
    )
    return ours, sizes


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_networks_of_diffusers_give_the_same_output_in_ours():
    for name, config in DIFFUSERS.items():
        of_diffusers = built(config)
        ours, sizes = from_diffusers(of_diffusers, config)
        assert differ(ours, of_diffusers, sizes) < 1e-5, name
        whole, sizes = from_config({**of_diffusers.config, "_class_name": config.get("_class_name", "UNet2DModel")})
        assert (whole, sizes.shape) == (ours.cfg, sizes.shape), f"{name}: as diffusers saves it"


def test_our_networks_give_the_same_output_in_diffusers_and_come_back():
    for name, (model, sizes) in OURS.items():
        ours = random(build_network(model, shape=sizes.shape, classes=5, outputs=sizes.outputs))
        config = to_config(model, sizes)
        of_diffusers = built(config)
        of_diffusers.load_state_dict(to_weights(model, sizes, ours.state_dict()))
        assert differ(ours, of_diffusers, sizes) < 1e-5, name
        back, found = from_config({**of_diffusers.config, "_class_name": config["_class_name"]})
        assert build_network(back, shape=found.shape, classes=5, outputs=found.outputs).state_dict().keys() == (
            ours.state_dict().keys()
        )
        if name != "a wide first level":  # which is also 16 channels times 3
            assert (back, found.shape) == (model, sizes.shape), name


def test_every_key_without_an_equal_is_said_with_its_reason():
    refused = {
        r"time_embedding_type: found fourier.*divides the output": {"time_embedding_type": "fourier"},
        r"class_embed_type: found timestep.*rows of a table": {"class_embed_type": "timestep"},
        r"center_input_sample: found True": {"center_input_sample": True},
        r"mid_block_scale_factor: found 2.*act_fn: found relu": {"mid_block_scale_factor": 2, "act_fn": "relu"},
        r"resnet_time_scale_shift: found spatial, expected scale_shift or default": {
            "resnet_time_scale_shift": "spatial"
        },
        r"attn_norm_num_groups: found None, expected 32": {"resnet_time_scale_shift": "scale_shift"},
        r"downsample_type: found conv and resnet": {"downsample_type": "resnet"},
        r"down_block_types: found .*SkipDownBlock2D": {"down_block_types": ["SkipDownBlock2D"] * 4},
        r"sample_size: found None, expected the side": {"sample_size": None},
        r"new_key: found 3, which is not known here": {"new_key": 3, "other_new_key": False},
    }
    for message, change in refused.items():
        with pytest.raises(UserError, match=message):
            from_config({**CIFAR10, **change})
    cfg = DIT.model_copy(update={"qk_norm": True, "condition": "none", "mlp_ratio": 2.0})
    with pytest.raises(UserError, match=r"condition: found none, expected class.*qk_norm: found True.*mlp_ratio"):
        to_config(cfg, SIZES)
    cfg = UNET.model_copy(update={"embedding": "fourier", "embedding_width": 10})
    with pytest.raises(
        UserError,
        match=r"found fourier, expected sinusoidal.*_width: found 10, expected None or 16",
    ):
        to_config(cfg, SIZES)


def test_weights_of_another_network_are_named():
    ours = build_network(UNET, shape=SIZES.shape, classes=5)
    state = to_weights(UNET, SIZES, ours.state_dict())
    state["stray.weight"] = state.pop("conv_in.weight")
    with pytest.raises(UserError, match=r"conv_in\.weight.*stray\.weight"):
        from_weights(UNET, {}, state, like=ours.state_dict())
    ours = build_network(DIT, shape=SIZES.shape, classes=5)
    state = to_weights(DIT, SIZES, ours.state_dict())
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    with pytest.raises(UserError, match=r"transformer_blocks\.1.*differs"):
        from_weights(DIT, {"num_layers": 3}, state, like=ours.state_dict())


def test_a_folder_as_the_first_versions_wrote_it_is_read(tmp_path):
    """All files at the top, older names of attention; the scheduler tells the process."""
    of_diffusers = built(CIFAR10)
    old = {}
    for name, tensor in of_diffusers.state_dict().items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = tensor
    assert "mid_block.attentions.0.query.weight" in old
    save_file(old, tmp_path / DIFFUSERS_WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(CIFAR10))
    scheduler = {"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001}
    scheduler |= {"clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    network = read(tmp_path)
    ours = build_network(network.model, shape=network.shape).eval()
    ours.load_state_dict(network.weights)
    assert differ(ours, of_diffusers, Sizes((3, 32, 32))) < 1e-5
    assert (network.diffusion.parametrisation, network.diffusion.network_time_input) == ("eps", "timestep")
    assert network.diffusion.levels.betas == pytest.approx(diffusers.DDPMScheduler().betas.tolist())
