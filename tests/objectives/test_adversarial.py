"""The game's losses, penalties and what moves between steps, each against its formula."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from torch.nn.functional import softplus

from pipeline.config.paths import training_shards
from pipeline.data.batches import Batch
from pipeline.data.shards import read_manifest
from pipeline.objectives.adversarial import STYLE_DECAY, STYLES, Adversarial
from pipeline.runtime.errors import UserError
from pipeline.runtime.random import Stream, normal

PLAIN = {"penalty_every": 1, "path_length": 0.0, "style_mixing": 0.0, "ada": {"enabled": False}}


def config(root, **adversarial):
    return tiny.revalidated(tiny.config(root, model=tiny.GAME, precision="fp64"), adversarial={**PLAIN, **adversarial})


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    root = tmp_path_factory.mktemp("game")
    tiny.prepare(tiny.config(root, model=tiny.GAME))

    def made(**adversarial):
        cfg = config(root, **adversarial)
        torch.manual_seed(0)
        objective = Adversarial(cfg, read_manifest(training_shards(cfg) / "train"))
        for network in objective.networks.values():
            network.double()
        return objective

    return made


def batch(step=0):
    torch.manual_seed(1)
    sample_indices = torch.arange(8 * step, 8 * step + 8)
    images = torch.rand(8, 1, 8, 8, dtype=torch.float64) * 2 - 1
    return Batch(images, torch.arange(8) % 3, None, sample_indices, newest=int(sample_indices[-1]))


def scores(objective, of):
    """The discriminator's scores of real images, or of the generator's."""
    b, networks = batch(), objective.networks
    z = normal(7, Stream.LATENT, b.sample_indices, shape=(8,), dtype=torch.float64)
    images = b.images if of == "real" else networks["generator"](z, b.labels, sample_indices=b.sample_indices)
    return networks["discriminator"](images, b.labels, sample_indices=b.sample_indices)


@pytest.mark.parametrize(
    ("settings", "discriminator", "generator"),
    [
        ({"r1_gamma": 0.0}, lambda r, f: softplus(-r) + softplus(f), lambda f: softplus(-f)),
        ({"r1_gamma": 0.0, "loss": "minimax"}, lambda r, f: softplus(-r) + softplus(f), lambda f: -softplus(f)),
        ({"r1_gamma": 0.0, "loss": "wasserstein", "gradient_penalty": 10.0}, lambda r, f: f - r, lambda f: -f),
    ],
)
def test_losses_are_the_published_ones(game, settings, discriminator, generator):
    objective = game(**settings)
    real, fake = scores(objective, "real"), scores(objective, "fake")
    found = objective.loss("discriminator", objective.networks, batch())
    assert torch.allclose(found["loss"] - found["penalty"], discriminator(real, fake), atol=1e-10)
    assert torch.allclose(objective.loss("generator", objective.networks, batch())["loss"], generator(fake), atol=1e-10)


def test_lazy_penalties_come_at_their_steps_as_large_as_all_of_them(game):
    often, lazy = game(r1_gamma=1.0), game(r1_gamma=1.0, penalty_every=4)
    expected = often.loss("discriminator", often.networks, batch())["penalty"]
    assert expected.min() > 0
    assert torch.allclose(lazy.loss("discriminator", lazy.networks, batch())["penalty"], 4 * expected)
    assert lazy.loss("discriminator", lazy.networks, batch(step=3))["penalty"].abs().max() == 0


class Sloped(torch.nn.Module):
    """Scores whose gradient has a known norm."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, images, condition=None, *, sample_indices=None):
        del condition, sample_indices
        return self.slope * images.flatten(1).sum(1) / math.sqrt(images[0].numel())


@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
def test_the_gradient_penalty_is_of_slopes_other_than_one(game, slope):
    objective = game(loss="wasserstein", r1_gamma=0.0, gradient_penalty=10.0)
    found = objective.loss("discriminator", {**objective.networks, "discriminator": Sloped(slope)}, batch())["penalty"]
    assert torch.allclose(found, torch.full_like(found, 10 * (slope - 1) ** 2), atol=1e-6)
    of_r1 = game(r1_gamma=4.0)
    found = of_r1.loss("discriminator", {**of_r1.networks, "discriminator": Sloped(slope)}, batch())["penalty"]
    assert torch.allclose(found, torch.full_like(found, 2 * slope**2), atol=1e-9)


def test_the_path_length_is_that_of_the_whole_jacobian(game):
    """|J^T y| of equation 4, J computed column by column."""
    objective = game(path_length=2.0, path_every=1)
    b, generator = batch(), objective.networks["generator"]
    found = objective.loss("generator", objective.networks, b)
    z = normal(7, Stream.LATENT, b.sample_indices, shape=(8,), dtype=torch.float64)
    y = normal(7, Stream.PATH, b.sample_indices, shape=(1, 8, 8)).double() / 8
    layers = generator.layer_count
    for image in (0, 5):
        one = slice(image, image + 1)

        def synthesis(w, one=one):
            return generator.synthesis(w, sample_indices=b.sample_indices[one])

        w = generator.styles(z[one], b.labels[one])[:, None].expand(-1, layers, -1)
        jacobian = torch.autograd.functional.jacobian(synthesis, w.detach())[0, 0, :, :, 0]  # [H, W, layers, latent]
        along = torch.einsum("hwlc,hw->lc", jacobian, y[image, 0])
        expected = along.square().sum(1).mean().sqrt()
        assert found["path_length"][image].item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(found["path_penalty"], 2 * found["path_length"].square())  # the mean begins at 0
    sums = {"path_length": found["path_length"].sum()}
    objective.adapt("generator", sums, step=0)
    mean = 0.01 * found["path_length"].mean()
    assert torch.allclose(objective.networks["game"].path_length, mean)
    objective.adapt("generator", {"path_length": torch.tensor(math.nan)}, step=1)  # of a step that was skipped
    assert torch.allclose(objective.networks["game"].path_length, mean)


