"""Verify finds every kind of damage; inspect shows what is there; the command line runs the whole path."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared import config, folder_of_pictures, image_of, prepare, split_of
from rich.console import Console

from data_prep import verify
from data_prep.__main__ import main
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.shards import open_shards
from pipeline.runtime.errors import Incomplete, UserError


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("verify")
    overrides = ["data.image_size=16", "data.images_per_shard=10", "data.encoding=png"]
    cfg = config(root / "data", f"data.source.path={folder_of_pictures(root / 'images', 40)}", *overrides)
    prepare(cfg)
    return cfg


@pytest.fixture
def made(prepared_once: Config, tmp_path: Path) -> Config:
    """A copy of the prepared data, to damage."""
    shutil.copytree(prepared_once.data_dir, tmp_path / "data")
    return prepared_once.model_copy(update={"data_dir": tmp_path / "data"})


def test_right_shards_are_right_and_are_read_once(made: Config) -> None:
    report = verify.run(made, workers=1)
    assert report["verified"]["train"]["count"] == split_of(made).manifest.count
    path = data_directory(made) / "shards" / verify.REPORT
    before = path.stat().st_mtime_ns
    assert verify.run(made, workers=1) == report and path.stat().st_mtime_ns == before
    assert verify.verify_directory(split_of(made).path, workers=2) == report["verified"]["train"]


def damage_pixels(train: Path) -> None:
    path = train / "000001.tar"
    content = bytearray(path.read_bytes())
    content[800] ^= 255
    path.write_bytes(content)


def damage_offsets(train: Path) -> None:
    index = np.load(train / "index.npy")
    index["offset"][3] += 512
    np.save(train / "index.npy", index)


def damage_labels(train: Path) -> None:
    index = np.load(train / "index.npy")
    index["label"][3] = 1 - index["label"][3]
    np.save(train / "index.npy", index)


def damage_mean(train: Path) -> None:
    path = train / "manifest.json"
    mean = open_shards(train).manifest.mean[0]
    path.write_text(path.read_text().replace(repr(mean), repr(mean + 0.01)))


def damage_end(train: Path) -> None:
    path = train / "000000.tar"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (damage_pixels, r"000001\.tar: its sha256 is not the manifest's"),
        (damage_offsets, r"000000\.tar/.*\.png: "),
        (damage_labels, r"000000\.tar/.*\.json: label \d, the index says \d"),
        (damage_mean, r"manifest\.json: mean .* found"),
        (damage_end, r"000000\.tar has \d+ bytes, the manifest says \d+"),
    ],
)
def test_every_damage_is_named(made: Config, damage, found: str) -> None:
    train = data_directory(made) / "shards" / "train"
    damage(train)
    with pytest.raises(Incomplete, match=found):
        verify.verify_directory(train, workers=1)


def test_the_contact_sheet_shows_the_images(made: Config) -> None:
    out = io.StringIO()
    sheets = verify.inspect(data_directory(made), console=Console(file=out, width=200), rows=2, columns=4)
    assert [sheet.parent.name for sheet in sheets] == ["train", "valid"]
    factor, cell = round(640 / 74), 18  # 4 images of 16 pixels with their gaps, enlarged
    sheet = np.asarray(Image.open(sheets[0]).convert("RGB"))
    margin = sheet.shape[1] - factor * (4 * cell + 2)
    assert sheet.shape[0] == factor * (2 * cell + 2) and margin > 20
    assert all((row[:, :margin] < 128).any() for row in np.array_split(sheet, 2))  # the names of both classes
    small = sheet[factor // 2 :: factor, margin + factor // 2 :: factor]
    train = split_of(made)
    first = {label: int(np.flatnonzero(train.index["label"] == label)[0]) for label in (0, 1)}
    assert np.array_equal(small[2:18, 2:18], image_of(train, first[0]))
    assert np.array_equal(small[20:36, 2:18], image_of(train, first[1]))
    text = out.getvalue()
    assert train.manifest.sha256 in text and "class0" in text and "folder (" in text


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished shards"):
        verify.find_splits(tmp_path)


def test_the_command_line_fetches_shards_verifies_and_inspects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"data.source.path={folder_of_pictures(tmp_path / 'images', 30)}", "data.image_size=16"]
    for stage, *options in (["fetch"], ["shard", "--workers=1"], ["verify", "--workers=1"], ["inspect"]):
        assert main([stage, "data=folder", f"data_dir={tmp_path / 'data'}", *overrides, *options]) == 0
    (directory,) = (path for path in (tmp_path / "data").iterdir() if path.name.startswith("folder-"))
    command = [sys.executable, "-m", "data_prep", "verify", str(directory), "--workers=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "every byte is right" in done.stderr, done.stderr
    options = (["--workers", "1"], ["--part", "0/1"])  # they may stand anywhere
    first, second = ["data=folder", f"data_dir={tmp_path / 'data'}"], overrides
    assert main(["shard", *options[0], *first, *options[1], *second]) == 0
    assert main(["shard", *first, *second, *options[1], *options[0]]) == 0
    assert main(["inspect", str(directory)]) == 0 and "contact sheet" in capsys.readouterr().err


def test_bad_arguments_end_with_2_and_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", "data=foldr"]) == 2
    assert "Did you mean 'folder'" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no finished shards" in capsys.readouterr().err
    for part in ("3/3", "x", "-1/2", "array"):
        assert main(["shard", "data=glyphs16", f"data_dir={tmp_path}", f"--part={part}"]) == 2
        assert "K/N" in (told := capsys.readouterr().err) or "no task of a Slurm job array" in told
