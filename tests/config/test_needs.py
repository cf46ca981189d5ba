"""What a run will need is asked for before anything is queued: metrics, splits, rates, weights."""

import re
from pathlib import Path

import pytest

from data_prep.commands import data_config
from pipeline.config.load import config_from, groups
from pipeline.config.needs import missing, require
from pipeline.config.schema_data import split_names
from pipeline.config.weights import inception_outputs
from pipeline.metrics.inception_weights import load_inception
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json, write_text
from pipeline.runtime.run_dir import create_run
from slurm.__main__ import main
from slurm.plan import derived
from slurm.sweep.settings import settings_from
from slurm.sweep.submit import check
from slurm.workflows import launch_for

LED = ["train.validate_every=1 kimg", "train.early_stop={patience: 5 kimg}"]
WITHOUT = ["flowers64_all8189", "cifar10", "mnist32", "fashion32", "lsun_bedroom64", "flowers64_trainval"]


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config_from(overrides)
    return str(caught.value)


@pytest.mark.parametrize("data", WITHOUT)
def test_nothing_is_led_by_a_validation_that_the_data_has_not(data: str) -> None:
    overrides = [f"data={data}", "model=unet_photos32", "name=x", "model.condition=none", "model.attention=[]"]
    said = refused(*overrides, *LED)
    assert "train.early_stop.metric: valid/loss needs a validation split" in said and f"{data} makes only train" in said
    config_from([*overrides, *LED, "train.early_stop.metric=in_loop/fd-domain", "train.metric_every=1 kimg"])
    config_from([*overrides, *LED, "data.split={rule: hash, valid: 0.1}", "data.split.merge={}", "data.counts=null"])
    varied = ["train.optim.lr=1e-3,1e-4", "sweep.metric=valid/loss", "train.validate_every=1 kimg"]
    with pytest.raises(UserError, match="metric: valid/loss needs a validation split"):
        check(settings_from([*overrides, *varied]))
    with pytest.raises(UserError, match="metric: fd-domain@valid needs the split 'valid'"):
        check(settings_from([*overrides, *varied, "sweep.metric=fd-domain@valid"]))


def test_every_experiment_and_sweep_that_validates_has_images_for_it() -> None:
    for name in groups()["experiment"]:
        cfg = config_from([f"experiment={name}", *(["data.source.path=/x"] if name.startswith("photos") else [])])
        assert cfg.train.validate_every is None or "valid" in (split_names(cfg.data) or ()), name
    # Those of guidance train nothing, and a GAN has no validation loss.
    for name in set(groups()["sweep"]) - {"guidance", "guidance_ho", "bedrooms", "families_fashion16"}:
        assert check(
            settings_from([f"sweep={name}", "sweep.metric=valid/loss", "sweep.gpu_hours=null"])
        ).first.train.validate_every, name


@pytest.mark.parametrize(
    ("overrides", "splits"),
    [
        (["data=celeba128"], ("train", "valid", "test")),
        (["data=mnist32", "data.split.merge={train: [train], valid: [test]}"], ("train", "valid")),
        (["data=mnist32", "data.split.merge={train: [train, test], valid: [valid]}"], ("train",)),
        (["data=glyphs16", "data.split.test=0.1", "data.split.valid=0"], ("train", "test")),
        (
            ["data=hub", "data.source.name=a/b", "data.split.rule=official", "data.source.splits={train: a, val: b}"],
            ("train", "valid"),
        ),
        (["data=folder", "data.source.path=/x", "data.split.rule=official"], None),
    ],
)
def test_which_splits_there_will_be(overrides: list[str], splits: tuple[str, ...] | None) -> None:
    cfg = config_from([*overrides, "model=unet_photos32", "name=x", "model.condition=none", "model.attention=[]"])
    assert split_names(cfg.data) == splits


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.optim={schedule: cosine_then_constant, decay_share: 0.5}"], "final_lr: found 0, so after 50% of"),
        (
            ["evaluate.reference_splits=[test,train]"],
            "found ['test', 'train'], expected first a split",
        ),
        (["evaluate.reference_splits=[]"], "reference_splits: found []"),
        (["model=stylegan_tiny", "train.compile=true"], r"train.compile: found true with adversarial.r1_gamma=1"),
        (["model=vae", "train.activation_checkpointing=true"], "found true with model.kind=vae, which has no blocks"),
        (["model=stylegan_tiny", *LED], "what is measured while training is in_loop/fd-domain"),
        ([*LED, "train.early_stop.metric=valid/psnr"], "what is measured while training is valid/loss or in_loop"),
        (
            ["model=kl_autoencoder_tiny", *LED, "train.early_stop.metric=valid/pnsr"],
            "valid/loss or valid/l1 or valid/kl or valid/psnr",
        ),
    ],
)
def test_what_a_run_would_fail_by_is_refused(overrides: list[str], said: str) -> None:
    assert said in refused("experiment=glyphs16", "sample.sampler.guidance.scale=1", "model.condition=none", *overrides)


