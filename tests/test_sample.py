"""Samples belong to their seeds, whatever made them and however often it was interrupted."""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pipeline import sample as job
from pipeline.__main__ import main
from pipeline.config.needs import require
from pipeline.config.paths import training_shards
from pipeline.data.images import encode
from pipeline.data.pictures import tile
from pipeline.data.reader import Reader
from pipeline.data.shards import Layout, Sample, finish, open_shards, read_manifest, shard_name, write_shard
from pipeline.inference import labels_for, places_taken_for_names
from pipeline.runtime.errors import UserError
from pipeline.runtime.parts import Part
from pipeline.runtime.run_dir import RunDir
from pipeline.sample import sample


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cfg = tiny.config(tmp_path_factory.mktemp("sampled"))
    tiny.prepare(cfg)
    return cfg, tiny.run(cfg)


def changed(cfg, **settings):
    sampler = cfg.sample.sampler.model_copy(update=settings.pop("sampler", {}))
    return cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"sampler": sampler, **settings})})


def pixels(directory):
    shards = open_shards(directory)
    return Reader(shards).read(np.arange(shards.manifest.count)), np.asarray(shards.index["label"])


def digest(directory):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.glob("*")) if p.is_file()}


@pytest.fixture
def elsewhere(trained, tmp_path):
    """A copy of the run to sample into."""

    def copy(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(trained[1].checkpoints)
        return RunDir(tmp_path / name)

    return copy


def test_the_same_image_for_any_batch_size(trained, elsewhere):
    cfg = trained[0]
    sets = [pixels(sample(changed(cfg, batch=b), elsewhere(f"batch{b}")))[0] for b in (8, 3, 1)]
    assert all(np.array_equal(sets[0], other) for other in sets[1:])


def test_parts_make_the_same_bytes_as_one_job(trained, elsewhere):
    cfg = trained[0]
    whole = sample(cfg, elsewhere("whole"))
    run = elsewhere("parts")
    for number in (2, 0, 1):
        directory = sample(cfg, run, part=Part(number, 3))
    assert digest(directory) == digest(whole)


def test_later_seeds_extend_a_set(trained, elsewhere):
    cfg, run = trained[0], elsewhere("grown")
    sample(changed(cfg, count=12), run)
    grown = sample(cfg, run)
    assert digest(grown) == digest(sample(cfg, elsewhere("at_once")))


def test_a_window_of_seeds_is_that_part_of_the_whole(trained, elsewhere):
    cfg = trained[0]
    whole, _ = pixels(sample(cfg, elsewhere("whole")))
    later, _ = pixels(sample(changed(cfg, first_seed=8, count=8), elsewhere("later")))
    assert np.array_equal(whole[8:16], later)


def test_classes_are_as_asked(trained, elsewhere):
    cfg = trained[0]
    _, labels = pixels(sample(cfg, elsewhere("uniform")))
    assert np.bincount(labels).tolist() == [8, 8, 8]
    _, labels = pixels(sample(changed(cfg, classes=(2, 0)), elsewhere("list")))
    assert labels.tolist() == [2, 0] * 12
    train = read_manifest(cfg.data_dir / next(cfg.data_dir.iterdir()).name / "shards" / "train")
    drawn = labels_for(changed(cfg, classes="training"), torch.arange(6000), train)
    assert torch.bincount(drawn).double().numpy() / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_classes_may_be_asked_for_by_name(trained, elsewhere):
    cfg = trained[0]
    by_name = sample(changed(cfg, classes=("large", 0)), elsewhere("names"))
    by_number = sample(changed(cfg, classes=(2, 0)), elsewhere("numbers"))
    assert all(np.array_equal(one, other) for one, other in zip(pixels(by_name), pixels(by_number), strict=True))
    with pytest.raises(UserError, match=r"found 'lagre', which the data has not. Did you mean 'large'\?"):
        sample(changed(cfg, classes=("lagre",)), elsewhere("wrong"))
    with pytest.raises(UserError, match=r"found 'q', which the data has not. It has small, middle, large."):
        require(changed(cfg, classes=("q",)), "sample")


def test_images_are_written_as_files_and_what_is_there_stays(by_command, tmp_path, capsys):
    run, folder = by_command("files"), tmp_path / "png"
    argv = ["sample", str(run.path), "sample.first_seed=3", "sample.count=10", "--png", str(folder)]
    assert main(argv) == 0
    names = sorted(p.name for p in folder.iterdir())
    assert names[:3] == ["000003-small.png", "000004-middle.png", "000005-large.png"] and len(names) == 10
    (directory,) = run.samples(12).iterdir()
    shown = [np.asarray(Image.open(folder / name)) for name in names]
    assert np.array_equal(np.stack(shown), pixels(directory)[0][..., 0])
    before = {p: p.stat().st_mtime_ns for p in (*folder.iterdir(), *directory.iterdir())}
    (folder / names[4]).unlink()
    before.pop(folder / names[4])
    assert main(argv) == 0 and "1 PNG files written" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in before} and (folder / names[4]).is_file()
    (folder / names[0]).write_bytes(b"mine")
    assert main(argv) == 2 and f"{folder / names[0]} is there and holds another image" in capsys.readouterr().err


