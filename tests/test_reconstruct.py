"""Reconstruction as a job: the same bytes however it was interrupted or cut up, and numbers that can be checked."""

import os
import shutil
import sys

import numpy as np
import pytest
import scipy.linalg
import tiny
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep import reference
from pipeline import checkpoint
from pipeline.__main__ import main
from pipeline.config.load import config_from
from pipeline.config.paths import data_directory
from pipeline.config.registry import known_metric
from pipeline.data.batches import validation_batches
from pipeline.data.pictures import from_uint8, to_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards, verify_shards
from pipeline.evaluate import evaluate
from pipeline.import_diffusers import import_diffusers
from pipeline.inference import loaded_objective
from pipeline.metrics.domain import load_classifier, to_input
from pipeline.metrics.extractors import CLASSIFIER
from pipeline.models.posterior import Posterior
from pipeline.models.pretrained import load_autoencoder
from pipeline.objectives.degradation import degraded
from pipeline.reconstruct import reconstruct
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json
from pipeline.runtime.run_dir import RunDir, create_run
from pipeline.sample import sample
from pipeline.train import loop

STEPS, IMAGES = 12, 15


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An autoencoder's run, with the data's classifier to measure with."""
    often = {"precision": "bf16", "preview_every": "12 steps", "validate_every": "6 steps"}
    cfg = tiny.config(tmp_path_factory.mktemp("reconstruct"), model=tiny.AUTOENCODER, **often)
    quick = {"domain": {"width": 8, "features": 8, "max_images": 300}, "block": 8}
    cfg = tiny.revalidated(cfg, evaluate=quick)
    tiny.prepare(cfg)
    reference.run(cfg)
    return cfg, tiny.run(cfg)


def made(trained, **sample):
    """A fresh reconstruction: its set and its result."""
    cfg, run = trained
    shutil.rmtree(run.path / "reconstructions", ignore_errors=True)
    shutil.rmtree(run.results, ignore_errors=True)
    path = reconstruct(tiny.revalidated(cfg, sample=sample), run)
    return verify_shards(run.path / "reconstructions" / f"step-{STEPS:09d}" / "valid"), read_json(path)


def test_every_image_of_the_validation_split_is_there_and_the_numbers_are_those_of_its_bytes(trained):
    reconstructed, result = made(trained)
    assert reconstructed.manifest.count == IMAGES and result["data"].keys() == {"valid"}
    originals = open_shards(data_directory(trained[0]) / "shards" / "valid")
    x, y = (Reader(s).read(np.arange(IMAGES)).astype(np.float64) for s in (originals, reconstructed))
    squared = ((x - y) ** 2).mean((1, 2, 3))
    assert result["metrics"]["psnr"] == pytest.approx((10 * np.log10(255**2 / squared)).mean(), rel=1e-5)
    assert result["metrics"]["l1"] == pytest.approx(np.abs(x - y).mean() / 127.5, rel=1e-5)
    assert result["metrics"]["compression"] == 64 / (4 * 16)
    assert {"ssim", "rfd-domain", "perceptual-domain", "kl-per-dimension"} <= result["metrics"].keys()
    assert result["perceptual"]["network"] == "domain classifier"
    assert result["details"]["kl-per-dimension"]["channels"] == result["details"]["latents"]["kl_nats"]
    assert len(result["details"]["latents"]["mean"]) == 4
    picture = trained[1].results / f"{STEPS:09d}-reconstruction.png"
    assert picture.is_file()


def test_latents_are_measured_in_full_precision(trained):
    """The run was trained in bf16; its latents are stored and decoded in float32, and summed in float64."""
    _, result = made(trained)
    cfg, run = trained
    images = from_uint8(Reader(open_shards(data_directory(cfg) / "shards" / "valid")).read(np.arange(IMAGES)))
    with torch.no_grad():
        posterior = load_autoencoder(run.path).encode(images)
    wide = Posterior(posterior.mean.double(), posterior.std.double())
    facts = result["details"]["latents"]
    assert facts["kl_nats"] == pytest.approx(wide.kl().mean((0, 2, 3)).tolist(), rel=1e-5)
    assert facts["posterior_deviation"] == pytest.approx(wide.std.square().mean((0, 2, 3)).sqrt().tolist(), rel=1e-5)


def test_distances_between_features_are_those_of_the_bytes(trained):
    """By numpy and scipy, from the classifier's features of originals and reconstructed images."""
    reconstructed, result = made(trained)
    cfg, _ = trained
    originals = open_shards(data_directory(cfg) / "shards" / "valid")
    network = load_classifier(next((data_directory(cfg) / "reference").rglob(CLASSIFIER)))
    found = []
    for shards in (originals, reconstructed):
        pixels = torch.from_numpy(Reader(shards).read(np.arange(IMAGES))).permute(0, 3, 1, 2)
        with torch.no_grad():
            outputs = network(to_input(pixels))
            found.append(outputs["features"].double().numpy())
    means, covariances = [f.mean(0) for f in found], [np.cov(f.T) for f in found]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert result["metrics"]["rfd-domain"] == pytest.approx(expected, rel=1e-3) and expected > 0
    p = outputs["logits"].double().softmax(1)  # of reconstructions: one split, as they are few
    score = float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp())
    assert result["metrics"]["ris-domain"] == pytest.approx(score, rel=1e-5) and known_metric("ris").name == "is"


