"""A network conditioned on how its images were augmented, so that samples show none of it."""

import pytest
import tiny
import torch

from pipeline.config.paths import data_directory
from pipeline.config.schema import AugmentConfig
from pipeline.data.augment import augment, augment_draws, parameters
from pipeline.data.shards import open_shards
from pipeline.inference import loaded_objective
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from pipeline.sample import sample
from pipeline.train import loop

ALL = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.1, "hue": 0.1, "sharpness": 2.0, "rotation": 9, "shift": 0.1}


def test_the_numbers_are_zero_where_nothing_is_done_and_know_their_sample_index_alone():
    drawn = augment_draws(torch.arange(2000), seed=0)
    assert not parameters(drawn, cfg=AugmentConfig(condition=True)).any()
    condition = parameters(drawn, cfg=AugmentConfig(**ALL))
    assert condition.shape == (2000, 8) and condition.abs().max() <= 1 and (condition.std(0) > 0.2).all()
    neutral = torch.full((1, 9), 0.5)
    neutral[0, 1] = 1 / 2.5  # contrast beyond 1: factors from 0 to 2.5, of which 1 changes nothing
    neutral[0, 4] = 0.9  # not among those that are sharpened
    assert torch.allclose(parameters(neutral, cfg=AugmentConfig(**ALL)), torch.zeros(1, 8), atol=1e-6)


def test_the_share_that_is_left_unchanged_is_conditioned_so():
    drawn, images = augment_draws(torch.arange(2000), seed=0), torch.rand(2000, 3, 4, 4) * 2 - 1
    some, every = AugmentConfig(**ALL, share=0.25), AugmentConfig(**ALL)
    changed = (parameters(drawn, cfg=some) != 0).any(1)
    assert 0.2 < changed.float().mean() < 0.3
    expected = torch.where(changed[:, None, None, None], augment(images, drawn, cfg=every), images)
    assert torch.equal(augment(images, drawn, cfg=some), expected)
    assert torch.equal(parameters(drawn, cfg=some)[changed], parameters(drawn, cfg=every)[changed])


def test_it_is_a_condition_in_training_and_samples_are_of_images_as_they_are(tmp_path):
    augmentation = {**ALL, "condition": True}
    cfg = tiny.config(tmp_path, duration="4 steps", augmentation=augmentation, ema={"half_life": "8 images"})
    tiny.prepare(cfg)
    run = create_run(cfg)
    assert loop.train(cfg, run) == 0
    manifest = open_shards(data_directory(cfg) / "shards" / "train").manifest
    network = loaded_objective(cfg, run, manifest, step=4, device=torch.device("cpu")).networks["denoiser"]
    assert network.augmentation.weight.any()  # learned
    x, noise, labels = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    plain = network(x, noise, labels)
    assert torch.equal(network(x, noise, labels, augmented=torch.zeros(2, 8)), plain)
    assert not torch.equal(network(x, noise, labels, augmented=torch.ones(2, 8)), plain)
    assert (sample(cfg, run) / "manifest.json").is_file()


def test_only_a_unet_with_some_augmentation_takes_it(tmp_path):
    with pytest.raises(UserError, match=r"train.augmentation.condition: found true with model.kind=unet and no"):
        tiny.config(tmp_path, augmentation={"condition": True})
    with pytest.raises(UserError, match=r"condition: found true with model.kind=vae and some"):
        tiny.config(tmp_path, model=tiny.VAE, augmentation={"condition": True, "hue": 0.1})