@pytest.mark.parametrize("command", ["plan", "submit", "preflight", "sweep plan", "sweep submit"])
def test_an_account_that_the_cluster_needs_is_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    overrides = ["experiment=glyphs16", "cluster=komondor", f"runs_dir={tmp_path}/runs", f"data_dir={tmp_path}/data"]
    overrides += ["name=x", "seed=0,1", f"sweep.folder={tmp_path}/sweeps"] if "sweep" in command else []
    monkeypatch.delenv("SBATCH_ACCOUNT", raising=False)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none"))  # another site's Slurm would not take these jobs
    assert main([*command.split(), *overrides]) == 2
    assert "cluster.account=" in capsys.readouterr().err and not list(tmp_path.rglob("*.sh"))
    if "plan" in command:
        assert main([*command.split(), *overrides, "cluster.account=p"]) == 0
        monkeypatch.setenv("SBATCH_ACCOUNT", "p")
        assert main([*command.split(), *overrides]) == 0


def test_settings_of_a_finished_run_are_read_whatever_its_training_would_need_today(tmp_path: Path) -> None:
    overrides = ["experiment=glyphs16", f"runs_dir={tmp_path}", "train.optim.schedule=cosine_then_constant"]
    run = create_run(config_from([*overrides, "train.optim.decay_share=0.5", "train.optim.final_lr=0.1"]))
    write_text(run.config, run.config.read_text().replace("final_lr: 0.1", "final_lr: 0.0"))
    with pytest.raises(UserError, match="final_lr: found 0"):
        config_from([str(run.path)])
    write_json(run.checkpoints / "finished.json", {"step": 1})
    assert config_from([str(run.path), "sample.count=7"]).train.optim.final_lr == 0


WEIGHTS = {
    "inception.weights": "evaluate.inception.weights: found no file",
    "dinov2.weights": r"evaluate.dinov2.weights: found '.*', expected a folder with config.json",
    "clip.weights": r"evaluate.clip.weights: found '.*', expected a folder with config.json",
    "quality.cnniqa": "evaluate.quality.cnniqa: found no file",
    "quality.niqe": "evaluate.quality.niqe: found no file",
    "quality.brisque": "evaluate.quality.brisque: found no file",
}


