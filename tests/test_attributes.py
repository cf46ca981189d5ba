"""A model conditioned on attributes draws what it is asked for: chosen ones, those of training images, or nothing."""

import numpy as np
import pytest
import tiny
import torch

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.inference import attributes_for
from pipeline.runtime.errors import UserError
from pipeline.sample import sample


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = {**tiny.UNET, "condition": "attributes"}
    cfg = tiny.config(tmp_path_factory.mktemp("attributes"), model=model, preview_every="6 steps")
    tiny.prepare(cfg, attributes=True)
    return cfg, tiny.run(cfg)


def asking(cfg, attributes, *, scale=1.0, **settings):
    guidance = cfg.sample.sampler.guidance.model_copy(update={"scale": scale})
    sampler = cfg.sample.sampler.model_copy(update={"guidance": guidance})
    changes = {"attributes": attributes, "sampler": sampler, **settings}
    return cfg.model_copy(update={"sample": cfg.sample.model_copy(update=changes)})


def drawn(cfg, run):
    shards = open_shards(sample(cfg, run))
    return shards, Reader(shards).read(np.arange(shards.manifest.count))


def test_a_set_says_what_was_asked_as_a_data_set_does(trained):
    cfg, run = trained
    shards, _ = drawn(asking(cfg, {"Top": 1, "Large": 0}), run)
    assert shards.manifest.attributes == list(tiny.ATTRIBUTES)
    assert shards.attributes.tolist() == [[0, -1, 1]] * 24


def test_training_attributes_are_rows_of_the_data_as_often_as_there(trained):
    cfg, run = trained
    data = open_shards(data_directory(cfg) / "shards" / "train")
    rows = attributes_for(cfg, torch.arange(6000), data).numpy()
    assert {*map(tuple, rows.tolist())} <= {*map(tuple, np.asarray(data.attributes).tolist())}
    assert rows.mean(axis=0) == pytest.approx(np.asarray(data.attributes).mean(axis=0), abs=0.03)
    shards, _ = drawn(cfg, run)
    assert np.array_equal(shards.attributes, rows[:24])


def test_guidance_hides_all_attributes(trained):
    """A guidance of 0 is the unconditional model, which is the one that knows no attribute."""
    cfg, run = trained
    _, unconditional = drawn(asking(cfg, {"Large": 1, "Left": 0, "Top": 1}, scale=0.0), run)
    _, unknown = drawn(asking(cfg, {}), run)
    _, asked = drawn(asking(cfg, {"Large": 1, "Left": 0, "Top": 1}), run)
    assert np.array_equal(unconditional, unknown)
    assert not np.array_equal(asked, unknown)


def test_attributes_that_do_not_exist_or_cannot_be_asked_for(trained):
    cfg, run = trained
    with pytest.raises(UserError, match=r"sample.attributes: found 'Lage', which the data has not. Did you mean 'Lar"):
        sample(asking(cfg, {"Lage": 1}), run)
    overrides = ["data=celeba64_squash", "model=unet_tiny", "name=x", "model.attention=[]"]
    with pytest.raises(UserError, match="Did you mean 'Smiling'"):
        config_from([*overrides, "model.condition=attributes", "sample.attributes={smiling: 1}"])
    with pytest.raises(UserError, match=r"train with model\.condition=attributes"):
        config_from([*overrides, "model.condition=none", "sample.attributes={Smiling: 1}"])
    with pytest.raises(UserError, match=r"sample\.attributes\..*Smiling.*less than or equal to 1"):
        config_from([*overrides, "model.condition=attributes", "sample.attributes={Smiling: 2}"])
    with pytest.raises(UserError, match="the data set has no labels"):
        config_from([*overrides, "model.condition=class"])


def test_a_part_of_the_attributes_needs_a_model_that_has_seen_some_hidden():
    overrides = [
        "data=celeba64_squash",
        "model=unet_tiny",
        "name=x",
        "model.attention=[]",
        "model.condition=attributes",
    ]
    some, none = [*overrides, "sample.attributes={Smiling: 1}"], [*overrides, "sample.attributes={}"]
    with pytest.raises(UserError, match=r"found 1 of 40, so the others are unknown, but diffusion\.attribute_dropout"):
        config_from(some)
    with pytest.raises(UserError, match=r"found 0 of 40, so the others are unknown, but diffusion\.label_dropout is 0"):
        config_from([*none, "diffusion.label_dropout=0"])
    config_from([*some, "diffusion.attribute_dropout=0.1"])
    config_from(none)


def test_a_class_that_known_data_has_not_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"sample.classes: found \[26\], but the data has classes 0 to 25"):
        config_from(["experiment=glyphs16", "sample.classes=[0,26]"])
