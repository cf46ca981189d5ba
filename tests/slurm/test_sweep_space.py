"""What a sweep's overrides mean, and that every mistake in them is told before anything is submitted."""

from pathlib import Path

import pytest

from pipeline.config.load import CONFIG_ROOT
from pipeline.runtime.errors import UserError
from slurm.sweep.command import opened
from slurm.sweep.settings import SweepDir, corners, dimension, extended, grid, overrides_of, settings_from, text_of
from slurm.sweep.submit import check

BASE = ("data=glyphs16", "model=unet_tiny", "cluster=local", "name=s")


def test_hydras_grammar_is_read_as_hydra_means_it():
    assert dimension("train.global_batch", "128,256").choices == ("128", "256")
    assert dimension("a", "choice(x, 'two words', [1,2], true)").choices == ("x", '"two words"', "[1, 2]", "true")
    assert dimension("a", "null,1e-3").choices == ("null", "0.001")
    assert dimension("a", "range(1,10,3)").choices == ("1", "4", "7")
    lr = dimension("a", "tag(log, interval(1e-5, 1e-3))")
    assert (lr.low, lr.high, lr.log, lr.integer, lr.finite) == (1e-5, 1e-3, True, False, False)
    assert dimension("a", "int(interval(1, 8))").integer and not dimension("a", "interval(1, 8)").integer
    assert dimension("a", "80 kimg").choices == ('"80 kimg"',)


@pytest.mark.parametrize("grammar", ["interval(1, 0)", "tag(log, interval(0, 1))", "tag(big, interval(0, 1))", "1,,2("])
def test_what_the_grammar_cannot_mean_is_refused_with_the_key(grammar):
    with pytest.raises(UserError, match="train\\.optim\\.lr"):
        dimension("train.optim.lr", grammar)


def test_a_grid_is_the_product_in_order_and_rows_come_before_it():
    a, b = dimension("a", "1,2"), dimension("b", "x,y,z")
    assert [tuple(p.values()) for p in grid([a, b])] == [(i, j) for i in "12" for j in "xyz"]
    rows = [{"c": 3, "d": "80 kimg"}, {"c": 4, "d": None}]
    assert [overrides_of(p) for p in grid([a], rows)] == [
        ("c=3", 'd="80 kimg"', "a=1"),
        ("c=3", 'd="80 kimg"', "a=2"),
        ("c=4", "d=null", "a=1"),
        ("c=4", "d=null", "a=2"),
    ]
    with pytest.raises(UserError, match=r"a: an interval cannot stand in a grid.*range"):
        grid([dimension("a", "interval(0, 1)")])


def test_a_range_without_values_is_refused():
    with pytest.raises(UserError, match="a: found 'range\\(5,5\\)', which has no values"):
        dimension("a", "range(5,5)")


@pytest.mark.parametrize("value", [128, 1e-4, True, None, "cosine", "80 kimg", [8, 16], [], ["a b"], "it's"])
def test_a_value_survives_as_a_text_of_hydra_and_of_yaml(value):
    import yaml

    assert dimension("k", text_of(value)).choices == (text_of(value),)
    assert yaml.safe_load(text_of(value)) in (value, str(value))


def test_overrides_of_the_command_line_replace_those_of_a_file():
    from_file = settings_from(["sweep=guidance", "name=g", "run=runs/x"])
    key = "sample.sampler.guidance.scale"
    assert from_file.space[key] == "0,0.1,0.5,1,2,4" and str(from_file.run) == "runs/x"
    fewer = settings_from(["sweep=guidance", "run=runs/x", f"{key}=1,2", "sweep.metric=fid", "sweep.seeds=3"])
    assert (fewer.space, fewer.metric, fewer.seeds, fewer.name) == ({key: "1,2"}, "fid", 3, "guidance")
    with pytest.raises(UserError, match=r"sweep.space: nothing is varied"):
        settings_from(["sweep=guidance", "run=runs/x", f"{key}=1"])
    with pytest.raises(UserError, match=r"^sweep: found 'guidence'\. Did you mean 'guidance'"):
        settings_from(["sweep=guidence"])


def test_a_sweeps_own_overrides_and_paths_are_read_like_all_others():
    overrides = ["experiment=photos16", "name=2024_01_01", "train.optim.lr=1e-3,1e-2", "sweep.gpu_hours=1e2"]
    found = settings_from(
        [*overrides, "data.source.path=/x/ü (1)#2", "sweep.folder=/a, b", "sweep.columns={train.optim.lr: r}"]
    )
    assert (found.name, found.gpu_hours, str(found.folder)) == ("2024_01_01", 100.0, "/a, b")
    assert found.columns == {"train.optim.lr": "r"} and found.space == {"train.optim.lr": "1e-3,1e-2"}
    assert str(check(found.model_copy(update={"gpu_hours": None})).first.data.source.path) == "/x/ü (1)#2"
    assert settings_from([*overrides, "sweep.name=1e3"]).name == "1e3"
    paths = settings_from(["experiment=photos16", "name=n", "data.source.path=/a,/b"])
    assert paths.space == {"data.source.path": "/a,/b"}


