"""A model of latents leaves with its autoencoder, makes the same images in diffusers, and comes back."""

import json

import numpy as np
import pytest
import tiny_latents
import torch

from pipeline.config.paths import data_directory, latents_directory
from pipeline.data.pictures import from_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.diffusers_io.folder import SETTINGS, read
from pipeline.export import export
from pipeline.import_diffusers import import_diffusers
from pipeline.inference import loaded_objective
from pipeline.models.pretrained import load_autoencoder
from pipeline.runtime.errors import UserError
from pipeline.runtime.random import Stream, normal
from pipeline.runtime.run_dir import RunDir, create_run, open_run
from pipeline.train.loop import train

diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    cfg = tiny_latents.prepared(root, steps=60, duration="3 steps")
    sampler = cfg.sample.sampler.model_copy(update={"kind": "euler", "steps": 6})
    cfg = cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"sampler": sampler})})
    run = create_run(cfg)
    assert train(cfg, run) == 0
    return cfg, run


def test_the_exported_folder_gives_the_same_images_in_diffusers(trained, tmp_path):
    cfg, run = trained
    folder, _ = export(cfg, run, to=tmp_path / "out")
    manifest = open_shards(latents_directory(cfg) / "train").manifest
    objective = loaded_objective(cfg, run, manifest, step=3, device=torch.device("cpu"))
    seeds, labels = torch.arange(4), torch.tensor([0, 1, 2, 1])
    ours = objective.generate(objective.networks, seeds, labels, sampler=cfg.sample.sampler)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    noise = normal(cfg.seed, Stream.SAMPLE_START, seeds, shape=(3, 4, 4))
    of_diffusers = pipe(class_labels=labels.tolist(), noise=noise, output_type="pt").images
    assert ours.shape == (4, 1, 8, 8) and ours.std() > 0.1
    assert (ours - of_diffusers).abs().max() < 1e-4
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        own = load_autoencoder(cfg.latents.autoencoder).encode(x)
        assert (vae.encode(x).latent_dist.mean - own.mean).abs().max() < 1e-5


@pytest.mark.parametrize("form", ["diffusers", "safetensors"])
def test_a_folder_comes_back_with_its_autoencoder_and_is_trained_further(trained, tmp_path, form):
    cfg, run = trained
    folder, _ = export(cfg, run, form=form, to=tmp_path / "out")
    back = read(folder)
    own = load_autoencoder(cfg.latents.autoencoder).state_dict()
    assert back.latents is not None and all(torch.equal(back.latents.autoencoder.weights[k], own[k]) for k in own)
    again = cfg.model_copy(update={"name": f"imported-{form}"})
    imported = import_diffusers(folder, again)
    assert train(again, imported) == 0
    settings = json.loads((folder / SETTINGS).read_text())
    settings["latents"]["std"][1] *= 2
    (folder / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"(?s)latents: their std per channel.*another autoencoder's"):
        import_diffusers(folder, cfg.model_copy(update={"name": "other"}))


def test_an_exported_autoencoder_serves_as_the_run_does(trained, tmp_path):
    """As diffusers' folder and as our own; latents by it are those by the run, to the bit."""
    cfg, _ = trained
    run, its = open_run(cfg.latents.autoencoder)
    images = Reader(open_shards(data_directory(cfg) / "shards" / "train")).read(np.arange(8))
    expected = load_autoencoder(run.path).encode(from_uint8(images))
    for form in ("diffusers", "safetensors"):
        folder, _ = export(its, RunDir(run.path), form=form, to=tmp_path / form)
        found = load_autoencoder(folder).encode(from_uint8(images))
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.std, expected.std)
        assert tiny_latents.config(cfg.data_dir.parent, folder).latents is not None
    of_diffusers = diffusers.AutoencoderKL.from_pretrained(tmp_path / "diffusers")
    with torch.no_grad():
        assert (of_diffusers.encode(from_uint8(images)).latent_dist.mean - expected.mean).abs().max() < 1e-5
