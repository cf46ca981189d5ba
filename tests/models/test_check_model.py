"""What is wrong with a network for the images at hand is said before anything starts, all at once, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config.schema_model import (
    DiTConfig,
    KLAutoencoderConfig,
    ModelConfig,
    SimpleUNetConfig,
    StyleGANConfig,
    UNetConfig,
    VAEConfig,
    check_model,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))


def unet(**changes) -> UNetConfig:
    return UNetConfig(kind="unet", **{"width": 32, "multipliers": (1, 2), "attention": (8,), "groups": 8, **changes})


@pytest.mark.parametrize(
    ("cfg", "size", "words"),
    [
        (unet(attention=(16, 5)), 16, ["model.attention: found 5", "[16, 8]", "never occur"]),
        (unet(), 15, ["model.multipliers: found 2 levels", "15 is not a multiple of 2"]),
        (unet(groups=12), 16, ["model.groups: found 12", "32 channels at 16 px", "64 channels at 8 px"]),
        (unet(head_channels=48), 16, ["model.head_channels: found 48", "64 channels at 8 px", "1, 2, 4, 8"]),
        (unet(multipliers=()), 16, ["model.multipliers: found none"]),
        (SimpleUNetConfig(kind="simple_unet", attention=(4,), heads=3), 16, ["model.heads: found 3", "128 channels"]),
        (SimpleUNetConfig(kind="simple_unet", attention=(7,)), 16, ["model.attention: found 7"]),
        (DiTConfig(kind="dit", patch=3), 16, ["model.patch: found 3"]),
        (DiTConfig(kind="dit", width=100, heads=6), 16, ["model.heads: found 6", "model.width=100"]),
        (KLAutoencoderConfig(kind="kl_autoencoder", multipliers=(1, 2, 4)), 18, ["18 is not a multiple of 4"]),
        (KLAutoencoderConfig(kind="kl_autoencoder", width=40), 32, ["model.groups: found 32", "40 channels"]),
        (VAEConfig(kind="vae"), 28, ["28 is not a multiple of 8"]),
        (StyleGANConfig(kind="stylegan"), 48, ["data.image_size: found 48", "stylegan"]),
    ],
)
def test_each_mistake_is_named_with_what_would_be_right(cfg, size, words):
    problems = "\n".join(check_model(cfg, size))
    assert [word for word in words if word not in problems] == []


def test_all_mistakes_come_together():
    assert len(check_model(unet(attention=(5, 6), groups=12), 16)) == 4


def test_heads_matter_only_where_there_is_attention():
    assert check_model(unet(head_channels=64), 16) == []
    assert check_model(unet(head_channels=48, attention=()), 16) == []


def test_a_condition_that_the_data_has_not_is_refused():
    assert "no labels" in check_model(unet(), 16, classes=0)[0]
    assert "has none" in check_model(unet(condition="attributes"), 16, attributes=0)[0]
    assert check_model(unet(condition="attributes"), 16, classes=0, attributes=40) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_named_size_is_right_for_some_images(path):
    cfg = TypeAdapter(ModelConfig).validate_python(yaml.safe_load(path.read_text()))
    assert any(check_model(cfg, size) == [] for size in (16, 32, 64, 128, 256))


def test_a_misspelt_kind_or_key_is_an_error():
    adapter = TypeAdapter(ModelConfig)
    with pytest.raises(ValidationError, match="unett"):
        adapter.validate_python({"kind": "unett"})
    with pytest.raises(ValidationError, match="widht"):
        adapter.validate_python({"kind": "unet", "widht": 3})


def test_the_latent_of_f8_d4():
    cfg = KLAutoencoderConfig(kind="kl_autoencoder", multipliers=(1, 2, 2, 4), latent_channels=4)
    assert cfg.latent_shape((3, 256, 256)) == (4, 32, 32)


def test_checking_needs_no_torch():
    code = "import sys, pipeline.config.schema_model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
