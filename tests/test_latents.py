"""Training on latents: the noise of the posterior belongs to the sample index, and kills and ranks change nothing."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_latents
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import largest_difference
from test_resume import kill_at_random
from test_sample import pixels

from data_prep import encode
from pipeline.config.paths import data_directory, latents_directory
from pipeline.data.batches import Batch, batches, validation_batches
from pipeline.data.order import images_of
from pipeline.data.pictures import from_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.models.pretrained import load_autoencoder
from pipeline.objectives.build import build_objective
from pipeline.objectives.latent_codec import LatentCodec, codec_of
from pipeline.runtime.errors import UserError
from pipeline.runtime.random import Stream, normal
from pipeline.runtime.run_dir import RunDir, create_run
from pipeline.sample import sample
from pipeline.train.loop import train

DIT = {"kind": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 2}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Squares, an autoencoder that reconstructs them, their latents with mirrored ones."""
    root = tmp_path_factory.mktemp("latents")
    return tiny_latents.prepared(root, steps=150, flip=True)


@pytest.fixture
def place(encoded, tmp_path):
    """The same, to be spoilt."""
    shutil.copytree(encoded.data_dir.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("latent"))
    return tmp_path / "copy"


def like(cfg, **settings):
    """Another experiment on the same latents."""
    return tiny_latents.config(cfg.data_dir.parent, cfg.latents.autoencoder, **{"flip": True, **settings})


def reader_of(cfg, split="train"):
    return Reader(open_shards(latents_directory(cfg) / split))


def step_of_data(cfg, *, rank=0, world_size=1, start=0):
    reader = reader_of(cfg)
    return next(
        batches(
            reader,
            seed=cfg.seed,
            start_step=start,
            global_batch=8,
            rank=rank,
            world_size=world_size,
            micro_batch=8 // world_size,
            flip=True,
        )
    )[0].to("cpu")


def test_a_sample_index_draws_its_own_latent_wherever_it_is_computed(encoded):
    codec = codec_of(encoded, reader_of(encoded).manifest)
    whole = codec.clean(step_of_data(encoded))
    parts = [codec.clean(step_of_data(encoded, rank=r, world_size=2)) for r in range(2)]
    assert torch.equal(torch.cat(parts), whole)
    later = step_of_data(encoded, start=1)
    again = Batch(**{**vars(later), "images": step_of_data(encoded).images})
    assert not torch.equal(codec.clean(again), whole)  # the same image at another sample index
    assert not torch.equal(codec.clean(step_of_data(encoded), draw=1), whole)


def test_a_clean_latent_is_the_normalised_draw_from_the_posterior(encoded):
    codec, batch = codec_of(encoded, reader_of(encoded).manifest), step_of_data(encoded)
    reader = Reader(open_shards(data_directory(encoded) / "shards" / "train"))
    images = reader.read(images_of(batch.sample_indices.numpy(), seed=encoded.seed, size=reader.count))
    network = load_autoencoder(encoded.latents.autoencoder)
    pictures = from_uint8(images)
    with torch.no_grad():
        options = [network.encode(p) for p in (pictures, pictures.flip(-1))]
    noise = normal(encoded.seed, Stream.POSTERIOR, batch.sample_indices, shape=(3, 4, 4))
    mean, std = (v.float()[:, None, None] for v in (codec._mean, codec._std))
    wanted = [(posterior.sample(noise) - mean) / std for posterior in options]
    found = codec.clean(batch)
    errors = torch.stack([(found - w).abs().amax((1, 2, 3)) for w in wanted])
    assert errors.amin(0).max() < 1e-4
    assert set(errors.argmin(0).tolist()) == {0, 1}  # some are mirrored


