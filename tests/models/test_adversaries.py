"""The baselines and networks of a game: VAE, small StyleGAN, discriminators."""

import math

import pytest
import tiny
import torch
import yaml

from pipeline.config.load import CONFIG_ROOT
from pipeline.config.paths import training_shards
from pipeline.config.schema_model import PatchDiscriminatorConfig, StyleGANConfig, VAEConfig
from pipeline.data.shards import read_manifest
from pipeline.models.build import build_network, count_parameters
from pipeline.models.discriminator import EqualizedConvolution, PatchDiscriminator, StyleDiscriminator, group_deviation
from pipeline.models.layers import downsample, smoothed, upsample
from pipeline.models.stylegan import ModulatedConvolution
from pipeline.objectives.adversarial import Adversarial
from pipeline.runtime.errors import UserError

SHAPE = (3, 16, 16)
STYLEGAN = StyleGANConfig(kind="stylegan", condition="class", width=8, width_max=16, latent=12, mapping_layers=2)


def unreached(network) -> list[str]:
    return [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


@pytest.mark.parametrize("condition", ["none", "class", "attributes"])
def test_a_vae_encodes_to_a_vector_and_back_and_all_of_it_learns(condition):
    torch.manual_seed(0)
    cfg = VAEConfig(kind="vae", condition=condition, width=8, multipliers=(1, 2), latent=6)
    network = build_network(cfg, shape=SHAPE, classes=3, attributes=2)
    given = {
        "none": None,
        "class": torch.tensor([0, 1, 2, 3]),
        "attributes": torch.tensor([[0, 1], [1, 0], [-1, -1], [0, 0]]),
    }
    reconstructed, posterior, _ = network(torch.randn(4, *SHAPE), torch.randn(4, 6), given[condition])
    assert reconstructed.shape == (4, *SHAPE) and posterior.mean.shape == posterior.std.shape == (4, 6)
    (reconstructed.square().mean() + posterior.kl().mean()).backward()
    assert unreached(network) == []


def test_styles_modulate_as_scaled_weights_would():
    """Scaling inputs and outputs equals a convolution with each image's own demodulated weights (equation 1 and 3)."""
    torch.manual_seed(0)
    layer = ModulatedConvolution(4, 6, size=3, latent=5)
    x, w = torch.randn(3, 4, 8, 8), torch.randn(3, 5)
    for image in range(3):
        weight = layer.weight * layer.scale * layer.style(w)[image, None, :, None, None]
        weight = weight / torch.sqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        own = torch.nn.functional.conv2d(x[image : image + 1], weight, padding=1)
        assert torch.allclose(layer(x, w)[image : image + 1], own, atol=1e-5)


@pytest.mark.parametrize("filtered", [False, True])
def test_a_generated_image_belongs_to_its_number_and_all_of_the_generator_learns(filtered):
    torch.manual_seed(0)
    generator = build_network(STYLEGAN.model_copy(update={"filtered": filtered}), shape=SHAPE, classes=3)
    for layer in (generator.first, *generator.layers):
        torch.nn.init.constant_(layer.strength, 0.3)
    z, labels, sample_indices = torch.randn(4, 12), torch.tensor([0, 1, 2, 3]), torch.arange(20, 24)
    images = generator(z, labels, sample_indices=sample_indices)
    assert images.shape == (4, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(generator(z[2:], labels[2:], sample_indices=sample_indices[2:]), images[2:], atol=1e-5)
        assert not torch.allclose(generator(z, labels, sample_indices=sample_indices + 1), images, atol=1e-3)
        assert not torch.allclose(generator(z, labels.flip(0), sample_indices=sample_indices), images, atol=1e-3)
    images.square().mean().backward()
    assert unreached(generator) == []


def test_deviation_of_a_group_is_one_number_and_ignores_other_groups():
    torch.manual_seed(0)
    features = torch.randn(8, 5, 2, 2)
    out = group_deviation(features, torch.arange(16, 24), group=4)
    expected = features[4:].std(dim=0, unbiased=False).mean().item()
    assert out.shape == (8, 1, 2, 2)
    assert out[4:].flatten().tolist() == pytest.approx([expected] * 16, rel=1e-5)
    assert torch.equal(group_deviation(features[4:], torch.arange(20, 24), group=4), out[4:])
    same = group_deviation(features[:1].expand(4, -1, -1, -1), None, group=4)
    assert same.max() < 2e-4  # the root of the 1e-8 that keeps its gradient finite


def test_scores_do_not_depend_on_how_a_batch_is_divided():
    torch.manual_seed(0)
    discriminator = StyleDiscriminator(STYLEGAN, SHAPE, classes=3)
    images, labels, sample_indices = torch.randn(8, *SHAPE), torch.arange(8) % 4, torch.arange(8)
    scores = discriminator(images, labels, sample_indices=sample_indices)
    halves = [discriminator(images[s], labels[s], sample_indices=sample_indices[s]) for s in (slice(0, 4), slice(4, 8))]
    assert scores.shape == (8,) and torch.allclose(torch.cat(halves), scores, atol=1e-5)
    with pytest.raises(ValueError, match="cut through groups of 4"):
        discriminator(images[2:6], labels[2:6], sample_indices=sample_indices[2:6])
    with pytest.raises(ValueError, match="does not divide"):
        discriminator(images[:3], labels[:3], sample_indices=sample_indices[:3])
    scores.square().mean().backward()
    assert unreached(discriminator) == []


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_patch_score_sees_the_published_field(layers, field):
    """Isola et al. 2017, appendix 6.1.2: 16, 34 and 70 pixels."""
    size = 128
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(width=4, layers=layers), 3).double()
    discriminator.layers = torch.nn.Sequential(
        *(m for m in discriminator.layers if not isinstance(m, torch.nn.GroupNorm))
    )
    images = torch.randn(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    scores = discriminator(images)
    middle = scores.shape[2] // 2
    (gradient,) = torch.autograd.grad(scores[0, 0, middle, middle], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows.max() - rows.min() + 1).item() == field


def test_patch_scores_belong_to_their_image():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(width=8, layers=2), 3)
    images = torch.randn(4, *SHAPE)
    scores = discriminator(images)
    assert scores.shape[:2] == (4, 1)
    assert torch.allclose(discriminator(images[1:2]), scores[1:2], atol=1e-6)
    scores.square().mean().backward()
    assert unreached(discriminator) == []


def test_styles_have_no_scale():
    """z is normalised first, so only its direction matters."""
    torch.manual_seed(0)
    generator = build_network(STYLEGAN.model_copy(update={"condition": "none"}), shape=SHAPE)
    z = torch.randn(3, 12)
    assert torch.allclose(generator.styles(z), generator.styles(math.pi * z), atol=1e-5)


def test_the_noise_of_the_layers_belongs_to_the_seed(tmp_path):
    def images(seed):
        cfg = tiny.revalidated(tiny.config(tmp_path, model=tiny.GAME), seed=seed)
        torch.manual_seed(0)
        generator = Adversarial(cfg, manifest).networks["generator"]
        for layer in (generator.first, *generator.layers):
            torch.nn.init.constant_(layer.strength, 1.0)
        return generator(torch.ones(1, 8), torch.tensor([0]), sample_indices=torch.tensor([5]))

    cfg = tiny.config(tmp_path, model=tiny.GAME)
    tiny.prepare(cfg)
    manifest = read_manifest(training_shards(cfg) / "train")
    assert torch.equal(images(1), images(1))
    assert not torch.allclose(images(1), images(2), atol=1e-3)


def test_a_discriminator_is_one_graph_to_the_compiler():
    torch.manual_seed(0)
    discriminator = StyleDiscriminator(STYLEGAN, SHAPE, classes=3)
    images, labels, sample_indices = torch.randn(4, *SHAPE), torch.arange(4), torch.arange(4)
    captured = torch.compile(discriminator, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(
            captured(images, labels, sample_indices=sample_indices),
            discriminator(images, labels, sample_indices=sample_indices),
        )


def test_a_penalty_of_gradients_is_refused_under_the_compiler(tmp_path):
    cfg = tiny.config(tmp_path, model=tiny.GAME)
    with pytest.raises(UserError, match=r"train.compile: found true with adversarial.r1_gamma=1[\s\S]*path_length=2"):
        tiny.revalidated(cfg, train={"compile": True})


def test_networks_of_the_bedrooms_report_have_its_numbers_of_parameters():
    """The report's generator and discriminator (docs/gan.md), at 64 px, in colour."""
    values = yaml.safe_load((CONFIG_ROOT / "model" / "stylegan2_64.yaml").read_text())
    cfg = StyleGANConfig.model_validate(values)
    with torch.device("meta"):
        generator, discriminator = build_network(cfg, shape=(3, 64, 64)), StyleDiscriminator(cfg, (3, 64, 64))
    assert count_parameters(generator) == 22_243_608
    assert count_parameters(discriminator) == 23_407_361


def test_scaled_weights_keep_the_size_of_what_passes():
    torch.manual_seed(0)
    layer = EqualizedConvolution(64, 64, size=3)
    out = torch.nn.functional.leaky_relu(layer(torch.randn(8, 64, 16, 16)), 0.2)[:, :, 1:-1, 1:-1]
    assert layer.weight.std().item() == pytest.approx(1, rel=0.02)
    assert out.square().mean().item() == pytest.approx(1, rel=0.05)
    discriminator = StyleDiscriminator(
        STYLEGAN.model_copy(update={"equalized": True, "filtered": True}), SHAPE, classes=3
    )
    discriminator(torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 3])).sum().backward()
    assert unreached(discriminator) == []