def test_what_degrading_costs_and_reconstruction_returns(trained):
    _, result = made(trained)
    cfg, run = trained
    images = from_uint8(Reader(open_shards(data_directory(cfg) / "shards" / "valid")).read(np.arange(IMAGES)))
    spoilt = degraded(images, torch.arange(IMAGES), seed=cfg.seed, cfg=cfg.autoencoder.degradation, draw=1)
    with torch.no_grad():
        network = load_autoencoder(run.path)
        repaired = network.decode(network.encode(spoilt).mean).clamp(-1, 1)
    some = (spoilt != images).flatten(1).any(1)
    assert 0 < some.sum() < IMAGES  # a share is left as it is, and not counted
    assert result["details"]["psnr-degraded"]["count"] == some.sum()
    for name, shown in (("degraded", spoilt.clamp(-1, 1)), ("repaired", repaired)):
        squared = (shown - images)[some].square().mean((1, 2, 3))
        assert result["metrics"][f"psnr-{name}"] == pytest.approx(
            (10 * torch.log10(4 / squared)).mean().item(), rel=1e-4
        )


def test_training_shows_reconstructions_of_held_out_images_and_how_near_they_are(trained):
    _, run = trained
    rows = [row for row in tiny.history(run) if "valid/psnr" in row]
    assert [row["step"] for row in rows] == [6, 12]
    assert {"valid/loss", "valid/l1", "valid/l2", "valid/ssim", "valid/kl"} <= rows[0].keys()
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert events.Tags()["images"] == ["reconstructions"]
    (picture,) = events.Images("reconstructions")
    assert picture.width >= 3 * 4 * tiny.SIZE  # the original, what degrading made of it, and the reconstruction


def test_again_is_the_same_to_the_byte_and_done_is_done(trained):
    first, result = made(trained)
    second, again = made(trained)
    assert first.manifest.sha256 == second.manifest.sha256 and result == again
    cfg, run = trained
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
    reconstruct(cfg, run)
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()} == before


