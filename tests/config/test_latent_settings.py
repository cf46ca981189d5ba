"""Settings of a model of latents: sizes are the latents', and what cannot be is said before anything is queued."""

import json

import pytest

from pipeline.config.autoencoder import missing_autoencoder
from pipeline.config.load import autoencoder_config, config_from, to_yaml
from pipeline.config.paths import data_directory, latents_directory, sample_set_name, training_shards
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run, overrides_for

OF_LETTERS = ["model=kl_autoencoder_tiny", "sample.sampler.guidance.scale=1", "train.duration=3 kimg"]


def overrides(folder, *more):
    return [
        "experiment=glyphs16",
        f"latents.autoencoder={folder}",
        "diffusion.sigma_data=1",
        "model.attention=[4]",
        *more,
    ]


def of_diffusers(folder, levels=2, channels=1):
    """A folder as diffusers writes it, without weights."""
    folder.mkdir()
    config = {"_class_name": "AutoencoderKL", "in_channels": channels, "latent_channels": 4}
    (folder / "config.json").write_text(json.dumps({**config, "block_out_channels": [8] * levels}))
    return folder


def refused(*given):
    with pytest.raises(UserError) as caught:
        config_from(list(given))
    return str(caught.value)


def test_the_autoencoders_own_config_follows_from_the_experiment(tmp_path):
    said = [f"{k}={v}" for k, v in (("latents.experiment", "glyphs16"), ("seed", 5), ("data_dir", tmp_path / "d"))]
    chosen = f"latents.overrides={json.dumps(OF_LETTERS)}"
    cfg = config_from(
        overrides(tmp_path / "runs" / "letters_f2", *said, chosen, "data.source.alphabet=AB", "evaluate.domain.width=9")
    )
    made = autoencoder_config(cfg)
    assert (made.name, made.runs_dir, made.seed) == ("letters_f2", tmp_path / "runs", 5)
    assert (made.data, made.data_dir, made.cluster, made.evaluate) == (
        cfg.data,
        cfg.data_dir,
        cfg.cluster,
        cfg.evaluate,
    )
    assert (made.model.kind, made.train.duration, made.latents) == ("kl_autoencoder", "3 kimg", None)


def test_latents_have_a_place_that_depends_on_how_they_are_stored(tmp_path):
    folder = of_diffusers(tmp_path / "vae")
    cfg = config_from(overrides(folder))
    assert latents_directory(cfg).parent == data_directory(cfg) / "latents"
    assert latents_directory(cfg).name.startswith("vae-")
    assert training_shards(cfg) == latents_directory(cfg)
    assert training_shards(config_from(["experiment=glyphs16"])) == data_directory(cfg) / "shards"
    for other in ("latents.dtype=fp32", "train.flip=true", "latents.batch=8"):
        assert latents_directory(config_from(overrides(folder, other))) != latents_directory(cfg)
    for same in ("latents.decode_batch=2", "train.global_batch=64"):
        assert latents_directory(config_from(overrides(folder, same))) == latents_directory(cfg)


def test_tiles_make_another_set_of_samples_of_the_same_run(tmp_path):
    """They see one tile of the latents at a time, so pixels differ; how many images are decoded at once does not."""
    folder = of_diffusers(tmp_path / "vae")
    run = create_run(config_from(overrides(folder, f"runs_dir={tmp_path}/runs")))
    cfg, tiles, few = (
        config_from([str(run.path), *more]) for more in ([], ["latents.tile=8"], ["latents.decode_batch=2"])
    )
    assert sample_set_name(tiles) != sample_set_name(cfg) == sample_set_name(few)
    assert create_run(tiles) == create_run(few) == run
    assert overrides_for(run, tiles) == ["latents.tile=8"] and overrides_for(run, few) == ["latents.decode_batch=2"]


def test_a_network_is_measured_against_the_latents(tmp_path):
    folder = of_diffusers(tmp_path / "vae")
    message = refused(*overrides(folder, "model.attention=[16]"))
    assert "model.attention: found 16" in message and "latents of 16 px images have 8 x 8" in message
    deep = of_diffusers(tmp_path / "deep", levels=4)
    assert "model.multipliers" in (message := refused(*overrides(deep, "model.attention=[]"))) and "2 x 2" in message
    assert config_from(overrides(deep, "model.attention=[2]", "model.multipliers=[1,2]")).model.kind == "unet"


def test_an_image_size_that_f_does_not_divide(tmp_path):
    folder = of_diffusers(tmp_path / "vae", levels=4)
    message = refused(*overrides(folder, "data.image_size=20", "model.multipliers=[1]", "model.attention=[]"))
    assert "data.image_size: found 20" in message and "Use 16 or 24" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.augmentation.hue=0.1", "latents are of images as they are"),
        ("diffusion.sigma_data=0.5", "latents are normalised to a deviation of 1"),
        ("sample.sampler.clip=1", "latents have no bound"),
        ("model=vae", "model.kind=vae is not trained on latents"),
        ("data.channels=3", "takes images of 1"),
    ],
)
def test_what_latents_rule_out(tmp_path, override, said):
    given = overrides(of_diffusers(tmp_path / "vae"), override)
    if override == "model=vae":
        given = [w for w in given if not w.startswith("model.")] + ["sample.sampler.guidance.scale=1"]
    assert said in refused(*given)


def test_an_autoencoder_of_the_wrong_kind(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config_from(["experiment=glyphs16"])))
    assert "is a unet, expected one of kl_autoencoder" in refused(*overrides(tmp_path / "run"))


def test_overrides_of_what_is_given(tmp_path):
    message = refused(*overrides(tmp_path / "run", "latents.experiment=glyphs16", "latents.overrides=['name=other']"))
    assert "latents.overrides: found name=other" in message
    message = refused(*overrides(tmp_path / "run", "latents.experiment=glyphs16", "latents.overrides=['train.sped=1']"))
    assert "latents.experiment=glyphs16" in message and "train.sped" in message


def test_an_autoencoder_that_is_not_there_names_the_command(tmp_path):
    assert "train experiment=NAME" in missing_autoencoder(config_from(overrides(tmp_path / "none")))
    planned = f"latents.overrides={json.dumps(OF_LETTERS)}"
    cfg = config_from(overrides(tmp_path / "none", "latents.experiment=glyphs16", planned))
    assert f"mudi submit {cfg.runs_dir}/glyphs16" in missing_autoencoder(cfg)
    assert missing_autoencoder(config_from(overrides(of_diffusers(tmp_path / "vae")))) is None
    (tmp_path / "empty").mkdir()
    assert "holds no autoencoder" in missing_autoencoder(config_from(overrides(tmp_path / "empty")))


def test_a_run_keeps_its_own_account_of_the_autoencoder(tmp_path):
    """Once trained, the autoencoder's config decides, whatever became of its experiment."""
    cfg = config_from(overrides(of_diffusers(tmp_path / "vae"), "latents.experiment=gone"))
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert config_from([str(tmp_path)]) == cfg
