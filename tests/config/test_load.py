"""Overrides to a config: what is wrong is said at once, in full, with what was probably meant."""

import shutil

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pipeline.config import load
from pipeline.config.load import CONFIG_ROOT, composed, config_from, groups, run_named, to_yaml
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run

EXPERIMENTS = groups()["experiment"]


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config_from(["experiment=glyphs16", *overrides])
    return str(caught.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_complete(name):
    path = ["data.source.path=/images"] if name.startswith("photos") else []
    assert isinstance(config_from([f"experiment={name}", *path]), Config)


def test_an_override_reaches_its_field():
    cfg = config_from(["experiment=glyphs16", "train.optim.lr=1e-4", "train.global_batch=64", "model.attention=[]"])
    assert (cfg.train.optim.lr, cfg.train.global_batch, cfg.model.attention) == (1e-4, 64, ())


PUT = (
    "model.attention=[8,16]",
    "data.crop={size: 100}",  # a mapping is merged into what is there
    "train.optim={betas: [0.8, 0.9]}",
    "train.optim.lr=1e-4",
    "train.optim.lr=2e-4",  # of two, the later
    "train.duration='3 kimg'",
    "data.source.path='/a=b/it\\'s here'",
    "runs_dir=/runs/${name}",
    "name=a-1.b",
    "model.new.key=null",
    "seed=007",
    "sample.count=1_000",
    "evaluate.domain.enabled=false",
    "train.compile=yes",
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_put_into_a_composed_config_is_what_hydra_would_have_composed(name):
    GlobalHydra.instance().clear()
    overrides = [f"experiment={name}", "cluster=komondor"]
    with initialize_config_dir(config_dir=str(CONFIG_ROOT), version_base="1.3"):
        theirs = compose("config", overrides=[*overrides, *(f"++{override}" for override in PUT)])
    before = OmegaConf.to_container(composed(overrides))
    assert OmegaConf.to_container(composed([*PUT, *overrides])) == OmegaConf.to_container(theirs)
    assert OmegaConf.to_container(composed(overrides)) == before  # nothing of it stays


def test_several_values_are_for_a_sweep():
    assert "mudi sweep" in refused("train.optim.lr=1e-3,2e-3")


def test_a_misspelt_key_names_the_nearest():
    message = refused("train.globl_batch=64")
    assert "train.globl_batch: no such setting. Did you mean 'train.global_batch'?" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr=1", "train.lr: no such setting. Did you mean 'train.optim.lr'?"),
        ("data.path=x", "data.path: no such setting. Did you mean 'data.source.path'?"),
        ("train.kind=sgd", "train.kind: no such setting. Did you mean 'train.optim.kind'?"),
        ("evaluate.weights=x", "Did you mean 'evaluate.clip.weights', 'evaluate.dinov2.weights' or 'evaluate.incep"),
        ("lr=1", "lr: no such setting. Did you mean 'evaluate.domain.lr' or 'train.optim.lr'?"),
        ("evaluate.nope=1", "evaluate.nope: no such setting. Known here: batch, block, clip, "),
    ],
)
def test_a_word_that_stands_deeper_comes_before_one_that_is_spelt_alike(override, said):
    assert said in refused(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.inception.features=768", "evaluate.inception.features: found 768, expected a list: [768]."),
        ("train.trackers=wandb", "train.trackers: found 'wandb', expected a list: [wandb]."),
        ("sample.classes=3", "sample.classes: found 3, expected a list: [3]."),
    ],
)
def test_one_value_in_the_place_of_a_list_is_shown_as_a_list(override, said):
    assert said in refused(override)


def test_a_misspelt_key_that_had_to_be_set_is_one_problem():
    with pytest.raises(UserError) as caught:
        config_from(["experiment=photos16", "data.source.pth=x"])
    assert str(caught.value) == "data.source.pth: no such setting. Did you mean 'data.source.path'?"
    with pytest.raises(UserError, match=r"^2 problems.*\n.*path: missing(.|\n)*globl_batch: no such setting"):
        config_from(["experiment=photos16", "train.globl_batch=3"])


def test_a_key_of_another_kind_is_not_offered():
    message = refused("diffusion.levels={kind: ddpm, sigma_max: 3}")
    assert "diffusion.levels.sigma_max: no such setting" in message
    assert "Did you mean 'sigma_max'" not in message and "timesteps" in message


def test_all_problems_come_together():
    message = refused("train.globl_batch=64", "train.optim.lr=fast", "train.duration=ten epochs", "sample.count=0")
    assert message.startswith("4 problems")
    for place in ("train.globl_batch", "train.optim.lr", "train.duration", "sample.count"):
        assert place in message


