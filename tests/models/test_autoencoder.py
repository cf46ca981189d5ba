"""Autoencoders: equality with diffusers' AutoencoderKL, sizes, posteriors, slices and tiles."""

import math

import pytest
import torch

from pipeline.config.schema_model import BottleneckAutoencoderConfig, KLAutoencoderConfig
from pipeline.diffusers_io.folder import read
from pipeline.diffusers_io.tables import Sizes, from_config, from_weights, to_config, to_weights
from pipeline.models.autoencoder import BottleneckAutoencoder, KLAutoencoder
from pipeline.models.posterior import from_moments
from pipeline.models.pretrained import load_autoencoder
from pipeline.models.tiles import sliced, tiled
from pipeline.runtime.errors import UserError

SHAPE = (3, 32, 32)
SMALL = KLAutoencoderConfig(kind="kl_autoencoder", width=8, multipliers=(1, 2, 2), blocks=1, groups=4)
VARIANTS = {
    "f4d4": {},
    "f8d8": {"multipliers": (1, 1, 2, 2), "latent_channels": 8},
    "f2d3, two blocks, no attention": {
        "multipliers": (1, 2),
        "blocks": 2,
        "latent_channels": 3,
        "attention": False,
    },
}


def random_autoencoder(cfg: KLAutoencoderConfig) -> KLAutoencoder:
    torch.manual_seed(0)
    network = KLAutoencoder(cfg, SHAPE).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("direction", ["export", "import"])
def test_same_weights_encode_and_decode_as_diffusers(variant, direction):
    diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")
    cfg = SMALL.model_copy(update=VARIANTS[variant])
    ours = random_autoencoder(cfg)
    of_diffusers = diffusers.AutoencoderKL.from_config(to_config(cfg, Sizes(SHAPE))).eval()
    if direction == "export":
        of_diffusers.load_state_dict(to_weights(cfg, Sizes(SHAPE), ours.state_dict()))
    else:
        config = {**of_diffusers.config, "_class_name": "AutoencoderKL"}
        assert from_config(config) == (cfg, Sizes(SHAPE))
        ours.load_state_dict(from_weights(cfg, config, of_diffusers.state_dict(), like=ours.state_dict()))
    images = torch.randn(2, *SHAPE)
    with torch.no_grad():
        posterior, expected = ours.encode(images), of_diffusers.encode(images).latent_dist
        decoded, expected_images = ours.decode(posterior.mean), of_diffusers.decode(expected.mean).sample
    assert (posterior.mean - expected.mean).abs().max() < 1e-5
    assert (posterior.std - expected.std).abs().max() < 1e-5
    assert (decoded - expected_images).abs().max() < 1e-5
    assert torch.allclose(posterior.kl().sum((1, 2, 3)), expected.kl(), rtol=1e-4)


@pytest.mark.parametrize("missing", [("use_quant_conv", "use_post_quant_conv"), ("use_quant_conv",)], ids=len)
def test_one_without_convolutions_at_the_latent_is_the_same_too(tmp_path, missing):
    """As those of Stable Diffusion 3 and Flux are: ours has the identity there."""
    diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")
    config = to_config(SMALL, Sizes(SHAPE)) | dict.fromkeys(missing, False) | {"shift_factor": 0.06}
    torch.manual_seed(0)
    of_diffusers = diffusers.AutoencoderKL.from_config(config).eval()
    of_diffusers.save_pretrained(tmp_path)
    ours, images = load_autoencoder(tmp_path), torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = of_diffusers.encode(images).latent_dist
        assert (ours.encode(images).mean - expected.mean).abs().max() < 1e-5
        assert (ours.encode(images).std - expected.std).abs().max() < 1e-5
        assert (ours.decode(expected.mean) - of_diffusers.decode(expected.mean).sample).abs().max() < 1e-5
    read_back = read(tmp_path).weights
    assert all(torch.equal(read_back[name], tensor) for name, tensor in ours.state_dict().items())


def test_an_autoencoder_of_another_make_is_refused_with_its_settings():
    config = to_config(SMALL, Sizes(SHAPE))
    with pytest.raises(UserError, match="act_fn: found gelu, expected silu"):
        from_config({**config, "act_fn": "gelu"})


def test_kl_of_a_posterior_is_the_closed_form_and_zero_for_the_prior():
    prior = from_moments(torch.zeros(1, 2, 3, 3))
    assert prior.kl().abs().max() == 0
    shifted = from_moments(torch.cat([torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), math.log(9.0))], dim=1))
    assert shifted.kl().item() == pytest.approx((4 + 9 - 1) / 2 - math.log(3), rel=1e-6)
    assert shifted.sample(torch.full((1, 1, 1, 1), -1.0)).item() == pytest.approx(2 - 3, rel=1e-6)


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("depth", [3, 4, 8])
def test_the_latent_has_the_size_that_f_and_d_say(levels, depth):
    cfg = SMALL.model_copy(update={"multipliers": (1,) * levels, "latent_channels": depth})
    network = KLAutoencoder(cfg, SHAPE)
    side = 32 // 2 ** (levels - 1)
    reconstructed, posterior, _ = network(torch.randn(2, *SHAPE))
    assert posterior.mean.shape == posterior.std.shape == (2, depth, side, side)
    assert reconstructed.shape == (2, *SHAPE) and network.factor == 32 // side


def test_a_bottleneck_code_is_small_and_without_noise():
    cfg = BottleneckAutoencoderConfig(kind="bottleneck_autoencoder", width=8, latent_channels=5)
    network = BottleneckAutoencoder(cfg, SHAPE)
    reconstructed, posterior, _ = network(torch.randn(2, *SHAPE))
    assert reconstructed.shape == (2, *SHAPE)
    assert math.prod(SHAPE) / posterior.mean[0].numel() == pytest.approx(9.6)
    assert posterior.std.abs().max() == 0


def test_every_weight_of_an_autoencoder_learns():
    for network in (
        random_autoencoder(SMALL),
        BottleneckAutoencoder(BottleneckAutoencoderConfig(kind="bottleneck_autoencoder", width=8), SHAPE),
    ):
        reconstructed, posterior, _ = network(torch.randn(2, *SHAPE), torch.randn(2, network.latent_channels, 8, 8))
        (reconstructed.square().mean() + posterior.mean.square().mean() + posterior.std.mean()).backward()
        assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_slices_equal_the_whole_and_one_tile_equals_the_whole():
    network, latents = random_autoencoder(SMALL), torch.randn(5, 4, 6, 6)
    with torch.no_grad():
        whole = network.decode(latents)
        assert torch.allclose(sliced(network.decode, latents, images=2), whole, atol=1e-5)
        assert torch.equal(tiled(network.decode, latents, tile=8, overlap=2), whole)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13), (16, 5), (5, 31)])
def test_tiles_of_a_pointwise_decoder_blend_to_the_whole(height, width):
    def decode(latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(latents, scale_factor=2.0).tanh()

    latents = torch.randn(2, 3, height, width)
    assert torch.allclose(tiled(decode, latents, tile=6, overlap=2), decode(latents), atol=1e-6)


def test_tiles_must_overlap_by_less_than_their_size():
    with pytest.raises(ValueError, match="overlap: found 8"):
        tiled(lambda z: z, torch.zeros(1, 1, 16, 16), tile=8, overlap=8)
