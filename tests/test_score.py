"""Any images against any others: one number however the images are kept, and the numbers of other implementations."""

import contextlib
import csv
import gzip
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pipeline import score as scoring
from pipeline.data.shards import Layout, Sample, finish, write_shard
from pipeline.image_sets import ImageSet, Statistics, open_set
from pipeline.metrics.features import Extractor
from pipeline.metrics.frechet import frechet_distance
from pipeline.metrics.moments import moments
from pipeline.runtime.errors import UserError

SHARED = Path(os.environ.get("MUDI_SHARED", "../shared"))
SIZE, COUNTS = 8, (40, 50)
PROJECTION = torch.randn(3 * SIZE * SIZE, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Projected(nn.Module):
    """A network so small that its features cost nothing: a fixed projection of the pixels to 16 numbers."""

    num_features = 16

    def forward(self, images):
        return (images.flatten(1).double() / 255 @ PROJECTION).float()


@pytest.fixture
def small_network(monkeypatch):
    """In Inception's place; everything else is as it is."""
    network = Projected()
    extractor = Extractor("inception", {"resize": "tf1"}, ("2048",), lambda pixels: {"2048": network(pixels)})
    monkeypatch.setattr(scoring, "build_extractors", lambda *_, **__: [extractor])


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (COUNTS[0], SIZE, SIZE, 3), dtype=np.uint8)
    return a, np.clip(rng.normal(120, 60, (COUNTS[1], SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def keep(path, images, form):
    """The same images in one of the forms that people have."""
    names = [f"{k % 3}/{k:03d}.png" for k in range(len(images))]  # nested, and in another order than the array
    order = sorted(range(len(images)), key=lambda k: names[k])
    named = {names[k]: png(images[k]) for k in order}
    if form == "folder":
        for name, data in named.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        (path / ".DS_Store").write_text("hidden")
        (path / "readme.txt").write_text("not an image")
    elif form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in named.items():
                archive.writestr(name, data)
    elif form in ("tar", "webdataset"):
        path.mkdir() if form == "webdataset" else None
        parts = [list(named.items())] if form == "tar" else [list(named.items())[:20], list(named.items())[20:]]
        for number, part in enumerate(parts):
            with tarfile.open(path / f"{number}.tar" if form == "webdataset" else path, "w") as tar:
                for name, data in part:
                    for ending, content in ((".png", data), (".cls", b"1")):
                        info = tarfile.TarInfo(name.removesuffix(".png") + ending)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    elif form == "npy":
        np.save(path, images[order])
    elif form == "npz":
        np.savez(path, arr_0=images[order])
    elif form == "npz, compressed":
        np.savez_compressed(path, arr_0=images[order])
    else:
        np.savez(path, arr_0=images[order].transpose(0, 3, 1, 2), arr_1=np.zeros(3))
    return path


FORMS = {
    "folder": "folder",
    "zip": "images.zip",
    "tar": "images.tar",
    "webdataset": "tars",
    "npy": "images.npy",
    "npz": "images.npz",
    "npz, compressed": "small.npz",
    "npz, channels first": "chw.npz",
}


def test_however_images_are_kept_they_are_the_same(tmp_path, pixels):
    expected = None
    for form, name in FORMS.items():
        found = open_set(keep(tmp_path / name, pixels[0], form))
        assert isinstance(found, ImageSet) and (found.count, found.size) == (COUNTS[0], (SIZE, SIZE)), form
        images = found.read(np.arange(found.count))
        expected = images if expected is None else expected
        assert np.array_equal(images, expected), form
        if form == "folder":
            assert "1 hidden" in found.notes[0] and "1 .txt" in found.notes[0]
    cfg = tiny.config(tmp_path)
    tiny.prepare(cfg)
    prepared = open_set(next((tmp_path / "data").iterdir()))
    assert isinstance(prepared, ImageSet) and "shards/train" in prepared.notes[0]
    assert prepared.read(np.arange(2)).dtype == np.uint8


def test_transparent_parts_become_white_and_that_is_said(tmp_path, pixels):
    folder = keep(tmp_path / "folder", pixels[0][:3], "folder")
    clear = np.concatenate([pixels[0][0], np.zeros((SIZE, SIZE, 1), np.uint8)], axis=2)
    (folder / "clear.png").write_bytes(png(clear))
    found = open_set(folder)
    assert any("1 of 4 images may be transparent in parts: these become white" in note for note in found.notes)
    assert (found.read(np.arange(4)) == 255).all(axis=(1, 2, 3)).sum() == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_of_several_arrays_the_one_of_images_is_taken(tmp_path, pixels, save):
    save(tmp_path / "two.npz", labels=np.zeros(COUNTS[0], np.int64), images=pixels[0])
    found = open_set(tmp_path / "two.npz")
    assert np.array_equal(found.read(np.arange(COUNTS[0])), pixels[0])


def test_a_tar_is_said_to_be_cut_or_to_be_compressed(tmp_path, pixels):
    """To unpack it is of no use where it is cut: here after the header that says the next one's long name."""
    whole, cut, packed = (tmp_path / name for name in ("whole.tar", "cut.tar", "packed.tar.gz"))
    with tarfile.open(whole, "w", format=tarfile.GNU_FORMAT) as tar:
        for k, name in enumerate(("a.png", f"{'long' * 40}.png")):
            info, data = tarfile.TarInfo(name), png(pixels[0][k])
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    start = whole.read_bytes().index(b"././@LongLink")
    cut.write_bytes(whole.read_bytes()[: start + 1024])
    with pytest.raises(UserError, match=r"cut.tar is cut short or damaged \(.*\). Copy it again"):
        open_set(cut)
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    with pytest.raises(UserError, match=r"packed\.tar\.gz is compressed\. Unpack it first"):
        open_set(packed)


def test_of_a_run_the_last_sample_set_is_scored_and_named(tmp_path):
    layout, classes = Layout("png", (3, 8, 8)), ["cat", "dog", "owl"]
    for name, label in (("heun", 0), ("ddim", 2)):
        samples = [Sample("000000", png(np.zeros((8, 8, 3), np.uint8)), "png", label)]
        shards = tmp_path / "run" / "samples" / "step-000000010" / name
        record = write_shard(shards / "000000.tar", samples, layout)
        finish(shards, [record], layout, classes=classes, protocol={"name": "t", "hash": "0"}, split="samples")
        os.utime(shards / "manifest.json", (label, label))
    (tmp_path / "run" / "config.yaml").touch()
    (note,) = open_set(tmp_path / "run").notes
    assert "step-000000010/ddim was read, the last of 2 sample sets" in note and "1 of 3 classes: owl" in note
    os.utime(tmp_path / "run" / "samples" / "step-000000010" / "heun" / "manifest.json", (9, 9))
    assert "heun was read" in open_set(tmp_path / "run").notes[0]


def test_all_that_is_wrong_with_the_command_line_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MUDI_WEIGHTS", raising=False)
    (tmp_path / "a").touch()
    with pytest.raises(UserError) as said:
        scoring.main([str(tmp_path / "a"), str(tmp_path / "b"), f"--json={tmp_path}/a/b.json", f"--csv={tmp_path}"])
    for part in (f"{tmp_path}/b does not exist", "No network is given", "--json: found", "--csv: found"):
        assert part in str(said.value)


def test_a_folder_that_is_not_there_is_not_made_for_the_results(tmp_path, pixels):
    a = keep(tmp_path / "a", pixels[0], "folder")
    for option in ("--csv", "--json"):
        with pytest.raises(UserError, match=f"{option}: .*there is no folder '{tmp_path}/nope'. Make it first"):
            scoring.main([str(a), str(a), "evaluate.inception.weights=x", f"{option}={tmp_path}/nope/x", "--check"])
    assert not (tmp_path / "nope").exists()


@pytest.mark.usefixtures("small_network")
def test_a_single_image_has_no_distance(tmp_path, pixels, capsys):
    one, few = keep(tmp_path / "one", pixels[0][:1], "folder"), keep(tmp_path / "few", pixels[0], "folder")
    for check in ([], ["--check"]):
        for sets in ((one, few), (few, one)):
            argv = [*map(str, sets), "evaluate.inception.weights=x", f"--cache={tmp_path / 'cache'}", *check]
            with pytest.raises(UserError, match=f"^{one} has 1 image, expected at least 2"):
                scoring.main(argv)
    assert not (tmp_path / "cache").exists()
    assert scoring.main([str(one), str(few), "evaluate.quality.niqe=x.npz", "--check"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"]["count"] == 1


INTERRUPTED = """
import os, sys
from pipeline import score
from pipeline.metrics.features import Extractor
from pipeline.runtime import cli

def run(images, seen=[]):
    if seen:  # the second block
        os.kill(os.getpid(), int(sys.argv[1]))
    seen.append(1)
    return {"2048": images.flatten(1)[:, :4].float()}

score.build_extractors = lambda *_, **__: [Extractor("inception", {"resize": "tf1"}, ("2048",), run)]
sys.exit(cli.main("mudi", ["score", *sys.argv[2:]]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_interrupted_score_says_what_it_keeps(tmp_path, pixels, number, code):
    a = keep(tmp_path / "a", pixels[0], "folder")
    argv = [str(a), str(a), "evaluate.inception.weights=x", "evaluate.block=16", f"--cache={tmp_path / 'cache'}"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(int(number)), *argv], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert f"kept: inception features of {a}, 16 of {COUNTS[0]} images\nThe same command goes on" in done.stderr


def scores(a, b, tmp_path, *overrides):
    out = tmp_path / "out.json"
    common = ["evaluate.inception.weights=unused", f"--cache={tmp_path / 'cache'}", f"--json={out}"]
    assert scoring.main([str(a), str(b), *common, f"--csv={tmp_path / 'out.csv'}", *overrides]) == 0
    return json.loads(out.read_text())


@pytest.mark.usefixtures("small_network")
def test_the_numbers_are_those_of_torchmetrics_and_of_published_statistics(tmp_path, pixels, capsys):
    a, b = keep(tmp_path / "a", pixels[0], "folder"), keep(tmp_path / "b.npz", pixels[1], "npz")
    found = scores(a, b, tmp_path)
    metric = FrechetInceptionDistance(feature=Projected(), input_img_size=(3, SIZE, SIZE)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(pixels[1]).permute(0, 3, 1, 2), real=True)
    metric.update(torch.from_numpy(pixels[0]).permute(0, 3, 1, 2), real=False)
    assert found["metrics"]["fid"] == pytest.approx(float(metric.compute()), rel=1e-3)
    assert {"kid", "precision", "recall", "density", "coverage"} <= found["metrics"].keys()
    said = capsys.readouterr().out
    assert "against b.npz, 50 images" in said
    for path in ("out.json", "out.csv", "cache"):  # everything that it leaves
        assert str(tmp_path / path) in said, path
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert {row["metric"]: float(row["value"]) for row in rows} == found["metrics"]
    same = "both sets are the same images"
    assert not any(same in note for note in found["notes"])
    assert any(same in note for note in scores(b, b, tmp_path)["notes"])

    features = Projected()(torch.from_numpy(pixels[1]).permute(0, 3, 1, 2)).numpy().astype(np.float64)
    np.savez(tmp_path / "stats.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    published = scores(a, tmp_path / "stats.npz", tmp_path)
    assert "against stats.npz " in capsys.readouterr().out  # of how many images is not known
    assert published["metrics"]["fid"] == pytest.approx(found["metrics"]["fid"], rel=1e-9)
    assert "kid" not in published["metrics"]


@pytest.mark.usefixtures("small_network")
def test_kid_over_whole_sets_has_no_spread(tmp_path, pixels, capsys):
    """Where a subset is the whole of both sets, all subsets are the same: what they differ by is a rounding."""
    equal = keep(tmp_path / "a", pixels[0], "folder"), keep(tmp_path / "b", pixels[1][: COUNTS[0]], "folder")
    larger = equal[0], keep(tmp_path / "c", pixels[1], "folder")
    for sets, size, spread in ((equal, 1000, False), (equal, 20, True), (larger, 1000, True)):
        found = scores(*sets, tmp_path, f"evaluate.kid_subset_size={size}")["details"]["kid"]
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ kid "))
        assert ("std" in found, "±" in row) == (spread, spread) and found["size"] == min(size, COUNTS[0]), row


def test_features_are_computed_once_and_in_parts(tmp_path, pixels, small_network, monkeypatch):
    a, b = (keep(tmp_path / name, images, "folder") for name, images in zip("ab", pixels, strict=True))
    overrides = ["evaluate.block=16"]
    assert (
        scoring.main(
            [str(a), str(b), "evaluate.inception.weights=x", f"--cache={tmp_path / 'cache'}", *overrides, "--part=0/2"]
        )
        == 0
    )
    whole = scores(a, b, tmp_path, *overrides)
    monkeypatch.setattr(scoring, "extract", lambda *_, **__: None)  # nothing is left to compute
    assert scores(a, b, tmp_path, *overrides)["metrics"] == whole["metrics"]
    monkeypatch.undo()
    (a / "0" / "000.png").write_bytes(png(255 - pixels[0][0]))  # one image changed: its set is another
    del small_network
    monkeypatch.setattr(
        scoring,
        "build_extractors",
        lambda *_, **__: [
            Extractor("inception", {"resize": "tf1"}, ("2048",), lambda images: {"2048": Projected()(images)})
        ],
    )
    assert scores(a, b, tmp_path, *overrides)["metrics"] != whole["metrics"]


@pytest.mark.usefixtures("small_network")
def test_a_check_says_what_the_result_will_be_of_and_computes_nothing(tmp_path, pixels, capsys):
    a, b = (keep(tmp_path / name, images, "folder") for name, images in zip("ab", pixels, strict=True))
    argv = [str(a), str(b), "evaluate.inception.weights=unused", f"--cache={tmp_path / 'cache'}", "--check"]
    assert scoring.main(argv) == 0 and not (tmp_path / "cache").exists()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.endswith("}\n")
    checked = json.loads(said)
    controller, terminal = pty.openpty()  # for a person, a line for each
    with os.fdopen(terminal, "w") as out, contextlib.redirect_stdout(out):
        assert scoring.main(argv) == 0
        out.flush()
        assert os.read(controller, 65536).startswith(b'{\r\n  "run": "score",\r\n')
    os.close(controller)
    found = scores(a, b, tmp_path)
    assert {name: found[name] for name in checked} == checked and checked["samples"]["count"] == COUNTS[0]


def test_what_would_make_a_wrong_number_is_refused(tmp_path, pixels):
    folder = keep(tmp_path / "a", pixels[0], "folder")

    def read(path):
        found = open_set(path)
        found.read(np.arange(found.count))

    def refused(path, said):
        with pytest.raises(UserError, match=said):
            read(path)

    refused(tmp_path / "absent", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no images")
    np.save(tmp_path / "floats.npy", np.zeros((2, 8, 8, 3), np.float32))
    refused(tmp_path / "floats.npy", "float32")
    np.savez(tmp_path / "two.npz", x=np.zeros(2), y=np.zeros(2))
    refused(tmp_path / "two.npz", r"arrays \['x', 'y'\]")
    np.savez(tmp_path / "both.npz", x=pixels[0], y=pixels[1])
    refused(tmp_path / "both.npz", r"images in arr_0, or in one array alone of uint8 \[N, H, W, C\]")
    (folder / "0" / "000.png").write_bytes(png(pixels[0][0])[:60])
    refused(folder, "000.png is (damaged|no image)")
    (folder / "0" / "000.png").write_bytes(png(np.zeros((9, 8, 3), np.uint8)))
    refused(folder, r"images of 2 sizes: 39 of 8 x 8, 1 of 8 x 9.*--size N")
    assert open_set(folder, size=4).read(np.arange(COUNTS[0])).shape == (COUNTS[0], 4, 4, 3)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "0" / "000.png")
    refused(folder, "more than 8 bits")
    tar = keep(tmp_path / "a.tar", pixels[0], "tar")
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    refused(tar, "cut short|cannot be read|unexpected end")
    with pytest.raises(UserError, match=r"No network is given.*MUDI_WEIGHTS"):
        scoring.settings_from([])
    with pytest.raises(UserError, match=r"evaluate\.kid_subset"):
        scoring.settings_from(["evaluate.inception.weights=x", "evaluate.kid_subset=3"])


def test_the_folder_of_weights_that_the_environment_names_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MUDI_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"MUDI_WEIGHTS: found none of .*, which does not exist"):
        scoring.settings_from([])
    monkeypatch.setenv("MUDI_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"Say evaluate.inception.weights=FILE .*MUDI_WEIGHTS: found none of "):
        scoring.settings_from([])
    assert scoring.settings_from(["evaluate.quality.niqe=x.npz"]).inception.weights is None
    (tmp_path / "inception-2015-12-05.pt").touch()
    assert scoring.settings_from([]).inception.weights.is_relative_to(tmp_path)
    named = scoring.settings_from(["evaluate.inception.weights=x.pth"])
    assert named.inception.weights == Path("x.pth")
    with pytest.raises(UserError, match="No network is given"):
        scoring.settings_from(["evaluate.inception.weights=null"])


@pytest.mark.usefixtures("small_network")
def test_sets_of_two_sizes_are_refused_or_brought_to_one(tmp_path, pixels):
    a = keep(tmp_path / "a", pixels[0], "folder")
    b = keep(tmp_path / "b.npz", pixels[1].repeat(2, axis=1).repeat(2, axis=2), "npz")
    with pytest.raises(UserError, match=r"8 x 8 pixels.*16 x 16.*--size N"):
        scores(a, b, tmp_path)
    found = scores(a, b, tmp_path, f"--size={SIZE}")
    assert any("resized to 8 pixels by Lanczos" in word for word in found["notes"])
    assert found["metrics"]["fid"] > 0


def test_real_features_give_the_distance_of_an_independent_implementation(tmp_path):
    """64 flowers, of which another implementation's features are known."""
    weights = SHARED / "weights" / "inception2015_to_mixed_6e_fp32.npz"
    images = SHARED / "data" / "flowers102_64.tar"
    if not (weights.exists() and images.exists()):
        pytest.skip(f"needs {weights} and {images}: set MUDI_SHARED")
    with np.load(SHARED / "weights" / "inception2015_check_features.npz") as file:
        names, expected = [str(name) for name in file["names"]], file["dim64"].astype(np.float64)
    with tarfile.open(images) as tar:
        members = {Path(m.name).name: m for m in tar.getmembers()}
        for number, name in enumerate(names):
            path = tmp_path / ("a" if number < 32 else "b") / f"{number:03d}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tar.extractfile(members[name]).read())
    out = tmp_path / "found.json"
    overrides = [f"evaluate.inception.weights={weights}", "evaluate.inception.features=['64']", f"--json={out}"]
    assert scoring.main([str(tmp_path / "a"), str(tmp_path / "b"), *overrides, f"--cache={tmp_path / 'cache'}"]) == 0
    found = json.loads(out.read_text())["metrics"]
    assert found["fid-64"] == pytest.approx(frechet_distance(moments(expected[:32]), moments(expected[32:])), rel=1e-3)


def test_both_sets_are_looked_at_before_images_of_one_are_opened(tmp_path, pixels):
    """Where the images of A are many, what is wrong with B is said first."""
    a = keep(tmp_path / "a", pixels[0], "folder")
    (a / "0" / "000.png").write_bytes(png(np.zeros((9, 8, 3), np.uint8)))  # of another size: seen when all are opened
    (tmp_path / "empty").mkdir()
    for name in ("junk.npz", "junk.npy", "junk.zip", "short.zip", "text.txt"):
        (tmp_path / name).write_bytes(b"junk")
    whole = keep(tmp_path / "whole.zip", pixels[1], "zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "first.png").write_bytes(b"junk")
    for name in ("absent", "empty", "junk.npz", "junk.npy", "junk.zip", "short.zip", "text.txt", "broken"):
        with pytest.raises(UserError, match=rf"^{tmp_path / name}"):
            scoring.main([str(a), str(tmp_path / name), "evaluate.inception.weights=unused"])
    with pytest.raises(UserError, match="images of 2 sizes"):
        scoring.main([str(a), str(tmp_path / "whole.zip"), "evaluate.inception.weights=unused"])


def test_sets_of_one_name_are_told_apart_and_names_of_networks_are_whole(tmp_path, pixels, monkeypatch, capsys):
    network, facts = (
        Projected(),
        {"resize": "tf1", "network": "inception-2015-12-05", "weights": "0123456789abcdef" * 4},
    )
    extractor = Extractor("inception", facts, ("2048",), lambda images: {"2048": network(images)})
    monkeypatch.setattr(scoring, "build_extractors", lambda *_, **__: [extractor])
    a, b = (tmp_path / name / "images" for name in ("mine", "theirs"))
    scores(keep(a, pixels[0], "folder"), keep(b, pixels[1], "folder"), tmp_path)
    said = capsys.readouterr().out
    assert "against theirs/images, 50 images" in said
    assert "inception-2015-12-05" in said and "0123456789ab" in said and facts["weights"] not in said


def test_statistics_are_no_images(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    assert isinstance(open_set(tmp_path / "stats.npz"), Statistics)
    with pytest.raises(UserError, match="A is what is scored"):
        scoring.main([str(tmp_path / "stats.npz"), str(tmp_path / "stats.npz"), "evaluate.inception.weights=x"])
