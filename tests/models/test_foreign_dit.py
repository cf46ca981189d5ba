"""The same random weights in our transformer and in diffusers' give the same output, in both directions."""

import pytest
import torch

from pipeline.config.schema_model import DiTConfig
from pipeline.models import foreign_dit
from pipeline.models.build import build_network
from pipeline.runtime.errors import UserError

diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")

CFG = DiTConfig(kind="dit", width=48, depth=3, heads=4, patch=2, qk_norm=False)
SHAPE, CLASSES = (4, 8, 8), 5


def random_network(outputs: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build_network(CFG, shape=SHAPE, classes=CLASSES, outputs=outputs).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def differ(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
    x, noise_cond, labels = torch.randn(4, *SHAPE), torch.tensor([0.3, 7.0, 250.0, 999.0]), torch.tensor([0, 2, 4, 5])
    with torch.no_grad():
        out = ours(x, noise_cond, labels)
        return (out - theirs(x, noise_cond, class_labels=labels).sample).abs().max().item()


@pytest.mark.parametrize("outputs", [None, 8])
def test_same_weights_give_the_same_output_as_diffusers(outputs):
    ours = random_network(outputs)
    config = foreign_dit.to_config(CFG, SHAPE, classes=CLASSES, outputs=outputs)
    theirs = diffusers.DiTTransformer2DModel.from_config(config).eval()
    theirs.load_state_dict(foreign_dit.to_foreign(ours.state_dict(), CFG.depth))
    assert differ(ours, theirs) < 1e-5


def test_a_diffusers_transformer_comes_back_with_its_settings_and_weights():
    first = random_network()
    theirs = diffusers.DiTTransformer2DModel.from_config(foreign_dit.to_config(CFG, SHAPE, classes=CLASSES)).eval()
    theirs.load_state_dict(foreign_dit.to_foreign(first.state_dict(), CFG.depth))
    assert foreign_dit.from_config(dict(theirs.config)) == (CFG, SHAPE, CLASSES)
    torch.manual_seed(3)
    ours = build_network(CFG, shape=SHAPE, classes=CLASSES).eval()
    ours.load_state_dict(foreign_dit.from_foreign(theirs.state_dict(), CFG.depth, ours.state_dict()))
    assert differ(ours, theirs) < 1e-5
    state = theirs.state_dict()
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    with pytest.raises(UserError, match=r"transformer_blocks\.1.*differs"):
        foreign_dit.from_foreign(state, CFG.depth, ours.state_dict())


def test_what_has_no_equal_is_said_all_at_once():
    cfg = CFG.model_copy(update={"qk_norm": True, "condition": "none", "mlp_ratio": 2.0})
    with pytest.raises(UserError, match=r"condition=none.*qk_norm=true.*mlp_ratio=2"):
        foreign_dit.to_config(cfg, SHAPE, classes=0)