@pytest.mark.parametrize("setting", WEIGHTS)
def test_weights_that_are_not_there_are_said_by_plan_submit_and_the_jobs(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["experiment=glyphs16", f"runs_dir={tmp_path}/runs", f"data_dir={tmp_path}/data", "cluster=local"]
    overrides.append(f"evaluate.{setting}={tmp_path}/none")
    cfg = config_from(overrides)
    with pytest.raises(UserError, match=WEIGHTS[setting]):
        launch_for(cfg, make=True)
    with pytest.raises(UserError, match=WEIGHTS[setting]):
        require(cfg, "evaluate")
    assert not (tmp_path / "runs").exists() and missing(cfg, ["train", "sample"]) == []
    for command in (["plan", *overrides], ["submit", *overrides], ["sweep", "plan", *overrides, "name=x", "seed=0,1"]):
        assert main(command) == 2
        shown = capsys.readouterr()
        assert f"evaluate.{setting}" in shown.err and ("submit would refuse" in shown.err) == (command[0] == "plan")
        assert shown.out == ""  # what is wrong stands alone, not below a plan
    assert not (tmp_path / "runs").exists()


def test_images_without_labels_are_said_before_anything_is_queued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").touch()
    (images / "my labels.tsv").write_text("file\tlabel\na.png\tcat\n")
    overrides = [
        "experiment=glyphs16",
        "data=folder",
        "data.image_size=16",
        "cluster=local",
        f"data.source.path={images}",
        "train.global_batch=1",
    ]
    overrides += [f"runs_dir={tmp_path}/runs", f"data_dir={tmp_path}/data"]
    for command in ("plan", "submit"):
        assert main([command, *overrides]) == 2
        shown = capsys.readouterr().err
        assert f"model.condition: found class, but the images of {images} have no labels. Set model.con" in shown
        assert "my labels.tsv looks like one: data.source.table='my labels.tsv'" in shown
        assert main([command, *overrides, "data.source.table=labels.csv"]) == 2
        assert f"data.source.table: 'labels.csv' is neither in '{images}' nor a file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    without = ["model.condition=none", "sample.sampler.guidance.scale=1"]
    for other in (without, ["data.source.table=my labels.tsv"]):
        assert missing(config_from([*overrides, *other]), ["prepare", "train"]) == []
    (images / "a.png").rename((images / "cats").mkdir() or images / "cats" / "a.png")
    assert missing(config_from(overrides), ["prepare", "train"]) == []


WRONG = {  # of a data set: files in its folder, settings, what is said
    "nothing": ({"notes.txt": ""}, [], r"data.source.path: '.*' holds no images.*found 1 others: notes.txt"),
    "the head of a table": (
        {"a.png": "", "t.csv": "picture,kind\na.png,cat\n"},
        ["data.source.table=t.csv"],
        "data.source.file_column: the table 't.csv' has none of the columns file_name, .*; it has picture, kind",
    ),
    "a row": (
        {"a.png": "", "t.csv": "file,label\nb.png,cat\n"},
        ["data.source.table=t.csv"],
        "data.source.table: 't.csv', line 2: found 'b.png', expected a name such as 'a.png'",
    ),
    "splits": ({"train/a.png": "", "test/a.png": ""}, [], "data.source.splits: found the folders test .1 images., tr"),
    "some in folders": ({"cats/a.png": "", "a.png": ""}, [], "data.source.labels: found 1 images in no folder"),
    "a broken zip": ({"a.zip": "PK\3\4"}, ["data.source.path=FOLDER/a.zip"], "a.zip is a truncated zip"),
    "fonts": ({"a.png": ""}, ["data=glyphs16", "data.source.fonts=FOLDER"], "data.source.fonts: '.*' holds no fonts"),
    "no fonts": ({}, ["data=glyphs16", "data.source.fonts=FOLDER/no"], "data.source.fonts: '.*/no' does not exist"),
    "celeba": ({"img_align_celeba.zip": ""}, ["data=celeba64_crop178_lanczos"], "no attributes in"),
    "cifar10": ({"a.tar.gz": ""}, ["data=cifar10"], "no CIFAR-10 archive or folder of batches in '.*'.*a.tar.gz"),
    "flowers": ({"102flowers.tgz": "", "setid.mat": ""}, ["data=flowers64_swapped"], "no labels in"),
    "idx": ({"train-images-idx3-ubyte.gz": ""}, ["data=mnist32"], "has train-images-idx3-ubyte.gz but no train-labels"),
    "tars": ({"a.png": ""}, ["data=webdataset"], "no tars at"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_source_without_what_is_to_be_listed_is_said_before_anything_is_queued(what: str, tmp_path: Path) -> None:
    files, settings, said = WRONG[what]
    folder = tmp_path / "images"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    settings = [setting.replace("FOLDER", str(folder)) for setting in settings]
    if not any("=glyphs" in setting for setting in settings):
        settings.insert(0, f"data.source.path={folder}")
    data = [] if any(s.startswith("data=") for s in settings) else ["data=folder", "data.image_size=16"]
    cfg = data_config([*data, *settings, f"data_dir={tmp_path}/data"])
    (problem,) = missing(cfg, ["prepare"])
    assert re.search(said, problem), problem


def test_metrics_that_the_weights_or_the_size_of_images_do_not_allow_are_said(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights"
    inception = f"evaluate.inception.weights={weights}/inception2015_to_mixed_6e_fp32.npz"
    overrides = ["experiment=fashion32", "name=s", "seed=0,1", inception, f"data_dir={tmp_path}"]
    overrides += [f"evaluate.quality.niqe={weights}/niqe_pris_params.npz", f"data.source.path={shared}/data/fashion"]
    said = {
        "fid": "fid needs the features 2048 of FID's network, but evaluate.inception gives 64, 192, spatial, 768 of",
        "is": "is needs the features logits",
        "niqe": "niqe needs images of 112 pixels, but data.image_size is 32",
    }
    for metric, why in said.items():
        with pytest.raises(UserError, match=f"metric: {re.escape(why)}"):
            check(settings_from([*overrides, f"sweep.metric={metric}"]))
    for metric in ("fid-768", "kid-768", "sfid", "fd-domain"):
        check(settings_from([*overrides, f"sweep.metric={metric}"]))
    cfg = config_from([o for o in overrides if o != "seed=0,1"] + ["evaluate.inception.features=[768,2048]"])
    assert "evaluate.inception.features: found 2048, but" in " ".join(missing(cfg, ["evaluate"]))
    assert inception_outputs(cfg.evaluate.inception.weights) == load_inception(cfg.evaluate.inception.weights).outputs


def test_a_class_that_the_source_does_not_have_is_said() -> None:
    for known, name, unknown in (("fashion32", "Trouser", "Trousers"), ("glyphs16", "Q", "AB")):
        with pytest.raises(UserError, match=f"sample.classes: found '{unknown}', which the data has not"):
            config_from([f"experiment={known}", f"sample.classes=[{unknown}]"])
        assert config_from([f"experiment={known}", f"sample.classes=[{name}]"]).sample.classes == (name,)


def test_a_plan_says_what_images_there_are_and_that_they_are_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cats/1.png", "cats/2.png", "cats/3.png", "dogs/extra/1.png", "dogs/notes.txt"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    overrides = ["plan", "experiment=photos16", f"runs_dir={tmp_path}", f"data_dir={tmp_path}", "cluster=local"]
    overrides += [f"data.source.path={tmp_path}/images"]
    assert main(overrides) == 2
    assert "train.global_batch: found 128, but there are 4 images. Give more, or set" in capsys.readouterr().err
    assert main([*overrides, "train.global_batch=2"]) == 0
    said = capsys.readouterr().out
    assert "4 images in 2 classes, from 1 (dogs/extra) to 3; 1 others are passed over" in said
    assert f"mudi train {' '.join(overrides[1:])} train.global_batch=2 --dry-run" in said


def test_a_guide_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    guide = "sample.sampler.guidance={kind: autoguidance, scale: 2, guide_model: %s}"
    overrides = ["experiment=glyphs16", f"runs_dir={tmp_path}"]
    assert "which does not exist" in missing(config_from([*overrides, guide % (tmp_path / "other")]), ["sample"])[0]
    own = tmp_path / "glyphs16" / "checkpoints" / "step-000000100"  # of this run: training will write it
    assert missing(config_from([*overrides, guide % own]), ["sample"]) == []


def test_one_folder_of_weights_serves_every_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment or the profile; an experiment's own override wins, and without a folder FID is off."""
    monkeypatch.delenv("MUDI_WEIGHTS", raising=False)
    overrides = ["experiment=glyphs16", "evaluate.quality.niqe=${weights:niqe}"]
    assert (config_from(overrides).evaluate.inception.weights, config_from(overrides).evaluate.quality.niqe) == (
        None,
        None,
    )
    with pytest.raises(UserError, match=r"metric: fid needs evaluate.inception.weights.*MUDI_WEIGHTS=/my/weights"):
        check(settings_from([*overrides, "name=s", "seed=0,1", "sweep.metric=fid"]))

    file = tmp_path / "inception" / "pt_inception-2015-12-05-6726825d.pth"
    for name in (file, tmp_path / "niqe_pris_params.npz"):  # as `fetch weights` makes it, and flat
        name.parent.mkdir(exist_ok=True)
        name.touch()
    monkeypatch.setenv("MUDI_WEIGHTS", str(tmp_path))
    cfg = config_from(overrides)
    assert (cfg.evaluate.inception.weights, cfg.evaluate.quality.niqe) == (file, tmp_path / "niqe_pris_params.npz")
    assert config_from([*overrides, "evaluate.inception.weights=null"]).evaluate.inception.weights is None
    settings = settings_from([*overrides, "name=s", "seed=0,1", "sweep.metric=fid"])
    check(settings)
    monkeypatch.delenv("MUDI_WEIGHTS")  # the tasks of a sweep find them where the environment is another
    assert check(settings).first.evaluate.inception.weights == file
    named = config_from([*overrides, "cluster=komondor", f"cluster.weights={tmp_path}"])
    assert named.evaluate.inception.weights == file
    (said, *_) = missing(config_from([*overrides, "cluster.weights=/nowhere"]), ["evaluate"])
    assert "found no file" in said and "cluster.weights names the folder /nowhere." in said
    monkeypatch.setenv("MUDI_WEIGHTS", "/nowhere")
    assert "MUDI_WEIGHTS names the folder /nowhere." in missing(config_from(overrides), ["evaluate"])[0]


def test_a_plan_is_shown_where_the_site_is_in_its_way_and_not_where_a_setting_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["plan", "experiment=glyphs16", f"runs_dir={tmp_path}", f"data_dir={tmp_path}", "cluster=local"]
    assert main([*overrides, "cluster.train.tasks=3"]) == 2
    shown = capsys.readouterr()
    assert "train.global_batch" in shown.err and shown.out == ""
    assert main([*overrides, "cluster.train.gpus=64"]) == 2
    shown = capsys.readouterr()
    assert "cluster.train.gpus=64: found " in shown.err and "train: to do, after prepare" in shown.out


def test_a_plan_says_that_warm_up_is_longer_than_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["plan", "experiment=glyphs16", f"runs_dir={tmp_path}", f"data_dir={tmp_path}", "cluster=local"]
    short = ["train.duration=25 steps", "train.optim.warmup=100 steps", "train.optim.lr=4e-3"]
    assert main([*overrides, *short]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "longer than the training: the rate ends at 0.001 and never reaches 0.004" in shown
    assert main(["submit", *overrides[1:], *short, "--only", "train"]) == 2  # its data is not there
    assert "glyphs16: warm-up: 100 steps" in capsys.readouterr().out
    assert main([*overrides, *short, "train.duration=100 steps"]) == 0
    assert "longer than the training" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        ("glyphs16", "1040, 12 steps of dpmpp_2m"),
        ("glyphs16_gan", "1040"),
        ("glyphs16_vae", "1040"),
        ("celeba64_kl_f4", ""),
    ],
)
def test_a_plan_names_a_sampler_only_where_one_is_used(experiment: str, said: str) -> None:
    assert derived(config_from([f"experiment={experiment}"])).get("samples", "") == said


def test_plan_says_that_fid_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MUDI_WEIGHTS", raising=False)
    assert main(["plan", "experiment=glyphs16", f"runs_dir={tmp_path}", f"data_dir={tmp_path}", "cluster=local"]) == 0
    assert "FID and IS     not measured" in capsys.readouterr().out