def test_a_grid_names_its_rows(trained, elsewhere):
    """Each row has letters on the left, and nothing else is drawn there."""
    with Image.open(sample(trained[0], elsewhere("grid")) / "grid.png") as picture:
        page = np.asarray(picture.convert("L"))
    margin = page.shape[1] - tile(np.zeros((1, tiny.SIZE, tiny.SIZE, 1), np.uint8), columns=8).shape[1] * (640 // 82)
    rows = np.array_split(page[:, :margin] < 128, 3)
    assert all(row.any() for row in rows) and rows[1].any(0).sum() > rows[0].any(0).sum()  # "middle" is the longer


def test_autoguidance_by_an_earlier_checkpoint(trained, elsewhere):
    """Factor 1 is the model itself, and a model guided by itself is itself, whatever the factor."""
    cfg, run = trained
    guidance = cfg.sample.sampler.guidance.model_copy(update={"kind": "autoguidance", "scale": 3.0})
    plain, _ = pixels(sample(cfg, elsewhere("plain")))
    sets = {}
    for step in (9, 12):
        guide = guidance.model_copy(update={"guide_model": str(run.checkpoint(step))})
        sets[step], _ = pixels(sample(changed(cfg, sampler={"guidance": guide}), elsewhere(f"guide{step}")))
    assert np.abs(sets[12].astype(int) - plain).max() <= 1
    assert np.abs(sets[9].astype(int) - plain).max() > 1


def test_a_preview_in_training_does_without_the_guide_model(tmp_path):
    """Which may be trained later: the run that will be its own guide model has no checkpoint yet."""
    cfg = tiny.config(tmp_path, duration="2 steps", preview_every="2 steps")
    tiny.prepare(cfg)
    guidance = {"kind": "autoguidance", "scale": 2.0, "guide_model": str(tmp_path / "later")}
    guided = tiny.revalidated(cfg, sample={"sampler": {"steps": 3, "guidance": guidance}})
    assert tiny.run(guided).finished()


def test_a_class_that_does_not_exist(trained, elsewhere):
    with pytest.raises(UserError, match=r"sample.classes: found \[7\], but the data has classes 0 to 2"):
        sample(changed(trained[0], classes=(0, 7)), elsewhere("wrong"))


def test_partial_sets_are_usable_and_say_so(trained, elsewhere):
    cfg, run = trained[0], elsewhere("partial")
    sample(cfg, run, part=Part(0, 3))
    directory = sample(cfg, run, finish_partial=True)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["count"], manifest["made_from"]["wanted"]) == (8, 24)
    assert digest(sample(cfg, run)) == digest(sample(cfg, elsewhere("whole")))


