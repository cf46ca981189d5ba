"""Autoencoders and the VAE as objectives: when the discriminator joins, what is learned, what is refused."""

import shutil

import pytest
import tiny
import torch

from pipeline import checkpoint
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.batches import batches, validation_batches
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.metrics.reconstruction import psnr
from pipeline.objectives.build import build_objective
from pipeline.objectives.perceptual import shrunk
from pipeline.runtime.errors import Incomplete, UserError

BOTTLENECK = {"kind": "bottleneck_autoencoder", "width": 8, "multipliers": [1, 2], "latent_channels": 4, "groups": 4}


def changed(cfg: Config, **autoencoder) -> Config:
    return tiny.revalidated(cfg, autoencoder=autoencoder)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    cfg = tiny.config(tmp_path_factory.mktemp("squares"))
    tiny.prepare(cfg)
    return Reader(open_shards(data_directory(cfg) / "shards" / "train"))


def built(cfg, reader):
    torch.manual_seed(0)
    return build_objective(cfg, reader.manifest)


def batch_at(reader, step, *, size=8, precision=torch.float32):
    kwargs = {"seed": 7, "global_batch": size, "rank": 0, "world_size": 1, "micro_batch": size}
    return next(iter(batches(reader, start_step=step, **kwargs)))[0].to("cpu", precision)


def test_the_discriminator_joins_at_its_start_image_by_image(tmp_path, reader):
    objective = built(tiny.config(tmp_path, model=tiny.AUTOENCODER), reader)  # it begins with sample index 20
    assert objective.trained == ("autoencoder", "discriminator") and objective.ema_networks == ("autoencoder",)
    for step, playing in ((1, 0), (2, 4), (3, 8)):
        batch = batch_at(reader, step)
        values = objective.loss("autoencoder", objective.networks, batch)
        judged = objective.loss("discriminator", objective.networks, batch)
        assert (values["game_weight"] > 0).sum() == playing
        assert (judged["loss"] > 0).sum() == playing
        parts = values["l1"] + 1e-6 * values["kl"] + values["game_weight"] * values["game"]
        assert torch.allclose(values["loss"], parts)


def test_before_it_joins_the_discriminator_does_not_learn(tmp_path, reader):
    objective = built(tiny.config(tmp_path, model=tiny.AUTOENCODER), reader)
    objective.loss("discriminator", objective.networks, batch_at(reader, 0))["loss"].mean().backward()
    assert {float(p.grad.abs().max()) for p in objective.networks["discriminator"].parameters()} == {0.0}


def test_a_discriminator_that_joins_late_begins_as_one_that_trains_from_the_start(tmp_path):
    """Adam's first step is at most the learning rate, and nothing decays before: its averages begin with the game."""
    optim = {"kind": "adamw", "lr": 3e-3, "betas": [0.9, 0.999], "weight_decay": 0.5, "clip": None}
    often = {"optim": optim, "duration": "7 steps", "checkpoint_every": "1 steps", "keep_last": 9}
    cfg = tiny.config(tmp_path, model=tiny.AUTOENCODER, **often)
    cfg = changed(cfg, adversarial_start="6 steps")
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    first, before, after = (
        checkpoint.read(run.checkpoint(step)).tensors["network.discriminator"] for step in (0, 6, 7)
    )
    assert all(torch.equal(first[name], before[name]) for name in first)
    decayed = {name: value * (1 - 3e-3 * 0.5) for name, value in before.items()}
    largest = max(float((after[name] - decayed[name]).abs().max()) for name in after)
    assert largest == pytest.approx(3e-3, rel=0.01)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU: none found")
def test_compiled_networks_learn_the_same(tmp_path):
    """Also where the adaptive weight asks for gradients through the compiled discriminator before the step does."""
    steps = {"duration": "4 steps", "checkpoint_every": "4 steps"}
    plain, compiled = (
        tiny.config(tmp_path, name=f"compile-{on}", model=tiny.AUTOENCODER, compile=on, **steps) for on in (False, True)
    )
    tiny.prepare(plain)
    histories = [
        [row for row in tiny.history(tiny.run(cfg)) if "discriminator/loss" in row] for cfg in (plain, compiled)
    ]
    assert [row["step"] for row in histories[0]] == [2, 4]
    for network in ("autoencoder", "discriminator"):
        expected, found = ([row[f"{network}/loss"] for row in rows] for rows in histories)
        assert found == pytest.approx(expected, rel=1e-3)


def test_a_loss_belongs_to_its_sample_index(tmp_path, reader):
    objective = built(tiny.config(tmp_path, model=tiny.AUTOENCODER), reader)
    whole = objective.loss("autoencoder", objective.networks, batch_at(reader, 4, precision=torch.float32))
    parts = [
        objective.loss("autoencoder", objective.networks, batch_at(reader, 2 * 4 + k, size=4))["loss"] for k in (0, 1)
    ]
    assert torch.allclose(torch.cat(parts), whole["loss"], rtol=1e-4)