def test_latents_that_are_trained_on_have_deviation_one(encoded):
    codec, reader = codec_of(encoded, reader_of(encoded).manifest), reader_of(encoded)
    (everything,) = validation_batches(reader, count=reader.count, batch=reader.count)
    plain = torch.from_numpy(reader.read(np.arange(reader.count)))
    both = Batch(
        images=torch.cat(plain.chunk(2, dim=1)),
        labels=everything.labels,
        attributes=None,
        sample_indices=torch.arange(2 * reader.count),
    )
    values = codec.clean(both).transpose(0, 1).flatten(1)
    assert values.mean(1).abs().max() < 0.05 and (values.std(1) - 1).abs().max() < 0.05


def test_decoding_undoes_encoding(encoded):
    """As well as the autoencoder reconstructs images, and not worse for having been stored and normalised."""
    codec = codec_of(encoded, reader_of(encoded).manifest)
    valid = reader_of(encoded, "valid")
    (loaded,) = validation_batches(valid, count=valid.count)
    batch = loaded.to("cpu")
    images = from_uint8(Reader(open_shards(data_directory(encoded) / "shards" / "valid")).read(np.arange(15)))
    plain = Batch(**{**vars(batch), "images": batch.images[:, :6]})
    decoded = codec.images(codec.clean(plain, draw=1))
    network = load_autoencoder(encoded.latents.autoencoder)
    noise = normal(encoded.seed, Stream.POSTERIOR, batch.sample_indices, shape=(3, 4, 4), draw=1)
    with torch.no_grad():
        direct = network.decode(network.encode(images).sample(noise))
    assert (decoded - direct).abs().max() < 1e-4
    assert (decoded - images).square().mean() < 0.2 * images.var()


@pytest.mark.parametrize("settings", [{"decode_batch": 2}, {"tile": 64}], ids=str)
def test_pieces_decode_to_the_same_images(encoded, settings):
    manifest, x = reader_of(encoded).manifest, torch.randn(5, 3, 4, 4)
    whole = LatentCodec(encoded, manifest).images(x)
    assert whole.shape == (5, 1, 8, 8)
    pieces = LatentCodec(like(encoded, latents=settings), manifest).images(x)
    assert (pieces - whole).abs().max() < 1e-5


def test_tiles_blend_larger_latents(encoded):
    manifest, x = reader_of(encoded).manifest, torch.randn(1, 3, 12, 12)
    whole = LatentCodec(encoded, manifest).images(x)
    tiles = LatentCodec(like(encoded, latents={"tile": 8}), manifest).images(x)
    assert tiles.shape == whole.shape == (1, 1, 24, 24)
    assert (tiles - whole).abs().mean() < 0.2 * whole.std()


def test_killed_and_resumed_is_uninterrupted(encoded):
    often = {
        "duration": "48 steps",
        "checkpoint_every": "2 steps",
        "log_every": "4 steps",
        "validate_every": "24 steps",
    }
    whole, cut = like(encoded, name="whole", **often), like(encoded, name="cut", **often)
    expected = tiny.run(whole)
    assert kill_at_random(cut, kills=1) == 1
    found = tiny.run(cut)
    assert tiny.fingerprint(found, 48) == tiny.fingerprint(expected, 48)
    assert tiny.history(found) == tiny.history(expected)


@pytest.mark.parametrize("model", [tiny_latents.DENOISER, DIT], ids=["unet", "dit"])
def test_float64_weights_are_those_of_one_process(encoded, model):
    kind = model["kind"]
    one = like(encoded, name=f"one-{kind}", model=model, precision="fp64")
    several = like(encoded, name=f"several-{kind}", model=model, precision="fp64", micro_batch=2, workers=2)
    # A transformer starts with gradients that vanish, of which Adam magnifies the rounding.
    assert largest_difference(tiny.run(one), tiny.run(several, world_size=2)) < (1e-8 if kind == "dit" else 1e-9)