def test_every_problem_of_every_configuration_is_told_at_once():
    overrides = [*BASE, "train.global_batch=8,9", "train.micro_batch=4,null", "model.groups=8,7", "sweep.metric=fid"]
    with pytest.raises(UserError) as found:
        check(settings_from(overrides))
    said = str(found.value)
    assert "train.micro_batch: found 4, expected a divisor of train.global_batch=9" in said
    assert "groups" in said and "evaluate.inception.weights" in said
    assert "train.global_batch=9 train.micro_batch=4 model.groups=8" in said
    with pytest.raises(UserError, match=r"valid/loss needs train\.validate_every"):
        check(settings_from([*BASE, "train.global_batch=8,16", "sweep.pruning.kind=median"]))


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("fd-doman", "Did you mean 'fd-domain'"),
        ("valid/los", "valid/loss"),
        ("fid-clean", "evaluate.inception.weights"),
        ("loss/valid", "valid/loss or in_loop/fd-domain"),
    ],
)
def test_a_metric_that_nothing_measures_is_refused_before_anything_is_submitted(metric, said):
    overrides = [*BASE, "train.global_batch=8,16", "train.validate_every=1 kimg", f"sweep.metric={metric}"]
    with pytest.raises(UserError, match=said):
        check(settings_from(overrides))


def test_the_direction_is_that_of_the_metric():
    directions = {"fd-domain": True, "accuracy-domain": False, "is": False, "valid/loss": True, "copy-rate-pixel": True}
    for metric, minimize in {**directions, "in_loop/accuracy-domain": False, "precision-domain@valid": False}.items():
        assert settings_from([*BASE, "train.global_batch=8,16", f"sweep.metric={metric}"]).minimize == minimize, metric


def test_a_search_is_checked_at_the_ends_of_its_space():
    overrides = [*BASE, "train.optim.lr=interval(-1, 1)", "train.global_batch=8,16", "sweep.trials=5"]
    with pytest.raises(UserError, match=r"train\.optim\.lr=-1"):
        check(settings_from(overrides))
    good = settings_from(
        [*BASE, "train.optim.lr=tag(log, interval(1e-5, 1))", "train.global_batch=8,16", "sweep.trials=5"]
    )
    assert good.strategy.kind == "tpe" and len(corners(good.dimensions)) == 4 and good.size == 5
    assert check(good).first.name == "s" and check(good).groups.popitem()[1] == list(range(5))
    with pytest.raises(UserError, match="cannot vary settings of cluster"):
        check(settings_from([*BASE, "train.optim.lr=interval(1e-4, 1)", "cluster.train.minutes=8,9", "sweep.trials=5"]))


def test_an_existing_sweep_is_seen_from_where_it_was_submitted(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    settings = settings_from([*BASE, "train.global_batch=8,16", "data_dir=data"])
    SweepDir(settings.path).write(settings)
    monkeypatch.chdir(tmp_path)
    assert opened("there/sweeps/s").path == tmp_path / "there" / "sweeps" / "s"
    assert Path.cwd() == tmp_path / "there"  # data_dir=data lies here
    with pytest.raises(UserError, match="is no sweep"):
        opened("there/sweeps/s")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sweep.strategy.kind=tpe", "goes on until told how many"),
        ("sweep.pruning.kind=medan", "medan"),
        ("sweep.metrik=fid", "Did you mean 'sweep.metric'"),
        ("sweep.seeds=0", "seeds"),
        ("sweep.direction=maximize", "of fd-domain the lower value is the better one"),
    ],
)
def test_mistakes_in_the_sweeps_own_settings_are_explained(word, said):
    with pytest.raises(UserError, match=said):
        settings_from([*BASE, "train.global_batch=8,16", word])


def test_extending_adds_values_and_trials_and_nothing_else():
    old = settings_from([*BASE, "train.global_batch=8,16", "train.optim.lr=1e-3,1e-4"])
    more = extended(old, ["train.global_batch=32,8", "sweep.at_once=9"])
    assert (more.space["train.global_batch"], more.at_once) == ("8,16,32", 9)
    assert more.space["train.optim.lr"] == old.space["train.optim.lr"]
    assert more.combinations[:4] == old.combinations  # trials keep their numbers
    assert [p["train.global_batch"] for p in more.combinations[4:]] == ["32", "32"]
    assert extended(more, ["sweep.trials=5"]).combinations == more.combinations[:5]
    for word, said in (("train.flip=true,false", "incomparable"), ("sweep.metric=fid", "cannot be extended")):
        with pytest.raises(UserError, match=said):
            extended(old, [word])


@pytest.mark.parametrize(
    ("name", "trials"),
    [
        ("flowers102_table", 8),
        ("celeba_table", 5),
        ("attention_flowers64", 2),
        ("bayes_embedding_batch_optimizer", 32),
        ("batch_augment_levels_ablation", 8),
    ],
)
def test_the_sweeps_of_configs_are_valid_and_say_what_they_cost(name, trials, monkeypatch, tmp_path):
    monkeypatch.setenv("MUDI_WEIGHTS", str(tmp_path))
    settings = settings_from([f"sweep={name}", "cluster=komondor", "cluster.train.gpus=1"])
    assert settings.size == trials
    check(settings)
    head = (CONFIG_ROOT / "sweep" / f"{name}.yaml").read_text()
    assert "# Run:" in head and "# Cost:" in head and "Estimate, not measured" in head