def test_a_wrong_type_says_what_was_found():
    assert "found 'many'" in refused("train.global_batch=many")


def test_what_a_config_leaves_open_is_asked_for():
    with pytest.raises(UserError, match=r"data.source.path: missing. Set data.source.path=..."):
        config_from(["experiment=photos16"])


def test_a_kind_that_is_left_open_is_asked_for():
    with pytest.raises(UserError, match=r"model\.kind: missing, expected one of simple_unet, additive_unet, unet, dit"):
        config_from(["data=glyphs16", "name=open", "model.width=32"])


def test_an_unknown_choice_names_the_nearest():
    lists = "`mudi list experiments` lists all."
    with pytest.raises(UserError, match=f"^experiment: found 'glyph16'. Did you mean 'glyphs16'\\? {lists}$"):
        config_from(["experiment=glyph16"])
    with pytest.raises(UserError, match=f"^experiment: found 'mine', which is none. {lists}$"):
        config_from(["experiment=mine"])
    with pytest.raises(
        UserError, match=r"^data: found 'glyph16'. Did you mean 'glyphs16'\? Expected one of celeba128, "
    ):
        config_from(["data=glyph16", "model=unet_tiny", "name=x"])
    with pytest.raises(UserError, match=r"neither a run directory .* Did you mean experiment=glyphs16\?"):
        config_from(["glyphs16"])


def test_what_is_no_override():
    assert "'--fast' is not key=value" in refused("--fast")


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="neither a run directory"):
        config_from([str(tmp_path)])


def test_a_batch_that_does_not_divide_lists_what_would():
    assert "Divisors: 1, 2, 4" in refused("train.micro_batch=24")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.ema.power_widths=[0.5]", r"power_widths\.0: found 0\.5; .*less than or equal to 0\.288"),
        ("train.optim.betas=[0.9,1.5]", r"betas\.1: found 1\.5; .*less than 1"),
        ("train.optim.schedule=inverse_sqrt", r"warmup: found none.*Set a warm-up"),
        ("train.ema.power_widths=[0.05,0.1] sample.weights=power:0.9", r"found 'power:0\.9', expected a relative"),
        ("train.ema.power_widths=[0.05,0.1] sample.weights=power:wide", r"found 'power:wide', expected a relative"),
        ("sample.weights=power:0.1", r"power_widths is empty"),
    ],
)
def test_emas_and_schedules_that_cannot_be(overrides, message):
    with pytest.raises(UserError, match=message):
        config_from(["experiment=glyphs16", "train.optim.warmup=0 kimg", *overrides.split()])


def test_an_early_stop_by_what_nobody_measures_is_refused():
    overrides = ["train.validate_every=1 epochs", "train.early_stop.patience=5 epochs"]
    assert "measured while training is valid/loss or in_loop" in refused(
        *overrides, "train.early_stop.metric=valid/los"
    )
    assert "in_loop/accuracy-domain" in refused(*overrides, "train.early_stop.metric=in_loop/accuracy")


def test_fourier_features_that_could_not_tell_noise_levels_apart_are_refused():
    fourier = ["experiment=glyphs16", "model.embedding=fourier"]
    for overrides in (
        ["diffusion.parametrisation=flow"],
        ["diffusion.parametrisation=eps", "diffusion.levels.kind=ddpm"],
    ):
        with pytest.raises(UserError, match=r"turn 1000 times .* Use embedding_scale=0\.016"):
            config_from([*fourier, *overrides])
        config_from([*fourier, *overrides, "model.embedding_scale=0.016"])
    config_from([*fourier, "model.embedding_scale=16"])  # EDM's


def test_guiding_an_unconditional_model_is_refused():
    plain, overrides = "model.condition=none", ["experiment=glyphs16"]  # which guides
    assert "sample.sampler.guidance.scale: found 1.5" in (said := refused(plain)) and "Set it to 1" in said
    config_from([*overrides, plain, "sample.sampler.guidance.scale=1"])
    ho = [plain, "sample.sampler.guidance.convention=ho"]
    assert "Set it to 0" in refused(*ho)
    config_from([*overrides, *ho, "sample.sampler.guidance.scale=0"])


def test_scientific_notation_that_yaml_takes_for_text_is_a_number():
    assert config_from(["experiment=glyphs16", "train.optim.lr=1e-4"]).train.optim.lr == 1e-4


