"""What is true of every denoising network: counts, zero at the start, rows that do not see each other, gradients."""

import math
import shutil

import pytest
import torch

from pipeline.config.load import config_from
from pipeline.config.schema_model import AdditiveUNetConfig, DiTConfig, SimpleUNetConfig, UNetConfig
from pipeline.models.build import build_network, count_parameters
from pipeline.models.conditioning import FourierFeatures, sinusoid
from pipeline.models.layers import ResidualBlock
from pipeline.models.unet import UNet

SHAPE, CLASSES = (3, 8, 8), 5
UNET = UNetConfig(kind="unet", width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, groups=8)
NETWORKS = {
    "unet": UNET,
    "unet_conv_fourier": UNET.model_copy(
        update={"resample": "conv", "embedding": "fourier", "embedding_width": 7, "scale_shift": False}
    ),
    "unet_class_channels": UNET.model_copy(update={"condition_channels": 4}),
    "unet_concatenated": UNET.model_copy(update={"concat_channels": 6}),
    "simple_unet": SimpleUNetConfig(kind="simple_unet", width=8, multipliers=(1, 2), attention=(4,), heads=2),
    "dit": DiTConfig(kind="dit", width=32, depth=2, heads=2),
}


def random_network(cfg, **changes):
    """A network with every weight random, since many start at zero."""
    cfg = cfg.model_copy(update=changes)
    torch.manual_seed(0)
    network = build_network(cfg, shape=SHAPE, classes=CLASSES, attributes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(batch: int = 4):
    torch.manual_seed(1)
    return torch.randn(batch, *SHAPE), torch.linspace(-1, 1, batch), torch.arange(batch) % CLASSES


every_network = pytest.mark.parametrize("cfg", NETWORKS.values(), ids=NETWORKS)


@pytest.mark.parametrize("name", ["unet", "unet_conv_fourier", "dit"])
def test_a_new_network_returns_exactly_zero(name):
    network = build_network(NETWORKS[name], shape=SHAPE, classes=CLASSES)
    assert network(*inputs()).abs().max() == 0


def test_a_concatenated_embedding_is_constant_channels_beside_the_maps():
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, embedding_width=5, groups=4, concat_channels=3, zero_output=False).double()
    x, embedding = torch.randn(2, 8, 6, 6, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    silu = torch.nn.functional.silu
    hidden = silu(block.norm2(block.conv1(silu(block.norm1(x)))))
    told = block.embed(embedding)[:, :, None, None] * torch.ones(1, 1, 6, 6)
    expected = block.skip(x) + block.conv2(torch.cat([hidden, told], dim=1))
    torch.testing.assert_close(block(x, embedding), expected)


@every_network
def test_images_of_a_batch_do_not_see_each_other(cfg):
    network, (x, noise, labels) = random_network(cfg).eval(), inputs(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        whole = network(x, noise, labels)
        assert torch.allclose(network(x[order], noise[order], labels[order]), whole[order], atol=1e-5)
        assert torch.allclose(network(x[2:3], noise[2:3], labels[2:3]), whole[2:3], atol=1e-5)


@every_network
def test_every_weight_is_reached_by_a_gradient(cfg):
    network, (x, noise, labels) = random_network(cfg), inputs(6)
    labels[-1] = CLASSES  # the row of "no label" learns as the others do
    network(x, noise, labels).square().mean().backward()
    unreached = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unreached == []
    zero = [n for n, p in network.named_parameters() if p.grad.abs().max() == 0]
    # A constant added to the keys changes no softmax; our fused bias holds queries, keys and values together.
    assert zero == []
    assert (network.condition.rows.weight.grad.abs().amax(dim=1) > 0).all()


@every_network
def test_condition_and_noise_level_change_the_output(cfg):
    network, (x, noise, labels) = random_network(cfg).eval(), inputs()
    with torch.no_grad():
        out = network(x, noise, labels)
        for changed in (network(x, noise + 0.5, labels), network(x, noise, (labels + 1) % CLASSES)):
            assert ((changed - out).flatten(1).abs().amax(dim=1) > 1e-4).all()


@every_network
def test_minus_one_and_the_number_of_classes_both_mean_unknown(cfg):
    network, (x, noise, _) = random_network(cfg).eval(), inputs()
    with torch.no_grad():
        assert torch.equal(
            network(x, noise, torch.full((4,), -1)),
            network(x, noise, torch.full((4,), CLASSES)),
        )


@every_network
def test_attributes_may_be_unknown_one_by_one(cfg):
    network, (x, noise, _) = random_network(cfg, condition="attributes").eval(), inputs()
    known = torch.tensor([[0, 1, 1]] * 4, dtype=torch.int8)
    outputs = []
    with torch.no_grad():
        for unknown in ([], [0], [1], [0, 1], [0, 1, 2]):
            values = known.clone()
            values[:, unknown] = -1
            outputs.append(network(x, noise, values))
    for number, first in enumerate(outputs):
        for second in outputs[:number]:
            assert (first - second).abs().max() > 1e-4


@every_network
def test_an_unconditional_network_has_no_condition_and_a_conditional_one_wants_it(cfg):
    x, noise, _ = inputs()
    plain = random_network(cfg, condition="none")
    assert not plain.conditional and plain(x, noise).shape == x.shape
    conditional = random_network(cfg)
    assert conditional.conditional
    with pytest.raises(ValueError, match="without a condition"):
        conditional(x, noise)


@every_network
def test_initialisation_is_a_function_of_the_seed(cfg):
    def weights():
        torch.manual_seed(7)
        return build_network(cfg, shape=SHAPE, classes=CLASSES).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_network
def test_bf16_autocast_stays_finite_and_near_fp32(cfg):
    network, (x, noise, labels) = random_network(cfg), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x, noise, labels)
        loss = out.float().square().mean()
    loss.backward()
    exact = network(x, noise, labels)
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert (out.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_dropout_masks_belong_to_image_numbers(name):
    network, (x, noise, labels) = random_network(NETWORKS[name], dropout=0.5).train(), inputs()
    sample_indices = torch.tensor([10, 11, 12, 13])
    with torch.no_grad():
        whole = network(x, noise, labels, sample_indices=sample_indices)
        halves = [
            network(x[s], noise[s], labels[s], sample_indices=sample_indices[s]) for s in (slice(0, 1), slice(1, 4))
        ]
        assert torch.allclose(torch.cat(halves), whole, atol=1e-5)
        assert not torch.allclose(network(x, noise, labels, sample_indices=sample_indices + 4), whole, atol=1e-3)
        assert torch.equal(network.eval()(x, noise, labels), network(x, noise, labels, sample_indices=sample_indices))
    with pytest.raises(ValueError, match="sample_indices"):
        network.train()(x, noise, labels)


def test_dropout_drops_the_share_it_says_and_keeps_the_mean():
    from pipeline.models.dropout import KeyedDropout

    layer, ones = KeyedDropout(0.3).train(), torch.ones(64, 16, 16)
    out = layer(ones, torch.arange(64))
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / ones.numel()))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)