def test_what_a_kill_after_the_manifest_left_is_done(trained, elsewhere):
    cfg = trained[0]
    expected = digest(sample(cfg, elsewhere("whole")))
    directory = sample(cfg, elsewhere("cut"))
    (directory / "grid.png").unlink()
    (directory / "000000.record.json").write_text("{}")
    assert digest(sample(cfg, RunDir(directory.parents[2]))) == expected


@pytest.mark.parametrize(("classes", "each", "columns"), [(0, 1, 16), (3, 5, 5), (40, 5, 10), (102, 4, 16)])
def test_the_grid_is_of_a_shape_to_look_at(tmp_path, classes, each, columns):
    """Five images of each class, as bright as their class: whole classes in their order, several in a row if many."""
    layout, samples = Layout(encoding="raw", shape=(1, 8, 8)), []
    for k in range(5 * classes or 300):
        label = k % classes if classes else None
        plane = np.full((8, 8, 1), k % 250 if label is None else label, np.uint8)
        samples.append(Sample(f"{k:04d}", encode(plane, "raw"), "npy", label=label, pixels=plane))
    record = write_shard(tmp_path / shard_name(0), samples, layout)
    names, protocol = [str(c) for c in range(classes)], {"name": "plain", "hash": "0"}
    finish(tmp_path, [record], layout, classes=names, protocol=protocol, split="samples")
    with Image.open(job.grid(tmp_path)) as picture:
        page = np.asarray(picture)
    side = page.shape[1] // columns  # of an image and the gap beside it
    shown = page[side // 2 :: side, side // 2 :: side, 0].ravel()[: each * (classes or 256)]
    assert shown.tolist() == [k // each % 250 for k in range(each * (classes or 256))]
    assert page.shape[0] < 2 * page.shape[1]


def _in_a_process(cfg, path):
    torch.set_num_threads(1)
    job.sample(cfg, RunDir(path))


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.full)])
def test_killed_at_random_moments_it_makes_the_same_bytes(trained, elsewhere, kills):
    cfg = changed(trained[0], count=160, images_per_shard=4, batch=4)
    expected = digest(sample(cfg, elsewhere("whole")))
    run, rng = elsewhere("killed"), random.Random(1)
    for _ in range(kills):
        process = tiny.processes().Process(target=_in_a_process, args=(cfg, run.path))
        process.start()
        time.sleep(rng.uniform(0.2, 0.8))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert digest(sample(cfg, run)) == expected


@pytest.fixture
def by_command(trained, elsewhere):
    """A copy of the run that a command line can name."""

    def copy(name):
        run = elsewhere(name)
        shutil.copy(trained[1].config, run.config)
        return run

    return copy


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("model.width=16", "model.width: the run has 8, this call has 16"),
        ("train.optim.lr=5", "train.optim.lr: the run has 0.003, this call has 5"),
        ("sample.classes=[9]", "sample.classes: found [9], but the data has classes 0 to 2"),
        (
            "sample.sampler.guidance={kind: autoguidance, scale: 2, guide_model: nowhere}",
            "the run directory of the guide model",
        ),
    ],
)
def test_a_refused_call_leaves_everything_as_it_was(by_command, wrong, said, capsys):
    run = by_command("finished")
    assert main(["sample", str(run.path)]) == 0
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    for count in (24, 41):
        assert main(["sample", str(run.path), f"sample.count={count}", wrong]) == 2
        assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before
    assert capsys.readouterr().err.count(said) == 2


def test_a_set_that_grows_stays_whole_until_the_larger_one_is(trained, elsewhere):
    """Killed while it adds images; 10 images leave the third shard half full, so that it is made anew."""
    cfg, run = changed(trained[0], images_per_shard=4, batch=4), elsewhere("growing")
    directory = sample(changed(cfg, count=10), run)
    before = digest(directory)
    larger = changed(cfg, count=160)
    process = tiny.processes().Process(target=_in_a_process, args=(larger, run.path))
    process.start()
    while process.is_alive() and not (directory / "000004.tar").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert {name: digest(directory).get(name) for name in before} == before
    assert digest(sample(larger, run)) == digest(sample(larger, elsewhere("at_once")))