def test_the_written_config_reads_back_equal(tmp_path):
    cfg = config_from(["experiment=glyphs16", "train.optim.lr=3e-4"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert config_from([str(tmp_path)]) == cfg


def test_an_override_of_a_run_reaches_its_field(tmp_path):
    cfg = config_from(["experiment=glyphs16"])
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert config_from([str(tmp_path), "sample.sampler.guidance.scale=3"]).sample.sampler.guidance.scale == 3


def test_every_experiment_says_what_it_is_and_how_to_run_it():
    for path in (CONFIG_ROOT / "experiment").glob("*.yaml"):
        head = path.read_text().splitlines()
        assert head[0] == "# @package _global_", path
        assert any(line.startswith("# Run:") for line in head), path


@pytest.mark.parametrize(
    ("overrides", "data", "runs"),
    [
        ([], "data", "runs"),
        (["cluster.data_dir=/scratch/data"], "/scratch/data", "runs"),
        (["cluster.data_dir=/scratch/data", "cluster.runs_dir=/kept", "data_dir=mine"], "mine", "/kept"),
    ],
)
def test_a_profile_may_say_where_data_and_runs_stand(overrides, data, runs):
    cfg = config_from(["experiment=celeba64_ldm_f4", "cluster=komondor", *overrides])
    assert (str(cfg.data_dir), str(cfg.runs_dir)) == (data, runs)
    assert cfg.latents is not None and cfg.latents.autoencoder == cfg.runs_dir / "celeba64_kl_f4"


def test_paths_may_hold_equals_signs(tmp_path):
    runs = tmp_path / "lr=1e-4"
    cfg = config_from(["experiment=glyphs16", f"runs_dir={runs}", f"data_dir={tmp_path}/it's=x"])
    assert (cfg.runs_dir, cfg.data_dir) == (runs, tmp_path / "it's=x")
    run = create_run(cfg)
    assert config_from([str(run.path), f"data_dir={tmp_path}/y=z"]).data_dir == tmp_path / "y=z"
    assert run_named([str(run.path)]) == run.path and run_named(["seed=a/b"]) is run_named([]) is None


@pytest.mark.parametrize("asked", ["compare.tasks=2", "prepare.nodes=2", "compare.gpus=2"])
def test_jobs_that_tasks_cannot_share_are_refused_before_anything_is_queued(asked):
    assert f"cluster.{asked.partition('.')[0]}: found 2 tasks" in refused(f"cluster.{asked}")
    assert config_from(["experiment=glyphs16", "cluster.sample.tasks=2", "cluster.evaluate.gpus=2"])


def test_features_of_inception_may_be_written_as_numbers(tmp_path):
    overrides = ["evaluate.inception.features=[64,192,'768',spatial]"]
    cfg = config_from(["experiment=glyphs16", f"runs_dir={tmp_path}", *overrides])
    assert cfg.evaluate.inception.features == ("64", "192", "768", "spatial")
    run = create_run(cfg)
    assert config_from([str(run.path), *overrides]) == cfg
    assert "evaluate.inception.features.0" in refused("evaluate.inception.features=[65]")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("24:00:00", 1440), ("1-00", 1440), ("1-12:30", 2190), ("2-00:00:01", 2881), ("0:30", 1)],
)
def test_time_limits_may_be_written_as_slurm_has_them(text, minutes):
    cfg = config_from(["experiment=glyphs16", f"cluster.train.minutes={text}"])
    assert cfg.cluster.train.minutes == minutes


def test_a_time_limit_that_is_none_is_refused():
    for wrong in ("24h", "1:2:3:4", "-5", "0"):
        with pytest.raises(UserError, match=r"cluster\.train\.minutes"):
            config_from(["experiment=glyphs16", f"cluster.train.minutes={wrong}"])


def test_a_time_that_yaml_takes_for_seconds_is_refused(tmp_path, monkeypatch):
    """`minutes: 24:00:00` is 86400 to YAML."""
    shutil.copytree(load.CONFIG_ROOT, tmp_path / "configs")
    monkeypatch.setattr(load, "CONFIG_ROOT", tmp_path / "configs")
    cluster = tmp_path / "configs" / "cluster" / "mine.yaml"
    for text, good in (("24:00:00", False), ("'24:00:00'", True), ("1-00:00:00", True)):
        cluster.write_text(f"name: mine\nexecutor: slurm\ntrain: {{minutes: {text}}}\n")
        load._composed.cache_clear()
        if good:
            assert config_from(["experiment=glyphs16", "cluster=mine"]).cluster.train.minutes == 1440
        else:
            with pytest.raises(UserError, match=r"mine\.yaml: found minutes: 24:00:00.*Quote it: minutes: '24:00:00'"):
                config_from(["experiment=glyphs16", "cluster=mine"])
    load._composed.cache_clear()
