"""Latents in shards: what the autoencoder says, the same bytes whoever encodes and however often killed."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_latents
import torch
from prepared import content_of, ended, forked

from data_prep import encode, verify
from data_prep.__main__ import main
from data_prep.stage import RECEIPT
from pipeline.config.paths import data_directory, latents_directory
from pipeline.config.schema import Config
from pipeline.data.latents import image_shape, latent_shape, spread_of
from pipeline.data.pictures import from_uint8
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards, read_manifest, read_record
from pipeline.models.build import build_network
from pipeline.models.pretrained import load_autoencoder
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.run_dir import RunDir, create_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and an autoencoder of them."""
    folder = tmp_path_factory.mktemp("encoded")
    plain = tiny.config(folder)
    tiny.prepare(plain)
    tiny_latents.autoencoder(plain, steps=40)
    return folder


@pytest.fixture
def place(root: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    shutil.copytree(root, tmp_path / "copy")
    return tmp_path / "copy"


def of(folder: Path, **settings: Any) -> Config:
    latents = settings.pop("latents", {})
    run = settings.pop("run", folder / "runs" / "squares_f2")
    return tiny_latents.config(folder, run, latents=latents, **{"flip": True, **settings})


def stored(cfg: Config, split: str = "train") -> np.ndarray:
    reader = Reader(open_shards(latents_directory(cfg) / split))
    return reader.read(np.arange(reader.count))


def images(cfg: Config, split: str = "train") -> Reader:
    return Reader(open_shards(data_directory(cfg) / "shards" / split))


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Encoded by one process, undisturbed; to be read only."""
    folder = tmp_path_factory.mktemp("made") / "copy"
    shutil.copytree(root, folder)
    encode.run(of(folder), workers=1)
    return of(folder)


@pytest.fixture(scope="module")
def alone(made: Config) -> dict[str, str]:
    """What one process makes."""
    return content_of(latents_directory(made))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_stored_latent_is_what_the_autoencoder_says_of_its_image(made: Config, split: str) -> None:
    reader = images(made, split)
    network = load_autoencoder(made.latents.autoencoder)
    pictures = from_uint8(reader.read(np.arange(reader.count)))
    with torch.no_grad():
        plain, mirrored = network.encode(pictures), network.encode(pictures.flip(-1))
    expected = torch.cat([plain.mean, plain.std, mirrored.mean, mirrored.std], dim=1)
    assert np.abs(stored(made, split) - expected.numpy()).max() < 1e-5
    latents = open_shards(latents_directory(made) / split)
    assert np.array_equal(latents.index["label"], reader._shards.index["label"])
    assert encode.names_of(latents, range(4, 9)) == encode.names_of(reader._shards, range(4, 9))
    assert (image_shape(latents.manifest), latent_shape(latents.manifest)) == ((1, 8, 8), (3, 4, 4))
    assert verify.verify_directory(latents.path, workers=1)["count"] == reader.count


def test_narrow_latents_are_the_nearest_ones(place: Path) -> None:
    wide = of(place, flip=False)
    encode.run(wide, workers=1)
    exact, subnormal = stored(wide), 2.0**-25  # half the distance of fp16's smallest numbers
    for dtype, bits in (("bf16", 8), ("fp16", 11)):
        narrow = of(place, flip=False, latents={"dtype": dtype})
        encode.run(narrow, workers=1)
        assert (np.abs(stored(narrow) - exact) <= np.maximum(np.abs(exact) * 2.0**-bits, subnormal)).all()


@pytest.mark.parametrize("flip", [False, True])
def test_statistics_are_those_of_drawn_latents(place: Path, made: Config, flip: bool) -> None:
    """Mean and deviation over images, places, both mirrorings and the noise of the posterior; against numpy."""
    cfg = made if flip else of(place, flip=False)
    encode.run(cfg, workers=1)
    manifest = read_manifest(latents_directory(cfg) / "train")
    values = stored(cfg).astype(np.float64)
    parts = np.concatenate(np.split(values, 2, axis=1)) if flip else values
    means, deviations = np.split(parts, 2, axis=1)
    spread = spread_of(manifest)
    assert np.allclose(spread.mean, means.mean((0, 2, 3)), rtol=1e-9)
    variance = means.var((0, 2, 3)) + (deviations**2).mean((0, 2, 3))
    assert np.allclose(np.square(spread.std), variance, rtol=1e-9)
    assert np.allclose(spread.informed, means.var((0, 2, 3)) / variance, rtol=1e-9)
    drawn = means + deviations * np.random.default_rng(0).standard_normal((50, *means.shape))
    assert np.allclose(spread.std, drawn.std((0, 1, 3, 4)), rtol=0.01)


def test_two_parts_or_two_ranks_give_the_bytes_of_one(
    place: Path, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = of(place)
    assert encode.run(cfg, workers=1, part=(1, 2)) == {}
    assert not (latents_directory(cfg) / RECEIPT).exists()
    assert encode.run(cfg, workers=1, part=(0, 2))["splits"]["train"]["count"] == 60
    assert content_of(latents_directory(cfg)) == alone
    shutil.rmtree(latents_directory(cfg))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        encode.run(cfg, workers=1)
    assert content_of(latents_directory(cfg)) == alone


def test_processes_at_the_same_time_give_the_same_bytes(place: Path, alone: dict[str, str]) -> None:
    """Each takes what its part says; whichever ends last completes the directory."""
    cfg = of(place)
    assert ended(*(forked(encode.run, cfg, workers=1, part=(k, 3)) for k in range(3))) == [0, 0, 0]
    assert encode.run(cfg, workers=1)["splits"]["train"]["count"] == 60
    assert content_of(latents_directory(cfg)) == alone


@pytest.mark.full
def test_worker_processes_give_the_same_bytes(place: Path, alone: dict[str, str]) -> None:
    """Each worker loads torch anew, which takes longest of all tests here."""
    encode.run(of(place), workers=2)
    assert content_of(latents_directory(of(place))) == alone


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.full)])
def test_killed_at_random_moments_it_resumes_without_redoing_shards(
    place: Path, alone: dict[str, str], kills: int
) -> None:
    cfg, rng, made = of(place), random.Random(0), {}
    target, redone, landed = latents_directory(cfg), 0, 0
    while landed < kills and not (target / RECEIPT).exists():
        before = len(list(target.glob("*/*.record.json")))
        task = forked(encode.run, cfg, workers=1)
        while task.is_alive() and len(list(target.glob("*/*.record.json"))) <= before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        landed += task.is_alive()
        task.kill()
        task.join()
        redone += sum(path.stat().st_ino != inode for path, inode in made.items())
        made = {path: path.stat().st_ino for path in target.glob("*/*.tar") if read_record(path)}
    assert landed >= 1
    encode.run(cfg, workers=1)
    redone += sum(path.stat().st_ino != inode for path, inode in made.items())
    assert content_of(target) == alone and redone == 0


def test_finished_latents_are_left_alone(made: Config) -> None:
    cfg = made
    before = {p: p.stat().st_mtime_ns for p in latents_directory(cfg).rglob("*")}
    encode.run(cfg, workers=1)
    assert {p: p.stat().st_mtime_ns for p in latents_directory(cfg).rglob("*")} == before


def spoilt(cfg: Config, change: Any) -> RunDir:
    """The autoencoder with other weights, under another name."""
    network = load_autoencoder(cfg.latents.autoencoder)
    with torch.no_grad():
        change(network)
    name = "spoilt"
    its = tiny.config(cfg.data_dir.parent, name=name, model=tiny_latents.AUTOENCODER)
    return tiny_latents.save(its, network)


def _nan(network: Any) -> None:
    network.to_moments.bias[0] = torch.nan


def _large(network: Any) -> None:
    network.to_moments.bias[0] = 1e6


def _saturated(network: Any) -> None:
    network.to_moments.bias[-1] = 1e3


def _constant(network: Any) -> None:
    network.to_moments.weight[0], network.to_moments.bias[0] = 0, 2.0
    network.to_moments.weight[3], network.to_moments.bias[3] = 0, -1e3


@pytest.mark.parametrize(
    ("change", "dtype", "said"),
    [
        (_nan, "fp32", "image 'train0000' has latents that are NaN or infinite"),
        (_large, "fp16", "image 'train0000' has a latent of 1"),
        (_saturated, "fp32", "saturated posterior"),
        (_constant, "fp32", "channel 0 has mean 2 and variance"),
    ],
    ids=["nan", "overflow", "saturated", "constant"],
)
def test_latents_that_no_one_could_train_on(place: Path, change: Any, dtype: str, said: str) -> None:
    run = spoilt(of(place), change)
    cfg = of(place, run=run.path, latents={"dtype": dtype})
    with pytest.raises(UserError, match=said):
        encode.run(cfg, workers=1)
    assert not (latents_directory(cfg) / RECEIPT).exists()
    with pytest.raises(UserError, match=said):  # and again: nothing half made counts
        encode.run(cfg, workers=1)


def test_another_autoencoder_at_the_same_place(place: Path) -> None:
    cfg = of(place)
    encode.run(cfg, workers=1)
    run = spoilt(cfg, lambda network: network.to_moments.bias.add_(1))
    shutil.rmtree(cfg.latents.autoencoder)
    run.path.rename(cfg.latents.autoencoder)
    with pytest.raises(UserError, match=r"(?s)made by 'encode' from something else.*autoencoder.sha256.*latents.name"):
        encode.run(cfg, workers=1)


def test_the_weights_that_encode_are_those_of_the_receipt(place: Path) -> None:
    """Also where this process has encoded before, with those that lay there then."""
    cfg, again = of(place), of(place, latents={"name": "again"})
    encode.run(cfg, workers=1)
    before = stored(cfg)
    run = spoilt(cfg, lambda network: network.to_moments.bias[:3].add_(1))
    shutil.rmtree(cfg.latents.autoencoder)
    run.path.rename(cfg.latents.autoencoder)
    encode.run(again, workers=1)
    means, deviations, *_ = np.split(stored(again) - before, 4, axis=1)
    assert np.abs(means - 1).max() < 1e-5 and np.abs(deviations).max() == 0


def test_images_that_have_changed_since(place: Path) -> None:
    cfg = of(place)
    encode.run(cfg, workers=1)
    shutil.rmtree(data_directory(cfg) / "shards")
    tiny.prepare(cfg, count=64)
    with pytest.raises(UserError, match=r"images.train: was"):
        encode.run(cfg, workers=1)


def test_an_autoencoder_that_is_not_ready(place: Path) -> None:
    with pytest.raises(UserError, match="expected an experiment on latents"):
        encode.run(tiny.config(place))
    with pytest.raises(UserError, match="train experiment=NAME"):
        encode.run(of(place, run=place / "runs" / "none"))
    cfg = of(place)
    (RunDir(cfg.latents.autoencoder).checkpoints / "finished.json").unlink()
    with pytest.raises(UserError, match=r"training has not ended.*\[5\].*latents.step"):
        encode.run(cfg, workers=1)
    assert encode.run(of(place, latents={"step": 5}), workers=1)["splits"]
    with pytest.raises(UserError, match=r"no checkpoint of step 6. It has: \[5\]"):
        encode.run(of(place, latents={"step": 6}), workers=1)
    shutil.rmtree(data_directory(cfg) / "shards")
    with pytest.raises(Incomplete, match="not a finished shard directory"):
        encode.run(of(place, latents={"step": 5, "name": "b"}), workers=1)


def test_an_autoencoder_of_diffusers_encodes_as_diffusers_does(place: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the extra 'export' is not installed")
    torch.manual_seed(3)
    diffusers_model = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.3,
    ).eval()
    diffusers_model.save_pretrained(place / "diffusers")
    cfg = of(place, run=place / "diffusers")
    encode.run(cfg, workers=1)
    reader = images(cfg)
    with torch.no_grad():
        posterior = diffusers_model.encode(from_uint8(reader.read(np.arange(reader.count)))).latent_dist
    means, deviations, *_ = np.split(stored(cfg), 4, axis=1)
    assert np.abs(means - posterior.mean.numpy()).max() < 1e-5
    assert np.abs(deviations - posterior.std.numpy()).max() < 1e-5


def test_codes_without_noise(place: Path) -> None:
    """A bottleneck's code is its own mean: nothing is drawn, and all of its variance tells of the image."""
    model = {"kind": "bottleneck_autoencoder", "width": 8, "multipliers": [1, 2], "latent_channels": 2, "groups": 4}
    its = tiny.config(place, name="bottleneck", model=model)
    torch.manual_seed(1)
    run = tiny_latents.save(its, build_network(its.model, shape=(1, tiny.SIZE, tiny.SIZE)))
    cfg = of(place, run=run.path)
    receipt = encode.run(cfg, workers=1)
    codes, deviations, *_ = np.split(stored(cfg), 4, axis=1)
    assert codes.shape[1:] == (2, 4, 4) and codes.std() > 0 and np.abs(deviations).max() == 0
    assert tuple(receipt["spread"]["informed"]) == (1.0, 1.0)


def test_the_command_says_what_it_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = create_run(of(place))
    assert main(["encode", str(run.path), "--workers=1"]) == 0
    assert "encode: train 60, valid 15" in capsys.readouterr().err