def test_numbers_do_not_depend_on_batches_or_shards(trained):
    _, result = made(trained)
    _, other = made(trained, batch=4, images_per_shard=5)
    for name, value in result["metrics"].items():
        assert other["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_an_interrupted_set_goes_on_with_the_shard_that_is_missing(trained):
    """Something stands in the way of the second shard."""
    whole, result = made(trained, images_per_shard=5)
    cfg, run = trained
    shutil.rmtree(run.path / "reconstructions")
    shutil.rmtree(run.results)
    cfg = tiny.revalidated(cfg, sample={"images_per_shard": 5})
    obstacle = whole.path / "000001.tar"
    obstacle.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        reconstruct(cfg, run)
    obstacle.rmdir()
    before = (whole.path / "000000.tar").stat().st_mtime_ns
    assert read_json(reconstruct(cfg, run)) == result
    assert (whole.path / "000000.tar").stat().st_mtime_ns == before
    assert verify_shards(whole.path).manifest.sha256 == whole.manifest.sha256


def _task(path, rank):
    torch.set_num_threads(1)
    os.environ.update(SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS="2", SLURM_LOCALID=str(rank))
    sys.exit(main(["reconstruct", str(path), "sample.images_per_shard=5"]))


def test_tasks_of_one_job_share_the_shards(trained):
    whole, result = made(trained, images_per_shard=5)
    run = trained[1]
    for name in ("reconstructions", "results"):
        shutil.rmtree(run.path / name)
    tasks = [tiny.processes().Process(target=_task, args=(run.path, rank)) for rank in (1, 0)]
    tasks[0].start()
    tasks[0].join()
    assert [p.name for p in whole.path.glob("*.tar")] == ["000001.tar"] and not run.results.exists()
    tasks[1].start()
    tasks[1].join()
    assert [task.exitcode for task in tasks] == [0, 0]
    assert read_json(run.results / f"{STEPS:09d}-reconstruction.json") == result
    assert verify_shards(whole.path).manifest.sha256 == whole.manifest.sha256
    assert not list(whole.path.glob("*.record.json"))


def test_a_refused_call_leaves_everything_as_it_was(trained, capsys):
    made(trained)
    run = trained[1]
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    for wrong, said in (("model.width=16", "model.width: the run has 8"), ("--part=1/0", "--part: found '1/0'")):
        assert main(["reconstruct", str(run.path), wrong]) == 2
        assert said in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_weights_that_are_not_finite_are_named(trained):
    cfg, run = trained
    snapshot = checkpoint.read(run.checkpoint(STEPS))
    snapshot.tensors["ema.autoencoder"]["to_moments.bias"].fill_(float("nan"))
    snapshot.numbers["step"] = 99
    checkpoint.write(run.checkpoint(99), snapshot)
    try:
        with pytest.raises(UserError, match="not finite"):
            reconstruct(cfg, run, step=99)
        assert not (run.path / "reconstructions" / "step-000000099").exists()
    finally:
        shutil.rmtree(run.checkpoint(99))


def test_without_a_validation_split_training_images_are_named(trained, tmp_path):
    cfg, run = trained
    copy = RunDir(shutil.copytree(run.path, tmp_path / "runs" / run.path.name))
    shutil.rmtree(copy.path / "reconstructions", ignore_errors=True)
    shutil.copytree(cfg.data_dir, tmp_path / "data")
    cfg = tiny.revalidated(cfg, data_dir=str(tmp_path / "data"), evaluate={"domain": {"enabled": False}})
    shutil.rmtree(data_directory(cfg) / "shards" / "valid")
    result = read_json(reconstruct(cfg, copy))
    assert result["samples"]["count"] == 60 and result["data"].keys() == {"train"}
    assert any("no validation split" in sentence for sentence in result["notes"])
    assert "rfd-domain" not in result["metrics"] and "perceptual-domain" not in result["metrics"]


def test_an_autoencoder_of_diffusers_is_imported_and_measured(trained, tmp_path):
    """One made for larger images, as pretrained ones are: an autoencoder takes any size that its factor divides."""
    diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")
    cfg, _ = trained
    torch.manual_seed(3)
    of_diffusers = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        sample_size=256,
    ).eval()
    of_diffusers.save_pretrained(tmp_path / "of_diffusers")
    run = import_diffusers(
        tmp_path / "of_diffusers", tiny.revalidated(cfg, name="of_diffusers", runs_dir=str(tmp_path))
    )
    result = read_json(reconstruct(config_from([str(run.path)]), run))
    images = from_uint8(Reader(open_shards(data_directory(cfg) / "shards" / "valid")).read(np.arange(IMAGES)))
    with torch.no_grad():
        posterior = of_diffusers.encode(images).latent_dist
        reconstructed = from_uint8(to_uint8(of_diffusers.decode(posterior.mean).sample))
    squared = (reconstructed - images).square().mean((1, 2, 3))
    assert result["metrics"]["psnr"] == pytest.approx((10 * torch.log10(4 / squared)).mean().item(), abs=1e-3)
    nats = posterior.kl().sum() / posterior.mean.numel()
    assert result["metrics"]["kl-per-dimension"] == pytest.approx(nats.item(), rel=1e-4)


def test_a_model_that_reconstructs_nothing_is_refused(tmp_path):
    cfg = tiny.config(tmp_path, duration="1 steps")
    tiny.prepare(cfg)
    with pytest.raises(UserError, match="mudi sample"):
        reconstruct(tiny.revalidated(cfg, evaluate={"domain": {"enabled": False}}), tiny.run(cfg))


def test_a_vae_is_scored_by_its_samples_and_by_its_reconstructions_under_separate_names(tmp_path):
    """`fd-domain` is of samples of the prior, `rfd-domain` of reconstructions: never one name for both."""
    cfg = tiny.config(tmp_path, model=tiny.VAE, duration="6 steps")
    cfg = tiny.revalidated(cfg, evaluate={"domain": {"width": 8, "features": 8, "max_images": 100}, "block": 8})
    tiny.prepare(cfg)
    reference.run(cfg)
    run = create_run(cfg)
    assert loop.train(cfg, run) == 0
    found = read_json(reconstruct(cfg, run))["metrics"]
    assert {"psnr", "rfd-domain", "kl-per-dimension"} <= found.keys() and "fd-domain" not in found
    assert found["compression"] == 64 / 6
    originals, reconstructed = (
        open_shards(path)
        for path in (
            data_directory(cfg) / "shards" / "valid",
            run.path / "reconstructions" / "step-000000006" / "valid",
        )
    )
    objective = loaded_objective(cfg, run, originals.manifest, step=6, device=torch.device("cpu"))
    (batch,) = validation_batches(Reader(originals), count=IMAGES, batch=IMAGES)
    with torch.inference_mode():  # by the mean, conditioned on the class
        images = objective.reconstructed(objective.networks, batch.to("cpu")).images
    assert np.abs(Reader(reconstructed).read(np.arange(IMAGES)).astype(int) - to_uint8(images).astype(int)).max() <= 1
    sample(cfg, run)
    evaluate(cfg, run)
    (result,) = run.results.glob("*-heun*.json")
    drawn = read_json(result)["metrics"]
    assert "fd-domain" in drawn and not any(name.startswith("rf") for name in drawn)