@pytest.mark.parametrize("model", [tiny.AUTOENCODER, BOTTLENECK, tiny.VAE], ids=lambda m: m["kind"])
def test_a_handful_of_images_is_learned_by_heart(tmp_path, reader, model):
    clean = {"reconstruction": "l2", "kl_weight": 1e-4, "adversarial_weight": 0.0, "degradation": {}}
    objective = built(changed(tiny.config(tmp_path, model=model), **clean), reader)
    optimiser = torch.optim.Adam(objective.networks["autoencoder"].parameters(), lr=1e-2)
    one = batch_at(reader, 0)
    for _ in range(100):
        loss = objective.loss("autoencoder", objective.networks, one)["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found = objective.validate(objective.networks, one)
    known = psnr(one.images.mean(dim=0, keepdim=True).expand_as(one.images), one.images).mean()
    assert found["psnr" if "psnr" in found else "mean_psnr"].mean() > known + 3  # dB above what they have in common


def test_a_bottleneck_that_saw_degraded_images_repairs_others(tmp_path, reader):
    """Nearer to the originals, of held-out images, than what it was given."""
    spoiling = {"noise": 0.6, "mask": 0.3}
    settings = {"reconstruction": "l2", "adversarial_weight": 0.0, "degradation": spoiling}
    objective = built(changed(tiny.config(tmp_path, model={**BOTTLENECK, "width": 16}), **settings), reader)
    network = objective.networks["autoencoder"]
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(200):
        loss = objective.loss("autoencoder", objective.networks, batch_at(reader, step, size=24))["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    valid = Reader(open_shards(reader.path.parent / "valid"))
    (batch,) = validation_batches(valid, count=valid.count)
    with torch.no_grad():
        clean, given, made = objective.reconstructions(objective.networks, batch.to("cpu"))
    before, after = (psnr(images, clean).mean().item() for images in (given, made))
    assert after > before + 2  # dB


def test_a_vae_is_trained_on_its_elbo_and_samples_by_seed_and_class(tmp_path, reader):
    cfg = changed(tiny.config(tmp_path, model=tiny.VAE), reconstruction="l2", kl_weight=0.3)
    objective = built(cfg, reader)
    values = objective.loss("autoencoder", objective.networks, batch_at(reader, 1))
    assert torch.allclose(values["loss"], values["l2"] + 0.3 * values["kl"])
    seeds, labels = torch.arange(6), torch.arange(6) % 3
    with torch.no_grad():
        objective.networks["autoencoder"].eval()
        images = objective.generate(objective.networks, seeds, labels, sampler=cfg.sample.sampler)
        part = objective.generate(objective.networks, seeds[2:4], labels[2:4], sampler=cfg.sample.sampler)
        other = objective.generate(objective.networks, seeds, (labels + 1) % 3, sampler=cfg.sample.sampler)
    assert images.shape == (6, 1, 8, 8)
    assert torch.allclose(part, images[2:4], atol=1e-6) and not torch.allclose(other, images, atol=1e-4)


def test_an_autoencoder_does_not_sample(tmp_path, reader):
    objective = built(tiny.config(tmp_path, model=tiny.AUTOENCODER), reader)
    with pytest.raises(UserError, match="mudi reconstruct"):
        objective.generate(objective.networks, torch.arange(2), torch.arange(2), sampler=None)


def refusal(tmp_path, model=tiny.AUTOENCODER, **autoencoder) -> str:
    with pytest.raises(UserError) as caught:
        changed(tiny.config(tmp_path, model=model), **autoencoder)
    return str(caught.value)


def test_what_cannot_be_trained_is_said_at_once(tmp_path):
    late = refusal(tmp_path, adversarial_weight=0.5, adversarial_start="12 steps", discriminator={"layers": 1})
    assert "autoencoder.adversarial_start: found '12 steps'" in late and "never join" in late
    small = refusal(tmp_path, discriminator={"layers": 3})
    assert "discriminator.layers: found 3" in small and "Use at most 1" in small
    assert "autoencoder.perceptual.heads: set" in refusal(tmp_path, perceptual={"heads": "x.pth"})
    assert "autoencoder.perceptual.sha256: set" in refusal(tmp_path, perceptual={"sha256": "0"})
    assert "come to nothing" in refusal(tmp_path, perceptual={"weights": "x.npz"})
    assert "model.kind=vae" in refusal(tmp_path, tiny.VAE, adversarial_weight=1.0)


def test_a_late_start_in_epochs_is_found_when_the_data_is_known(tmp_path, reader):
    settings = {"adversarial_weight": 0.5, "adversarial_start": "2 epochs", "discriminator": {"layers": 1}}
    cfg = changed(tiny.config(tmp_path, model=tiny.AUTOENCODER), **settings)  # 12 steps of 8 are 1.6 epochs of 60
    with pytest.raises(UserError, match="never join"):
        build_objective(cfg, reader.manifest)


def test_without_weights_the_datas_own_classifier_is_asked_for(tmp_path):
    cfg = changed(tiny.config(tmp_path, model=tiny.AUTOENCODER), perceptual={"weight": 1.0})
    tiny.prepare(cfg)
    with pytest.raises(Incomplete, match="mudi prepare reference"):
        build_objective(cfg, open_shards(data_directory(cfg) / "shards" / "train").manifest)


@pytest.mark.parametrize("size", [(64, 64), (100, 48), (33, 96)])
def test_images_are_shrunk_as_by_adaptive_pooling(size):
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = torch.nn.functional.adaptive_avg_pool2d(images, 32)
    torch.testing.assert_close(shrunk(images, 32), expected, rtol=1e-12, atol=1e-12)