def without_norms(network: torch.nn.Module) -> None:
    """A norm looks at the whole map: it would hide how far a convolution sees."""
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x, *, silu=False, **_: torch.nn.functional.silu(x) if silu else x


def test_attention_mixes_pixels_that_convolutions_cannot_reach():
    """With attention at the only level, one pixel moves all others; without, only those near it."""
    shape = (1, 32, 32)
    moved = {}
    for attention in ((32,), ()):
        plain = UNET.model_copy(update={"condition": "none", "multipliers": (1,), "attention": attention})
        torch.manual_seed(0)
        network = UNet(plain, shape).eval().double()
        without_norms(network)  # their statistics mix all pixels too
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        x = torch.randn(1, *shape, dtype=torch.float64)
        touched = x.clone()
        touched[..., 0, 0] += 1
        noise = torch.zeros(1, dtype=torch.float64)
        with torch.no_grad():
            moved[attention] = (network(x, noise) - network(touched, noise))[0, 0, -1, -1].abs().item()
    assert moved[()] == 0 and moved[(32,)] > 0


def residual_block_count(inputs: int, outputs: int, embedding: int) -> int:
    skip = inputs * outputs + outputs if inputs != outputs else 0
    norms = 2 * inputs + 2 * outputs
    convolutions = 9 * inputs * outputs + outputs + 9 * outputs * outputs + outputs
    return norms + convolutions + embedding * 2 * outputs + 2 * outputs + skip


def attention_count(channels: int) -> int:
    return 2 * channels + 4 * channels * channels + 4 * channels


