"""Evaluation as a job: a sample set and a data set on disk in, numbers out; the same ones however it was run."""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import reference
from pipeline.__main__ import main
from pipeline.config.load import config_from, to_yaml
from pipeline.config.paths import data_directory
from pipeline.config.schema import Config
from pipeline.data.images import encode
from pipeline.data.shards import Layout, Sample, finish, open_shards, write_shard
from pipeline.evaluate import evaluate
from pipeline.metrics.references import open_reference, reference_path
from pipeline.metrics.report import show
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import read_json
from pipeline.runtime.parts import Part
from pipeline.runtime.run_dir import RunDir, open_run

LAYOUT = Layout("png", (1, 16, 16))
CLASSES = ["across", "down", "both"]
OVERRIDES = (
    "experiment=glyphs16",
    "name=scored",
    "evaluate.domain.width=8",
    "evaluate.domain.max_images=3000",
    "evaluate.block=16",
    "evaluate.kid_subset_size=50",
)


def drawings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy drawings [N, 16, 16, 1] of three kinds, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 70, (count, 16, 16, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(2, 13, 2)
        if label != 1:
            image[y] = 240
        if label != 0:
            image[:, x] = 240
    return images, labels


def write_set(path: Path, images: np.ndarray, labels: np.ndarray, split: str) -> None:
    samples = [
        Sample(f"{k:06d}", encode(image, "png"), "png", int(label))
        for k, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    record = write_shard(path / "000000.tar", samples, LAYOUT)
    finish(path, [record], LAYOUT, classes=CLASSES, protocol={"name": "test", "hash": "0"}, split=split)


def make(root: Path, *overrides: str, share: int = 1) -> tuple[Config, RunDir]:
    """A data set with train and valid, and a run with one sample set: half fresh drawings, some copies."""
    cfg = config_from([*OVERRIDES, f"data_dir={root}/data", f"runs_dir={root}/runs", *overrides])
    data = data_directory(cfg) / "shards"
    train, valid, fresh = drawings(240 // share, 0), drawings(90 // share, 1), drawings(60 // share, 2)
    write_set(data / "train", *train, "train")
    write_set(data / "valid", *valid, "valid")
    run = RunDir(cfg.runs_dir / cfg.name)
    mirrored = train[0][:12, :, ::-1]
    images, labels = np.concatenate([fresh[0], mirrored]), np.concatenate([fresh[1], train[1][:12]])
    write_set(run.samples(120) / "heun", images, labels, "samples")
    run.config.write_text(to_yaml(cfg))
    return cfg, run


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunDir, dict]:
    cfg, run = make(tmp_path_factory.mktemp("scored"))
    reference.run(cfg)
    (path,) = evaluate(cfg, run)
    assert path == run.results / "000000120-heun.json"
    return cfg, run, json.loads(path.read_text())


def test_a_result_says_what_was_measured_on_what_with_what(scored) -> None:
    cfg, _, result = scored
    assert result["metrics"]["accuracy-domain"] > 0.8
    assert {"fd-domain", "fd-domain@valid", "is-domain", "kid-domain", "precision-domain"} <= result["metrics"].keys()
    assert not any(name.startswith("fid") for name in result["metrics"])
    assert result["samples"]["count"] == 72 and result["step"] == 120
    assert result["data"]["train"]["sha256"] == open_shards(data_directory(cfg) / "shards/train").manifest.sha256
    assert result["extractors"]["domain"]["task"] == "labels" and result["versions"]["torch"]
    assert any("fewer than 10000 images" in sentence for sentence in result["notes"])
    low, high = (result["details"]["fd-domain"][k] for k in ("low", "high"))
    assert low < result["metrics"]["fd-domain"] < high


def test_real_images_are_scored_as_samples_would_be(tmp_path, capsys) -> None:
    """What stands beside the samples' numbers is what the held-out images get as a sample set."""
    cfg, run = make(tmp_path, "evaluate.copies=false")
    reference.run(cfg)
    write_set(run.samples(120) / "real", *drawings(90, 1), "samples")
    for path in evaluate(cfg, run):
        show(read_json(path))
        said = " ".join(capsys.readouterr().out.split())
        result = read_json(path)
        if path.stem.endswith("-real"):
            real = {name: result["metrics"][name] for name in ("fd-domain", "accuracy-domain")}
        beside = {name: result["details"][name]["held_out"] for name in ("fd-domain", "accuracy-domain")}
    assert beside == pytest.approx(real, rel=1e-6)
    (line,) = re.findall(r"Real images, held out: [^A-Z]*\.", said)
    assert f" fd-domain {real['fd-domain']:.3g} (of 90)" in line
    assert f" accuracy-domain {real['accuracy-domain']:.3g}" in line


def test_a_single_held_out_image_has_no_distance(tmp_path) -> None:
    cfg, run = make(tmp_path, "evaluate.copies=false", share=10)
    shutil.rmtree(data_directory(cfg) / "shards" / "valid")
    write_set(data_directory(cfg) / "shards" / "valid", *drawings(1, 1), "valid")
    reference.run(cfg)
    (path,) = evaluate(cfg, run)
    assert "held_out" not in read_json(path)["details"]["fd-domain"]


def test_planted_copies_are_found_and_drawn(scored) -> None:
    _, run, result = scored
    assert result["details"]["copy-rate-pixel"]["expected"] <= 0.02
    assert result["metrics"]["copy-rate-pixel"] == pytest.approx(12 / 72, abs=0.03)
    worst = {w["sample"]: w["train"] for w in result["nearest_training_images"][:12]}
    assert worst == {60 + k: k for k in range(12)}
    assert (run.results / "000000120-heun.nearest.png").stat().st_size > 1000


def test_the_copy_check_computes_in_shared_blocks_what_is_not_there(scored, tmp_path, capsys) -> None:
    """Only mirrored images are computed for it, in blocks with progress, which the parts of an array share."""
    expected = scored[2]
    cfg, run = make(tmp_path)
    reference.run(cfg)
    for part in ("0/2", "1/2"):
        assert main(["evaluate", str(run.path), "--part", part]) == 0
        log = capsys.readouterr().err
        assert "features of heun, mirrored" in log and "features of valid, mirrored" in log
    before = {p: p.stat().st_mtime_ns for p in run.results.rglob("mirrored-*/*.safetensors")}
    assert sum(1 for _ in before) == -(-72 // 16) + -(-90 // 16)
    (path,) = evaluate(cfg, run)
    found = json.loads(path.read_text())
    assert found["metrics"] == expected["metrics"]
    assert found["nearest_training_images"] == expected["nearest_training_images"]


def test_the_copy_check_can_be_switched_off(scored, tmp_path) -> None:
    cfg, run = make(tmp_path, "evaluate.copies=false")
    reference.run(cfg)
    result = json.loads(evaluate(cfg, run)[0].read_text())
    assert result["metrics"] == {n: v for n, v in scored[2]["metrics"].items() if not n.startswith("copy-rate")}
    assert not list(run.results.glob("*.nearest.png"))
    (again,) = evaluate(config_from([str(run.path), "evaluate.copies=true"]), run)
    assert json.loads(again.read_text())["metrics"] == scored[2]["metrics"]


def test_an_accuracy_over_classes_without_images_says_so(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(globals(), "CLASSES", [*CLASSES, "never"])
    cfg, run = make(tmp_path, "evaluate.domain.max_images=64", "evaluate.copies=false", share=5)
    images, _ = drawings(12, 2)
    write_set(run.samples(120) / "asked", images, np.full(12, 3), "samples")
    reference.run(cfg)
    for name, says in {"heun": False, "asked": True}.items():
        assert main(["evaluate", str(run.path), f"evaluate.samples=step-000000120/{name}"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("accuracy-domain: 1 of 4 classes have no image in train: never" in said) == says, said


def test_evaluating_again_does_nothing_and_says_the_same(scored) -> None:
    cfg, run, _ = scored
    (path,) = run.results.glob("*.json")
    before = path.stat().st_mtime_ns
    assert evaluate(cfg, run) == [path] and path.stat().st_mtime_ns == before
    assert not list(run.results.glob(".work*"))


def test_parts_and_other_batches_give_the_same_numbers(scored, tmp_path) -> None:
    _, _, expected = scored
    cfg, run = make(tmp_path, "evaluate.batch=7", "evaluate.block=10")
    reference.run(cfg)
    for part in range(3):
        assert evaluate(cfg, run, part=Part(part, 3)) == []
    (path,) = evaluate(cfg, run)
    found = json.loads(path.read_text())["metrics"]
    assert found == pytest.approx(expected["metrics"], rel=1e-6, abs=1e-9)


def test_two_processes_give_the_file_of_one(scored, tmp_path) -> None:
    _, done, _ = scored
    cfg, run = make(tmp_path)
    reference.run(cfg)
    argv = [sys.executable, "-m", "pipeline", "evaluate", str(run.path)]
    environments = [{**os.environ, "RANK": str(r), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"} for r in (0, 1)]
    started = [subprocess.Popen(argv, env=e, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) for e in environments]
    for process in started:
        _, error = process.communicate()
        assert process.returncode == 0, error.decode()
    (found,), (expected,) = run.results.glob("*.json"), done.results.glob("*.json")
    one, two = (json.loads(p.read_text())["metrics"] for p in (expected, found))
    assert two == pytest.approx(one, rel=1e-6, abs=1e-9)


def test_a_reference_of_other_images_is_refused(scored) -> None:
    cfg, _, _ = scored
    (path,) = (data_directory(cfg) / "reference").glob("domain-*/train.safetensors")
    from pipeline.metrics.extractors import build_extractors

    images = {n: open_shards(data_directory(cfg) / "shards" / n).manifest.sha256 for n in ("train", "valid")}
    (extractor,) = build_extractors(cfg.evaluate, data_directory(cfg) / "reference", images, device="cpu")
    assert reference_path(data_directory(cfg) / "reference", extractor, "train") == path
    with pytest.raises(UserError, match="reference of other images"):
        open_reference(path, extractor, images="0" * 64)
    other = dataclasses.replace(extractor, protocol={**extractor.protocol, "version": 0})
    with pytest.raises(UserError, match="reference of other protocol"):
        open_reference(path, other, images=images["train"])


def test_what_is_missing_is_named(tmp_path) -> None:
    cfg, run = make(tmp_path)
    with pytest.raises(Incomplete, match="domain classifier is not trained"):
        evaluate(cfg, run)
    reference.run(cfg)
    with pytest.raises(UserError, match="Did you mean 'step-000000120/heun'"):
        evaluate(config_from([str(run.path), "evaluate.samples=step-000000120/heum"]), run)
    (run.samples(120) / "heun" / "manifest.json").unlink()
    with pytest.raises(Incomplete, match="no finished sample set"):
        evaluate(cfg, run)


def test_the_command_line_prints_a_table(scored, capsys) -> None:
    _, run, _ = scored
    assert main(["evaluate", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "fd-domain" in printed and "accuracy-domain" in printed and "72 images" in printed


def test_inception_features_are_named_by_their_number(tmp_path, shared: Path) -> None:
    weights = shared / "weights" / "inception2015_to_mixed_6e_fp32.npz"
    overrides = [f"evaluate.inception.weights={weights}", "evaluate.domain.enabled=false"]
    overrides += ["evaluate.inception.features=['64']", f"evaluate.quality.brisque={shared}/weights/brisque_allmodel"]
    cfg, run = make(tmp_path, *overrides, share=5)
    reference.run(cfg)
    (path,) = evaluate(cfg, run)
    result = json.loads(path.read_text())
    assert {"fid-64", "kid-64", "recall-64"} <= result["metrics"].keys() and "fid" not in result["metrics"]
    assert result["extractors"]["inception"]["resize"] == "tf1"
    assert any("fewer images than the dimensions" in sentence for sentence in result["notes"])
    assert len(result["details"]["brisque"]["values"]) == 24


def test_attributes_that_were_asked_for_are_looked_for(tmp_path) -> None:
    """Drawings have the attributes 'row' and 'column'; of 60 samples 15 lack the row that they were asked for."""
    cfg, run = make(tmp_path, "evaluate.domain.max_images=6000")
    data = data_directory(cfg) / "shards"
    for split, (images, labels) in {"train": drawings(600, 0), "valid": drawings(90, 1)}.items():
        rewrite(data / split, images, attributes=np.stack([labels != 1, labels != 0], axis=1), split=split)
    images, labels = drawings(60, 2)
    attributes = np.stack([labels != 1, labels != 0], axis=1).astype(np.int8)
    lacking = np.flatnonzero(labels == 1)[:15]
    attributes[lacking] = (1, -1)
    rewrite(run.samples(120) / "heun", images, attributes=attributes, split="samples")
    reference.run(cfg)
    (path,) = evaluate(cfg, run)
    result = json.loads(path.read_text())
    each = result["details"]["accuracy-attributes"]["by_attribute"]
    assert each["row"]["value"] == pytest.approx(45 / 60, abs=0.05) and each["column"]["value"] > 0.95
    assert (each["row"]["count"], each["column"]["count"]) == (60, 45) and each["row"]["classifier"] > 0.9
    assert result["metrics"]["accuracy-attributes"] == np.mean([each["row"]["value"], each["column"]["value"]])
    assert "accuracy-domain" not in result["metrics"] and "is-domain" not in result["metrics"]


def rewrite(path: Path, images: np.ndarray, *, attributes: np.ndarray, split: str) -> None:
    """A set without classes and with the attributes 'row' and 'column'."""
    shutil.rmtree(path, ignore_errors=True)
    samples = [
        Sample(f"{k:06d}", encode(image, "png"), "png", attributes=tuple(map(int, row)))
        for k, (image, row) in enumerate(zip(images, attributes, strict=True))
    ]
    record = write_shard(path / "000000.tar", samples, LAYOUT)
    names, protocol = ["row", "column"], {"name": "test", "hash": "0"}
    finish(path, [record], LAYOUT, classes=[], attributes=names, protocol=protocol, split=split)


def pieces(watched: Path) -> set[Path]:
    """Finished pieces of work; folders may vanish while one looks."""
    with contextlib.suppress(FileNotFoundError):
        return set(watched.rglob("*.safetensors"))
    return set()


def killed_until_done(argv: list[str], watched: Path, *, kills: int, seed: int) -> int:
    """Start a command again and again, killing it soon after it has finished a few more files; how often it was."""
    rng, killed, seen = random.Random(seed), 0, pieces(watched)
    while True:
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wanted = len(seen) + rng.randint(1, 4)
        while process.poll() is None:
            seen |= pieces(watched)
            if killed < kills and len(seen) >= wanted:
                time.sleep(rng.uniform(0, 0.03))
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                break
            time.sleep(0.001)
        else:
            assert process.returncode == 0
            return killed


@pytest.mark.timeout(1800)  # every start of a job takes seconds, and a busy machine several times as long
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.full)])
def test_kills_change_no_number(tmp_path, scored, kills: int) -> None:
    _, done, _ = scored
    cfg, run = make(tmp_path)
    base = [sys.executable, "-m"]
    killed = killed_until_done([*base, "data_prep", "reference", str(run.path)], cfg.data_dir, kills=kills, seed=1)
    killed += killed_until_done([*base, "pipeline", "evaluate", str(run.path)], run.path, kills=kills, seed=2)
    (found,), (expected,) = run.results.glob("*.json"), done.results.glob("*.json")
    one, two = (json.loads(p.read_text()) for p in (expected, found))
    assert killed > kills // 3  # a quick machine makes several pieces before a kill comes
    for part in ("metrics", "details", "nearest_training_images", "extractors", "data"):
        assert one[part] == two[part], part
    assert open_run(run.path)[1] == cfg