def test_previews_and_samples_are_images(encoded):
    cfg = like(encoded, name="seen", preview_every="6 steps", duration="6 steps")
    run = create_run(cfg)
    assert train(cfg, run) == 0
    directory = sample(cfg, run)
    images, labels = pixels(directory)
    assert images.shape == (24, 8, 8, 1) and np.bincount(labels).tolist() == [8, 8, 8]
    (picture,) = EventAccumulator(str(run.tensorboard)).Reload().Images("samples")
    assert min(picture.width, picture.height) >= 8 * 8
    shown = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert (shown == shown[..., :1]).all()  # grey as the images are; latents have three channels, and 4 px
    manifest = json.loads((directory / "manifest.json").read_text())
    latents = open_shards(latents_directory(cfg) / "train").manifest
    assert manifest["made_from"]["latents"]["autoencoder"] == latents.made_from["autoencoder"]
    assert manifest["protocol"] == open_shards(data_directory(cfg) / "shards" / "train").manifest.protocol
    assert not [p for p in run.checkpoint(6).iterdir() if "autoencoder" in p.name]
    again = sample(cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"batch": 3})}), RunDir(run.path))
    assert np.array_equal(pixels(again)[0], images)


def another_autoencoder(folder: Path, cfg):
    """One of the same shape and other weights, in the place of the first."""
    shutil.rmtree(cfg.latents.autoencoder)
    tiny_latents.autoencoder(tiny.config(folder), seed=9)


def test_latents_of_another_autoencoder_are_refused(place):
    cfg = tiny_latents.config(place, place / "runs" / "squares_f2", flip=True, duration="3 steps")
    run = create_run(cfg)
    train(cfg, run)
    before = open_shards(latents_directory(cfg) / "train").manifest.made_from["autoencoder"]["sha256"]
    another_autoencoder(place, cfg)
    other = cfg.model_copy(update={"name": "other"})
    for job in (lambda: train(other, create_run(other)), lambda: sample(cfg, run)):
        with pytest.raises(UserError, match=f"(?s)has sha256 .*made by weights with sha256 {before}"):
            job()
    shutil.rmtree(latents_directory(cfg))
    encode.run(cfg, workers=1)
    train(other, create_run(other))  # consistent again, but for the run that knows the first autoencoder
    with pytest.raises(UserError, match=f"trained on latents of the autoencoder with sha256 {before}"):
        sample(cfg, run)


def test_the_same_weights_in_another_network_are_refused(place):
    """Groups of a norm have no weights: the file's hash does not tell."""
    cfg = tiny_latents.config(place, place / "runs" / "squares_f2", flip=True)
    settings = cfg.latents.autoencoder / "config.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("  groups: 4\n", "  groups: 8\n", 1))
    assert settings.read_text() != text
    load_autoencoder(cfg.latents.autoencoder)
    with pytest.raises(UserError, match="settings of its network have changed"):
        codec_of(cfg, reader_of(cfg).manifest)


def test_an_autoencoder_that_changes_while_a_job_runs_does_not_decode(place):
    cfg = tiny_latents.config(place, place / "runs" / "squares_f2", flip=True)
    codec = codec_of(cfg, reader_of(cfg).manifest)
    another_autoencoder(place, cfg)
    with pytest.raises(UserError, match="another autoencoder than when this job began"):
        codec.images(torch.zeros(1, 3, 4, 4))


def test_images_that_changed_since_they_were_encoded(place):
    cfg = tiny_latents.config(place, place / "runs" / "squares_f2", flip=True)
    shutil.rmtree(data_directory(cfg) / "shards")
    tiny.prepare(cfg, count=64)
    with pytest.raises(UserError, match="they have changed since"):
        build_objective(cfg, open_shards(latents_directory(cfg) / "train").manifest)


def test_latents_that_were_not_encoded_name_the_stage(place):
    cfg = tiny_latents.config(place, place / "runs" / "squares_f2", flip=True, latents={"batch": 3})
    with pytest.raises(UserError, match="mudi prepare encode"):
        train(cfg, create_run(cfg))


def test_an_autoencoder_that_went_away(place):
    cfg = tiny_latents.config(place, place / "runs" / "squares_f2", flip=True)
    shutil.rmtree(cfg.latents.autoencoder)
    with pytest.raises(UserError, match=r"latents.autoencoder: found .* which does not exist"):
        build_objective(cfg, open_shards(latents_directory(cfg) / "train").manifest)