def _rank(path, overrides, rank, size):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    sys.exit(main(["sample", str(path), *overrides]))


def ranks(run, *overrides, size=2):
    started = [tiny.processes().Process(target=_rank, args=(run.path, overrides, rank, size)) for rank in range(size)]
    for process in started:
        process.start()
    return started


def test_tasks_of_one_job_share_the_shards(trained, by_command):
    run, overrides = by_command("shared"), ["sample.count=80"]
    expected = digest(sample(changed(trained[0], count=80), by_command("whole")))
    first, second = ranks(run, *overrides)
    for process in (first, second):
        process.join()
    (directory,) = run.samples(12).iterdir()
    assert [first.exitcode, second.exitcode] == [0, 0] and digest(directory) == expected


def test_a_manifest_that_another_process_writes_again_is_waited_for(trained, by_command):
    cfg, run = changed(trained[0], count=24), by_command("again")
    directory = sample(cfg, run)
    (directory / "grid.png").unlink()
    manifest = (directory / "manifest.json").rename(directory / "elsewhere")
    timer = threading.Timer(0.5, manifest.rename, args=(directory / "manifest.json",))
    timer.start()
    images = job.SampleSet(cfg, run, 12, open_shards(training_shards(cfg) / "train"))
    job._end(images)
    timer.join()
    assert (directory / "grid.png").is_file()


def test_a_task_makes_its_own_shards_of_its_part(by_command, monkeypatch):
    """Task 1 of 2 of part 1 of 2 is number 3 of 4."""
    run = by_command("nested")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sample", str(run.path), "sample.count=80", "--part", "1/2"]) == 0
    (directory,) = run.samples(12).iterdir()
    assert sorted(p.name for p in directory.glob("*.tar")) == ["000003.tar", "000007.tar"]


def test_another_process_on_the_same_set_takes_nothing_away(trained, by_command):
    """One is stopped in the middle of a shard, another one makes the whole set, then the first goes on."""
    cfg = changed(trained[0], images_per_shard=16, batch=1, count=64)
    run, expected = by_command("both"), digest(sample(cfg, by_command("whole")))
    process = tiny.processes().Process(target=_in_a_process, args=(cfg, run.path))
    process.start()
    while process.is_alive() and not (unfinished := list(run.path.rglob("*.tar.partial-*"))):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    directory = sample(cfg, run)
    assert all(path.exists() for path in unfinished) and unfinished
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == 0 and digest(directory) == expected


@pytest.mark.parametrize("wrong", ["3/2", "1/0", "2/2", "-1/2", "1", "a/b", "1/2/3", ""])
def test_a_part_that_is_none_is_refused(by_command, wrong, capsys):
    run = by_command("wrong")
    assert main(["sample", str(run.path), f"--part={wrong}"]) == 2
    assert f"--part: found '{wrong}', expected K/N with 0 <= K < N" in capsys.readouterr().err
    assert not (run.path / "samples").exists()


def test_what_a_job_left_that_was_killed_while_drawing_the_grid_is_removed(by_command):
    run = by_command("drawing")
    assert main(["sample", str(run.path)]) == 0
    (grid,) = run.path.rglob("grid.png")
    grid.rename(grid.with_name("grid.png.partial-0123456789ab"))
    assert main(["sample", str(run.path)]) == 0
    assert grid.is_file() and not list(run.path.rglob("*.partial-*"))


def test_numbers_that_are_names_of_other_classes_are_said():
    classes = ("1", "2", "77")
    said = places_taken_for_names((1, 2), classes)
    assert "1 is the class called '2', 2 is the class called '77'" in said and '["1"]' in said
    assert not places_taken_for_names(("77",), classes) and not places_taken_for_names("uniform", classes)
    assert not places_taken_for_names((0, 1), ("0", "1")) and not places_taken_for_names((1,), ("rose", "tulip"))
