"""The same random weights in our U-Net and in diffusers' give the same output, in both directions."""

import pytest
import torch

from pipeline.config.schema_model import UNetConfig
from pipeline.models import foreign_unet
from pipeline.models.build import build_network
from pipeline.models.foreign import from_foreign, to_foreign
from pipeline.runtime.errors import UserError

diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")

SHAPE = (3, 16, 16)
BASE = UNetConfig(kind="unet", width=16, multipliers=(1, 2), blocks=1, attention=(8,), head_channels=8, groups=8)
VARIANTS = {
    "adm": {},
    "ddpm": {"scale_shift": False, "resample": "conv", "condition": "none"},
    "no attention": {"attention": ()},
    "attention at both ends, conv": {"attention": (16, 8), "resample": "conv"},
    "three levels, two blocks": {"multipliers": (1, 2, 3), "blocks": 2, "attention": (8,), "condition_width": 48},
}


def random_network(cfg: UNetConfig, *, classes: int = 5) -> torch.nn.Module:
    """Our network with every weight random: at initialisation outputs are zero and would hide differences."""
    torch.manual_seed(0)
    network = build_network(cfg, shape=SHAPE, classes=classes).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(4, *SHAPE), torch.tensor([0.3, 7.0, 250.0, 999.0]), torch.tensor([0, 2, 4, 5])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda name: name.replace(" ", "-"))
def test_same_weights_give_the_same_output_as_diffusers(variant):
    cfg = BASE.model_copy(update=VARIANTS[variant])
    ours = random_network(cfg)
    theirs = diffusers.UNet2DModel.from_config(foreign_unet.to_config(cfg, SHAPE, classes=5)).eval()
    theirs.load_state_dict(to_foreign(ours.state_dict(), foreign_unet.theirs))
    x, noise_cond, labels = inputs()
    given = labels if cfg.condition == "class" else None
    with torch.no_grad():
        difference = ours(x, noise_cond, given) - theirs(x, noise_cond, class_labels=given).sample
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda name: name.replace(" ", "-"))
def test_a_diffusers_network_comes_back_with_its_settings_and_weights(variant):
    cfg = BASE.model_copy(update=VARIANTS[variant])
    torch.manual_seed(1)
    theirs = diffusers.UNet2DModel.from_config(foreign_unet.to_config(cfg, SHAPE, classes=5)).eval()
    back, shape, classes = foreign_unet.from_config(dict(theirs.config))
    assert (back, shape) == (cfg, SHAPE)
    ours = random_network(back, classes=classes)
    ours.load_state_dict(from_foreign(theirs.state_dict(), foreign_unet.theirs, ours.state_dict()))
    x, noise_cond, labels = inputs()
    given = labels if cfg.condition == "class" else None
    with torch.no_grad():
        difference = ours(x, noise_cond, given) - theirs(x, noise_cond, class_labels=given).sample
    assert difference.abs().max() < 1e-5


def test_what_has_no_equal_is_said():
    with pytest.raises(UserError, match="fourier"):
        foreign_unet.to_config(BASE.model_copy(update={"embedding": "fourier"}), SHAPE, classes=5)
    config = foreign_unet.to_config(BASE, SHAPE, classes=5)
    with pytest.raises(UserError, match=r"freq_shift: found 1.*norm_eps: found 1e-06"):
        foreign_unet.from_config({**config, "freq_shift": 1, "norm_eps": 1e-6})


def test_weights_of_another_network_are_named():
    ours = random_network(BASE)
    state = to_foreign(ours.state_dict(), foreign_unet.theirs)
    state["stray.weight"] = state.pop("conv_in.weight")
    with pytest.raises(UserError, match=r"conv_in\.weight.*stray\.weight"):
        from_foreign(state, foreign_unet.theirs, ours.state_dict())
