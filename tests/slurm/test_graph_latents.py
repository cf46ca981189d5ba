"""Graphs of autoencoders and of models of latents: which jobs, in which order, shared by whom."""

import json
import re

import pytest
import tiny
import tiny_latents
from launching import SMALL, latent, slurm_cli, with_stand_ins
from test_local import run

from pipeline.config.load import config_from, validated
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir
from slurm.graph import ordered
from slurm.workflows import launch_for


def arrows(launch) -> dict[str, tuple[str, ...]]:
    """What each job waits for."""
    return {job.name: job.parents for job in ordered(launch.jobs)}


def test_the_graph_of_latents_trains_the_autoencoder_first(tmp_path):
    launch = latent(tmp_path)
    assert arrows(launch) == {
        "prepare": (),
        "autoencoder": ("prepare",),
        "reconstruct": ("autoencoder",),
        "encode": ("autoencoder",),
        "train": ("encode",),
        "sample": ("train",),
        "evaluate": ("sample",),
        "compare": ("evaluate",),
    }
    own = config_from([str(tmp_path / "runs" / "squares")])
    assert own.model.kind == "kl_autoencoder" and own.data == launch.cfg.data
    commands = {job.name: job.command() for job in launch.jobs}
    assert commands["autoencoder"] == f"python -m pipeline train {own.runs_dir.resolve()}/squares"
    assert commands["encode"] == f"python -m data_prep encode {launch.run.path}"


def test_an_autoencoder_s_own_graph_ends_with_reconstructions(tmp_path):
    latent(tmp_path)
    launch = launch_for(config_from([str(tmp_path / "runs" / "squares")]), make=True)
    assert arrows(launch) == {"prepare": (), "train": ("prepare",), "reconstruct": ("train",)}


def test_an_autoencoder_that_is_there_is_only_encoded_with(tmp_path):
    plain = tiny.config(tmp_path)
    there = tiny_latents.autoencoder(plain)
    launch = launch_for(tiny_latents.config(tmp_path, there.path), make=True)
    assert list(arrows(launch)) == ["prepare", "encode", "train", "sample", "evaluate", "compare"]


def test_one_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    cfg = tiny_latents.config(tmp_path, tmp_path / "runs" / "nowhere")
    with pytest.raises(UserError, match=r"latents.autoencoder: found .*nowhere, which does not exist"):
        launch_for(cfg, make=True)
    assert not (tmp_path / "runs").exists()


def test_one_whose_training_has_not_ended_is_refused_unless_a_step_is_chosen(tmp_path):
    plain = tiny.config(tmp_path)
    there = tiny_latents.autoencoder(plain)
    (there.checkpoints / "finished.json").unlink()
    cfg = tiny_latents.config(tmp_path, there.path)
    step = there.latest_step()
    with pytest.raises(UserError, match=rf"latents.autoencoder: .* has not ended .*\[{step}\].*latents.step"):
        launch_for(cfg, make=True)
    assert not (tmp_path / "runs" / cfg.name).exists()
    chosen = cfg.latents.model_copy(update={"step": step})
    assert launch_for(cfg.model_copy(update={"latents": chosen}), make=True).run.config.is_file()


@pytest.mark.parametrize("name", ["weights", "heads"])
def test_weights_of_a_loss_that_are_not_there_are_said_before_anything_is_made(tmp_path, name):
    (tmp_path / "there").touch()
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "images" / "cats" / "a.png").touch()
    files = {"weights": tmp_path / "there", "heads": tmp_path / "there"} | {name: tmp_path / "none"}
    overrides = json.dumps([f"autoencoder.perceptual.{key}={path}" for key, path in files.items()])
    settings = [f"data.source.path={tmp_path}/images", f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    settings += ["train.global_batch=1", f"latents.overrides={overrides}"]
    cfg = config_from(["experiment=photos32_ldm_f4", "cluster=local", *settings])
    with pytest.raises(UserError, match=rf"autoencoder\.perceptual\.{name}: found no file .*none"):
        launch_for(cfg, make=True)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "none").touch()
    assert launch_for(cfg, make=True).run.config.is_file()


def test_other_settings_of_the_autoencoder_are_refused_and_touch_nothing(tmp_path):
    latent(tmp_path)
    with pytest.raises(UserError, match=re.escape("train.global_batch: the run has 8, this call has 16")):
        latent(tmp_path, name="second", overrides=(*SMALL, "train.global_batch=16"))
    assert not (tmp_path / "runs" / "second").exists()


def test_what_runs_share_has_one_key(tmp_path):
    one, two, other = (
        latent(tmp_path, name="one"),
        latent(tmp_path, name="two"),
        latent(tmp_path, name="three", autoencoder="other"),
    )
    keys = {launch.cfg.name: {job.name: launch.key(job.name) for job in launch.jobs} for launch in (one, two, other)}
    assert {n for n in keys["one"] if keys["one"][n] == keys["two"][n]} == {
        "prepare",
        "autoencoder",
        "reconstruct",
        "encode",
    }
    assert {n for n in keys["one"] if keys["one"][n] == keys["three"][n]} == {"prepare"}
    own = launch_for(config_from([str(tmp_path / "runs" / "squares")]), make=False)
    assert own.key("train") == keys["one"]["autoencoder"] and own.key("reconstruct") == keys["one"]["reconstruct"]
    assert len(set(keys["one"].values())) == len(keys["one"])


def test_a_failed_autoencoder_stops_what_comes_after_it(tmp_path):
    launch = with_stand_ins(latent(tmp_path), options={"autoencoder": "--fail non_finite"})
    code, table = run(launch)
    statuses = {name: row.status for name, row in table.rows.items()}
    assert code == 1 and statuses.pop("prepare") == "complete" and statuses.pop("autoencoder") == "failed"
    assert set(statuses.values()) == {"blocked"}


def test_ranks_that_do_not_fit_the_autoencoder_are_refused_before_anything_is_queued(tmp_path):
    launch = latent(tmp_path)
    said = launch.cfg.latents.model_dump(mode="json") | {"overrides": [*SMALL, "train.global_batch=9"]}
    cfg = validated({**launch.cfg.model_dump(mode="json"), "latents": said, "name": "odd"})
    launch_for(
        cfg.model_copy(update={"latents": cfg.latents.model_copy(update={"autoencoder": tmp_path / "runs/odd_ae"})}),
        make=True,
    )
    done = slurm_cli("submit", str(tmp_path / "runs" / "odd"), "cluster.train.tasks=2")
    assert done.returncode == 2 and "does not divide over 2 ranks" in done.stderr


def test_the_plan_shows_both_trainings_and_makes_nothing(tmp_path):
    launch = latent(tmp_path)
    path = tmp_path / "runs" / "latent"
    done = slurm_cli("plan", str(path))
    assert done.returncode == 0, done.stderr
    assert "autoencoder: training" in done.stdout and "20 steps" in done.stdout and "encode" in done.stdout
    assert not launch.run.jobs.exists() and not (RunDir(tmp_path / "runs" / "squares").jobs).exists()
