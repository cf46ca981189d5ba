"""One grammar of overrides: what one means does not depend on what it is said of, a new run or an existing one."""

from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.config.load import config_from
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run, existing_run, overrides_for

PATHS = (
    "/x/ünï", "/x/写真", "a,b", "/x (1)", "x#1", "[x]", "(x)", "{x: 1}", "/a=b", "it's", "a: b", "a b", "100%", "x;y",
    "-x", "@x", "a\\b", "1e3", "null.d", "true", "${", "a'b\"c", "choice(a,b)", "*.tar", "!x", "&x", "|",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_stands(path: str) -> None:
    overrides = ["experiment=photos16", "model.condition=none"]
    if "${" not in path:  # OmegaConf's own
        assert config_from([*overrides, f"data.source.path={path}"]).data.source.path == Path(path)
    for quote in "'\"":
        if quote not in path and "${" not in path and "\\" not in path:
            assert config_from([*overrides, f"data.source.path={quote}{path}{quote}"]).data.source.path == Path(path)


def test_a_path_of_an_empty_variable_is_not_the_current_folder() -> None:
    with pytest.raises(UserError, match=r"data\.source\.path: found nothing after the '='"):
        config_from(["experiment=photos16", "data.source.path="])


def test_the_home_directory_is_meant_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = config_from(["experiment=photos16", "model.condition=none", "data.source.path=~/ünï", "runs_dir=~/runs"])
    assert (cfg.data.source.path, cfg.runs_dir) == (tmp_path / "ünï", tmp_path / "runs")
    with pytest.raises(UserError, match=r"runs_dir: found '~nobody-here/x', but there is no user nobody-here"):
        config_from(["experiment=glyphs16", "runs_dir=~nobody-here/x"])


@pytest.mark.parametrize("name", ["2024_01_01", "123", "1e3", "nan", "1_0", "on", "no", "null", "0x1", "007"])
def test_a_name_that_looks_like_something_else_is_a_name(name: str, tmp_path: Path) -> None:
    cfg = config_from(["experiment=glyphs16", f"name={name}", f"runs_dir={tmp_path}"])
    assert cfg.name == name
    assert config_from([str(create_run(cfg).path), "seed=1"]).name == name


OVERRIDES = {
    "evaluate.domain.lr=1e-4": 1e-4,  # text for YAML
    "sample.sampler.guidance.scale=0x": None,
    "evaluate.domain.enabled=false": False,
    "cluster.options={comment: a b, nice: 1}": {"comment": "a b", "nice": 1},
    "++cluster.options.mail-type=FAIL": {"mail-type": "FAIL"},
    'cluster.setup=["module load ü", "b#2"]': ("module load ü", "b#2"),
    "cluster.setup=['x (1)',b]": ("x (1)", "b"),
    "evaluate.inception.features=[64,192,logits]": ("64", "192", "logits"),
    "sample.classes=[1,2]": (1, 2),
    "sample.sampler.clip=null": None,
    "evaluate.inception.sha256=null": None,
    "cluster.python=module load x; python": "module load x; python",
    "runs_dir=/a b/c,d": Path("/a b/c,d"),
    "cluster.python='null'": "null",
    "+sample.count=7": 7,
    "sample.count=${seed}7": 17,
    "cluster.name=ü": "ü",
}


def found(cfg: Config, override: str) -> object:
    value: object = cfg
    for part in override.partition("=")[0].lstrip("+").removesuffix(".mail-type").split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_means_the_same_for_a_new_run_and_for_an_existing_one(override: str, tmp_path: Path) -> None:
    run = create_run(config_from(["experiment=glyphs16", "seed=1", f"runs_dir={tmp_path}"]))
    if override.endswith("0x"):
        messages = []
        for first in ("experiment=glyphs16", str(run.path)):
            with pytest.raises(UserError, match=r"scale: found '0x'; input should be a valid number") as caught:
                config_from([first, override])
            messages.append(str(caught.value))
        assert len(set(messages)) == 1
        return
    new, changed = config_from(["experiment=glyphs16", "seed=1", override]), config_from([str(run.path), override])
    assert found(new, override) == found(changed, override) == OVERRIDES[override]


@pytest.mark.parametrize("override", ["cluster.setup=[x (1),ü]", "data.source.scales={a", 'model.attention=["a]'])
def test_what_cannot_be_read_is_quoted_with_how_to_write_it(override: str, tmp_path: Path) -> None:
    run = create_run(config_from(["experiment=glyphs16", f"runs_dir={tmp_path}"]))
    key, _, text = override.partition("=")
    for first in ("experiment=glyphs16", str(run.path)):
        with pytest.raises(UserError) as caught:
            config_from([first, override])
        assert f"{key}: cannot read {text}" in str(caught.value) and f"'{key}=[\"" in str(caught.value)


def test_several_values_are_for_a_sweep_and_a_group_is_chosen_whoever_asks(tmp_path: Path) -> None:
    run = create_run(config_from(["experiment=glyphs16", "cluster=slurm_generic", f"runs_dir={tmp_path}"]))
    with pytest.raises(UserError, match="which only a sweep can try"):
        config_from([str(run.path), "sample.count=1,2"])
    local = config_from(["experiment=glyphs16", "cluster=local", "cluster.train.tasks=2"]).cluster
    changed = config_from([str(run.path), "cluster.train.tasks=2", "cluster=local"])
    assert changed.cluster == local and changed.runs_dir == tmp_path
    with pytest.raises(UserError, match=r"cluster: found 'lokal'. Did you mean 'local'\? Expected one"):
        config_from([str(run.path), "cluster=lokal"])
    with pytest.raises(UserError, match=r"experiment=glyphs32: a run has its settings already"):
        config_from([str(run.path), "experiment=glyphs32"])
    with pytest.raises(UserError, match=r"'--fast' is not key=value"):
        config_from([str(run.path), "--fast"])
    with pytest.raises(UserError, match="A run directory stands first"):
        config_from(["sample.count=5", str(run.path)])


def test_shell_lines_of_a_run_keep_their_variables(tmp_path: Path) -> None:
    lines = 'cluster.setup=["export X=\\\\${HOME}/y"]'  # \${ is OmegaConf's way to write ${
    run = create_run(config_from(["experiment=glyphs16", lines, f"runs_dir={tmp_path}"]))
    cfg = config_from([str(run.path), "sample.count=7"])
    assert cfg.cluster.setup == ("export X=${HOME}/y",)


@pytest.mark.parametrize(
    "overrides",
    [
        ["cluster=local", "cluster.options={comment: b}", "cluster.setup=['echo ü (1) #2']"],
        ["cluster.options={}", "sample.attributes={}"],
        ["sample.attributes={Smiling: 1}"],
        ["evaluate.inception.weights=/w (1)/ü,#.pth", "evaluate.inception.sha256=null", "sample.weights=network"],
        ["cluster.python=null", "data_dir=/x/\\${HOME}", "evaluate.domain.lr=1e-12"],
        ["cluster.node_local=null", "cluster.account=null", "cluster.qos='null'", "cluster.partition=' a'"],
    ],
)
def test_a_job_gets_as_overrides_what_its_call_says_differently(overrides: list[str], tmp_path: Path) -> None:
    first = ["experiment=celeba32", f"runs_dir={tmp_path}", "diffusion.label_dropout=0.1"]
    first += ["diffusion.attribute_dropout=0.1", "cluster=slurm_generic", "cluster.options={mail: x, m-n: 1}"]
    run = create_run(config_from([*first, "sample.attributes={Male: 0}"]))
    cfg = config_from([*first, "sample.attributes={Male: 0}", *overrides])
    assert config_from([str(run.path), *overrides_for(run, cfg)]) == cfg


def test_what_training_made_is_not_said_differently_of_a_run(tmp_path: Path) -> None:
    first = ["experiment=glyphs16", f"runs_dir={tmp_path}"]
    run = create_run(config_from(first))
    for overrides in ([str(run.path)], first):
        found, cfg = existing_run([*overrides, "sample.count=7", "cluster=slurm_generic"])
        assert found == run and cfg.sample.count == 7 and cfg.cluster.name == "slurm_generic"
        with pytest.raises(UserError, match=r"train\.optim\.lr: the run has 0\.004, this call has 5\.0"):
            existing_run([*overrides, "train.optim.lr=5"])
        with pytest.raises(UserError, match=r"model\.width: the run has"):
            existing_run([*overrides, "model=unet_tiny"])
    with pytest.raises(UserError, match=r"other is no run"):
        existing_run([*first, "name=other"])
    moved = tmp_path / "moved"
    run.path.rename(moved)  # its config still has the old name
    assert existing_run([str(moved), "sample.count=7"])[0].path == moved


def test_an_override_of_any_kind_composes_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    config_from(["experiment=glyphs16"])
    composed = []
    monkeypatch.setattr(load, "compose", lambda *overrides, **_: composed.append(overrides))
    for count in range(3):
        overrides = [f"++sample.count={count + 1}", f"++cluster.options.mail-user=a{count}"]
        assert config_from(["experiment=glyphs16", *overrides]).sample.count == count + 1
    assert composed == []