def test_the_count_of_parameters_is_the_closed_form():
    width, embedding = 16, 64
    block, attention = residual_block_count, attention_count
    narrow, wide = width, 2 * width
    expected = (
        (width * embedding + embedding) + (embedding * embedding + embedding)  # noise level
        + (CLASSES + 1) * embedding
        + 27 * narrow + narrow  # in
        + block(narrow, narrow, embedding) + block(narrow, narrow, embedding)  # 8 px, and down
        + block(narrow, wide, embedding) + attention(wide)  # 4 px
        + 2 * block(wide, wide, embedding) + attention(wide)  # middle
        + block(wide + wide, wide, embedding) + block(wide + narrow, wide, embedding) + 2 * attention(wide)
        + block(wide, wide, embedding)  # up
        + block(wide + narrow, narrow, embedding) + block(narrow + narrow, narrow, embedding)
        + 2 * narrow + 27 * narrow + 3  # out
    )  # fmt: skip
    assert count_parameters(build_network(UNET, shape=SHAPE, classes=CLASSES)) == expected


def test_published_sizes():
    """ADM for 64 px 296 M (Dhariwal & Nichol 2021, table 4), DDPM for CIFAR-10 35.7 M (Ho et al. 2020), DiT-XL 675."""
    adm = UNetConfig(
        kind="unet", width=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_channels=64
    )
    ddpm = UNetConfig(
        kind="unet", condition="none", width=128, multipliers=(1, 2, 2, 2), attention=(16,), head_channels=256,
        scale_shift=False, resample="conv",
    )  # fmt: skip
    dit = DiTConfig(kind="dit", width=1152, depth=28, heads=16, qk_norm=False)
    with torch.device("meta"):
        assert count_parameters(build_network(adm, shape=(3, 64, 64), classes=1000)) / 1e6 == pytest.approx(
            296, abs=0.5
        )
        assert count_parameters(build_network(ddpm, shape=(3, 32, 32))) / 1e6 == pytest.approx(35.7, abs=0.1)
        assert count_parameters(build_network(dit, shape=(4, 32, 32), classes=1000)) / 1e6 == pytest.approx(675, abs=2)


def test_sinusoids_are_unit_vectors_of_known_angles():
    out = sinusoid(torch.tensor([0.0, 2.5]), 8)
    assert torch.equal(out[0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    angles = 2.5 * torch.tensor([1, 0.1, 0.01, 0.001])
    assert torch.allclose(out[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-6)
    assert sinusoid(torch.tensor([1.0]), 7).shape == (1, 7) and sinusoid(torch.tensor([1.0]), 7)[0, -1] == 0


def test_fourier_features_know_a_gaussian_kernel():
    """E cos(2 pi b (s - t)) = exp(-2 (pi scale (s - t))^2): what the inner product of two embeddings estimates."""
    torch.manual_seed(0)
    features = FourierFeatures(40_000, 1.0)
    one, other = features(torch.tensor([0.3, 0.3 + 0.15]))
    assert (one @ other / 20_000).item() == pytest.approx(math.exp(-2 * (math.pi * 0.15) ** 2), abs=0.02)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_network_is_one_graph_to_the_compiler(name):
    network, (x, noise, labels) = random_network(NETWORKS[name], dropout=0.3).train(), inputs()
    sample_indices = torch.arange(4)
    captured = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(
            captured(x, noise, labels, sample_indices=sample_indices),
            network(x, noise, labels, sample_indices=sample_indices),
        )


@pytest.mark.full
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU: none found")
@every_network
def test_a_compiled_network_computes_the_same(cfg):
    network, (x, noise, labels) = random_network(cfg).eval(), inputs()
    with torch.no_grad():
        assert torch.allclose(torch.compile(network)(x, noise, labels), network(x, noise, labels), atol=1e-5)


@pytest.mark.parametrize(("version", "parameters"), [("1", 28_244_865), ("2", 1_707_009), ("3", 15_476_581)])
def test_the_networks_of_the_letters_report_have_its_parameters(version, parameters):
    """2 and 3 are counts of UNet2DModel of diffusers with 1 and 5 channels in, and 9 rows of 4 for the classes."""
    cfg = config_from([f"experiment=letters32_v{version}", "cluster=local"])
    network = build_network(cfg.model, shape=(1, 32, 32), classes=8)
    assert count_parameters(network) == parameters


def test_the_additive_unet_sees_the_noise_level_where_it_is_given_it():
    for noise_level in (False, True):
        cfg = AdditiveUNetConfig(kind="additive_unet", width=8, multipliers=(1, 2, 4), noise_level=noise_level)
        network, (x, noise, _) = build_network(cfg, shape=SHAPE), inputs()
        with torch.no_grad():
            assert torch.equal(network(x, noise), network(x, noise + 0.5)) is not noise_level