def test_smoothing_makes_changes_of_size_those_of_the_paper():
    """Bilinear where maps grow, and its weights of four pixels where they shrink; zeros lie beyond the edge."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    doubled = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    assert torch.allclose(smoothed(upsample(x))[..., 1:-1, 1:-1], doubled[..., 1:-1, 1:-1], atol=1e-6)
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    halved = torch.nn.functional.conv2d(x, torch.outer(taps, taps).expand(3, 1, 4, 4), stride=2, padding=1, groups=3)
    assert torch.allclose(downsample(smoothed(x)), halved, atol=1e-6)


def test_layers_may_have_styles_of_their_own():
    torch.manual_seed(0)
    generator = build_network(STYLEGAN.model_copy(update={"condition": "none"}), shape=SHAPE)
    z, other = torch.randn(2, 3, 12)
    w, none = generator.styles(z), generator.layer_count
    each = w[:, None].expand(-1, none, -1)
    assert torch.equal(generator.synthesis(each), generator(z))
    assert torch.equal(generator(z, mixed=(other, torch.full((3,), none))), generator(z))
    assert torch.equal(generator(z, mixed=(other, torch.zeros(3, dtype=torch.long))), generator(other))
    mixed = generator(z, mixed=(other, torch.tensor([1, 3, none - 1])))
    assert not torch.allclose(mixed, generator(z), atol=1e-3)
    # The image of two styles has the first where the second begins later than its last layer.
    assert torch.equal(generator.layers[-1].conv.style(w), generator.layers[-1].conv.style(each[:, -2]))


def test_truncation_pulls_styles_to_their_average():
    torch.manual_seed(0)
    generator = build_network(STYLEGAN.model_copy(update={"condition": "none"}), shape=SHAPE)
    generator.w_average.normal_()
    z = torch.randn(3, 12)
    middle = generator.synthesis(generator.w_average[None])
    assert torch.equal(generator(z, psi=1.0), generator(z))
    assert torch.allclose(generator(z, psi=0.0), middle.expand(3, -1, -1, -1), atol=1e-5)
    half = generator.synthesis((generator.styles(z) + generator.w_average) / 2)
    assert torch.allclose(generator(z, psi=0.5), half, atol=1e-5)