def test_the_average_style_is_that_of_many_latents(game):
    objective = game()
    generator = objective.networks["generator"]

    def mean(step):
        numbers = torch.arange(step * STYLES, (step + 1) * STYLES)
        z = normal(7, Stream.LATENT, numbers, shape=(8,), draw=1, dtype=torch.float64)
        return generator.styles(z, numbers % 3).mean(0)

    objective.adapt("generator", {}, step=0)
    assert torch.allclose(generator.w_average, mean(0))
    objective.adapt("generator", {}, step=1)
    assert torch.allclose(generator.w_average, torch.lerp(mean(0), mean(1), STYLE_DECAY))


def test_p_follows_the_sign_of_real_scores(game):
    ada = {"enabled": True, "start": 0.5, "target": 0.6, "every": 2, "kimg": 0.16}
    objective = game(ada=ada)
    state = objective.networks["game"]
    for step, sign, expected in ((0, 8, 0.5), (1, 8, 0.6), (2, 8, 0.6), (3, 0, 0.5), (4, math.nan, 0.5), (5, 0, 0.4)):
        objective.adapt("discriminator", {"sign": torch.tensor(float(sign), dtype=torch.float64)}, step=step)
        assert state.probability.item() == pytest.approx(expected), step
    fixed = game(ada={**ada, "target": None})
    fixed.adapt("discriminator", {"sign": torch.tensor(8.0)}, step=1)
    assert fixed.networks["game"].probability == 0.5


@pytest.mark.parametrize("enabled", [False, True])
def test_the_sign_of_real_scores_is_logged_with_ada_and_without(game, enabled):
    """Whether a discriminator is too sure of its real images is seen in runs without ADA too: of the same name."""
    objective = game(ada={"enabled": enabled})
    found = objective.loss("discriminator", objective.networks, batch())
    assert torch.equal(found["sign"], scores(objective, "real").sign())
    assert ("augmented" in found) == enabled


def test_the_discriminator_sees_augmented_images_and_the_generator_learns_through_them(game):
    plain, changed = game(), game(ada={"enabled": True, "start": 1.0})
    of = {
        name: game.loss("discriminator", game.networks, batch())
        for name, game in (("plain", plain), ("changed", changed))
    }
    for part in ("real", "fake"):
        assert not torch.allclose(of["plain"][part], of["changed"][part], atol=1e-4)
    changed.loss("generator", changed.networks, batch())["loss"].mean().backward()
    assert changed.networks["generator"].constant.grad.abs().max() > 0
    unsure = game(ada={"enabled": True, "start": 0.0})
    found = unsure.loss("discriminator", unsure.networks, batch())
    assert torch.equal(found["loss"], of["plain"]["loss"])  # p = 0 changes no bit


def test_a_share_of_images_has_two_styles(game):
    half, none = game(style_mixing=0.5), game()
    b = replace(batch(), sample_indices=torch.arange(8))
    mixed, plain = (o._made(o.networks, b, b.labels) for o in (half, none))
    same = (mixed - plain).abs().amax((1, 2, 3)) < 1e-9
    assert 0 < same.sum() < 8


@pytest.mark.parametrize(
    ("adversarial", "said"),
    [
        ({"loss": "wasserstein", "r1_gamma": 0.0}, "adversarial.gradient_penalty: found 0 with .*wasserstein"),
        ({"loss": "wasserstein", "gradient_penalty": 10.0}, "adversarial.r1_gamma: found 1 with .*wasserstein"),
        ({"gradient_penalty": 10.0}, "adversarial.gradient_penalty: found 10 with adversarial.loss=non_saturating"),
        (
            {"loss": "wasserstein", "r1_gamma": 0.0, "gradient_penalty": 10.0, "ada": {"enabled": True}},
            "adversarial.ada.target: found 0.6 with .*wasserstein",
        ),
        ({"ada": {"enabled": True, "groups": []}}, "adversarial.ada.groups: found none"),
        ({"ada": {"enabled": True, "target": None}}, "adversarial.ada: target is null and start is 0"),
    ],
)
def test_what_does_not_go_together_is_said_before_training(tmp_path, adversarial, said):
    with pytest.raises(UserError, match=said):
        config(tmp_path, **adversarial)


def test_truncation_without_styles_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"sample.sampler.truncation: found 0.7, but model.kind=unet has no styles"):
        tiny.revalidated(tiny.config(tmp_path), sample={"sampler": {"truncation": 0.7}})
