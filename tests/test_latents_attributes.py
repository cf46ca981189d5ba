"""A model of latents conditioned on attributes: they travel with the latents and show in the decoded samples."""

import numpy as np
import pytest
import tiny
import tiny_latents
from test_attributes import asking, drawn

from data_prep import encode
from pipeline.config.load import validated
from pipeline.config.paths import data_directory, latents_directory
from pipeline.data.shards import open_shards

ALL = {"Large": 0, "Left": 0, "Top": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Squares with attributes, their latents, and a denoiser conditioned on which are large, left and at the top."""
    model = {**tiny.UNET, "condition": "attributes", "width": 16, "attention": []}
    often = {"checkpoint_every": "250 steps", "log_every": "100 steps", "ema": {"half_life": "200 images"}}
    steps = {"duration": "250 steps", "global_batch": 16, **often}
    root = tmp_path_factory.mktemp("latents-attributes")
    plain = tiny.config(root, name="conditioned", model=model, **steps)
    tiny.prepare(plain, attributes=True)
    folder = tiny_latents.autoencoder(plain, steps=150).path
    latents = {"autoencoder": str(folder), "dtype": "fp32", "images_per_shard": 12}
    cfg = validated({**plain.model_dump(mode="json"), "latents": latents, "diffusion": {"sigma_data": 1.0}})
    encode.run(cfg, workers=1)
    return cfg, tiny.run(cfg)


def test_latents_keep_the_attributes_of_their_images(trained):
    cfg, _ = trained
    for split in ("train", "valid"):
        latents, images = (open_shards(d / split) for d in (latents_directory(cfg), data_directory(cfg) / "shards"))
        assert latents.manifest.attributes == list(tiny.ATTRIBUTES)
        assert np.array_equal(latents.attributes, images.attributes)


def test_decoded_samples_show_what_was_asked(trained):
    """Each attribute alone is asked for and denied, with the same seeds: size, and where the bright mass lies."""
    cfg, run = trained
    measures = {
        "Large": lambda images: images.mean(),
        "Left": lambda images: images[:, :, :4].sum() / images.sum(),
        "Top": lambda images: images[:, :4].sum() / images.sum(),
    }
    for name, measure in measures.items():  # images [N, H, W, 1]
        values = []
        for asked in (0, 1):
            shards, images = drawn(asking(cfg, {**ALL, name: asked}), run)
            place = tiny.ATTRIBUTES.index(name)
            assert np.asarray(shards.attributes)[:, place].tolist() == [asked] * 24
            values.append(measure(images.astype(np.float64)))
        assert values[1] > 1.15 * values[0], (name, values)


def test_guidance_hides_all_attributes(trained):
    cfg, run = trained
    _, unconditional = drawn(asking(cfg, {**ALL, "Large": 1}, scale=0.0), run)
    _, unknown = drawn(asking(cfg, {}), run)
    assert np.array_equal(unconditional, unknown)
