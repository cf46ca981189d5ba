"""Bits per dimension of a trained model: the bound itself, whoever computes it in whatever pieces."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from pipeline import likelihood as job
from pipeline.__main__ import main
from pipeline.config.paths import data_directory
from pipeline.config.schema_diffusion import DiffusionConfig
from pipeline.data.batches import validation_batches
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.inference import loaded_objective
from pipeline.likelihood import likelihood
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir

TIMESTEPS = 6


@pytest.fixture(scope="module", params=[False, True], ids=["fixed", "learned"])
def trained(request, tmp_path_factory):
    process = {
        "parametrisation": "eps",
        "levels": {"kind": "ddpm", "timesteps": TIMESTEPS, "schedule": "cosine"},
        "learned_variance": request.param,
    }
    cfg = tiny.config(tmp_path_factory.mktemp("bits"))
    cfg = cfg.model_copy(update={"diffusion": DiffusionConfig.model_validate(process)})
    tiny.prepare(cfg)
    return cfg, tiny.run(cfg)


@pytest.fixture
def elsewhere(trained, tmp_path):
    """A copy of the run to write results into."""

    def copy(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(trained[1].checkpoints)
        return RunDir(tmp_path / name)

    return copy


def numbers(path):
    found = json.loads(path.read_text())
    return [found["bits_per_dimension"], found["prior"], *found["by_timestep"]]


def with_batch(cfg, batch):
    return cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"batch": batch})})


def test_the_job_gives_the_bound_of_the_images(trained, elsewhere):
    cfg, run = trained
    found = json.loads(likelihood(cfg, elsewhere("job")).read_text())
    reader = Reader(open_shards(data_directory(cfg) / "shards" / "valid"))
    objective = loaded_objective(cfg, run, reader.manifest, step=12, device=torch.device("cpu"))
    (batch,) = validation_batches(reader, count=15)
    variance = "learned" if cfg.diffusion.learned_variance else "small"
    bound = objective.bound(objective.networks, batch.to("cpu"), variance=variance, clip=None)
    assert found["bits_per_dimension"] == pytest.approx(float(bound.total.double().mean()), rel=1e-5)
    assert found["prior"] + found["steps"] + found["decoder"] == pytest.approx(found["bits_per_dimension"])
    assert found["images"] == 15
    assert math.isfinite(found["standard_error"])


def test_batches_ranks_and_restarts_change_nothing(trained, elsewhere, monkeypatch):
    cfg, _ = trained
    monkeypatch.setattr(job, "BLOCK", 4)
    whole = numbers(likelihood(cfg, elsewhere("whole")))
    assert numbers(likelihood(with_batch(cfg, 3), elsewhere("batches"))) == pytest.approx(whole, rel=1e-5)
    run = elsewhere("ranks")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        path = likelihood(cfg, run)
        assert (path is None) == (rank == 1)
    assert numbers(path) == whole
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert numbers(likelihood(cfg, run)) == whole
    path.unlink()
    assert numbers(likelihood(cfg, run)) == whole


def test_a_learned_model_codes_held_out_images_better_than_its_first_steps(trained, elsewhere):
    cfg, _ = trained
    early, late = (likelihood(cfg, elsewhere(f"step{step}"), step=step) for step in (9, 12))
    assert numbers(late)[0] < numbers(early)[0]


def test_the_command_prints_the_number(trained, capsys):
    assert main(["likelihood", str(trained[1].path), "--images", "5"]) == 0
    shown, path = capsys.readouterr().out.strip().splitlines()
    assert shown.endswith("bits per dimension")
    assert json.loads(Path(path).read_text())["images"] == 5
    assert np.isfinite(float(shown.split()[0]))


def test_models_without_the_bound_are_refused(tmp_path, trained):
    cfg, run = trained
    with pytest.raises(UserError, match=r"--split: found 'later', expected one of .*train, valid"):
        likelihood(cfg, run, split="later")
    with pytest.raises(UserError, match=r"levels.kind: found log_normal, expected ddpm"):
        likelihood(tiny.config(tmp_path), RunDir(tmp_path))
    with pytest.raises(UserError, match=r"model.kind: found stylegan, expected a diffusion model"):
        likelihood(tiny.config(tmp_path, model=tiny.GAME), RunDir(tmp_path))
