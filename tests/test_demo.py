"""The demo page: it draws what the jobs make, says mistakes as sentences, and asks nothing of the internet."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_latents
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "slurm"))
from browser import CHROMIUM, Browser

from pipeline import demo
from pipeline.__main__ import main
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.demo import Studio, Wish
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from pipeline.train.loop import train

ROOT = Path(__file__).resolve().parent.parent
SIZE = tiny.SIZE


def prepared(tmp_path_factory, **model):
    cfg = tiny.config(tmp_path_factory.mktemp("demo"), model={**tiny.UNET, "condition": "class", **model})
    tiny.prepare(cfg)
    return tiny.run(cfg)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepared(tmp_path_factory)


@pytest.fixture(scope="module")
def studio(run):
    return Studio([str(run.path)])


def last(studio, wish):
    *_, images = studio.draw(studio.settings(wish))
    return images


def by_command(line, capsys):
    """Run what the page says; the path that it prints, if any."""
    program, *argv = shlex.split(line)
    assert program == "mudi" and main(argv) == 0
    return capsys.readouterr().out.strip()


def test_seed_k_is_image_k_of_the_sampling_job_to_the_bit(run, studio):
    assert main(["sample", str(run.path)]) == 0
    (directory,) = run.samples(12).iterdir()
    made = Reader(open_shards(directory)).read(np.arange(24))
    for seed, count in ((0, 4), (5, 8), (17, 1)):
        assert np.array_equal(last(studio, Wish(seed, count)), made[seed : seed + count])


@pytest.mark.parametrize(
    "wish",
    [
        Wish(3, 5, label=1),
        Wish(0, 16, guidance=2.5),
        Wish(2, 3, sampler="ddpm", steps=4),
        Wish(9, 2, 2, {}, "unipc", 3),
    ],
    ids=["class", "guidance", "sampler", "all"],
)
def test_the_command_line_of_the_page_makes_the_same_images(run, studio, wish, capsys):
    cfg, before = studio.settings(wish), set(run.path.glob("samples/*/*"))
    by_command(studio.again(cfg, call=""), capsys)
    (directory,) = set(run.path.glob("samples/*/*")) - before
    assert np.array_equal(Reader(open_shards(directory)).read(np.arange(wish.count)), last(studio, wish))


def test_interpolations_and_repairs_are_what_their_command_lines_write(studio, tmp_path, capsys):
    layer = np.zeros((SIZE * 4, SIZE * 4, 4), np.uint8)
    layer[4:20, 8:24] = 255
    given = {"background": np.full((SIZE * 4, SIZE * 4, 3), 90, np.uint8), "layers": [layer]}
    found = [
        demo.interpolated(studio, Wish(3, 1, label=2), to=8, to_class=None, frames=5),
        demo.interpolated(studio, Wish(3, 1, guidance=1.5), to=None, to_class=2, frames=5),
        demo.inpainted(studio, Wish(4, 3), given, tmp_path)[:2],
    ]
    for shown, line in found:
        written = np.asarray(Image.open(by_command(line, capsys)))
        assert np.array_equal(shown, written), line


def test_between_two_classes_lie_the_images_of_both_at_the_ends(studio):
    shown, _ = demo.interpolated(studio, Wish(3, 1, label=0), to=None, to_class=2, frames=5)
    ends = [last(studio, Wish(3, 1, label=c))[0, :, :, 0].astype(int) for c in (0, 2)]
    small = np.asarray(Image.fromarray(shown))[:, :, 0]
    factor = small.shape[1] // (5 * (SIZE + 2) + 2)
    row = small[::factor, ::factor][2 : 2 + SIZE]
    assert np.abs(row[:, 2 : 2 + SIZE] - ends[0]).max() <= 1
    assert np.abs(row[:, 2 + 4 * (SIZE + 2) :][:, :SIZE] - ends[1]).max() <= 1


def test_an_image_appears_as_it_forms(studio):
    frames = list(studio.draw(studio.settings(Wish(0, 2, sampler="euler", steps=6))))
    assert len(frames) == 7 and not np.array_equal(frames[0], frames[-1])
    assert np.array_equal(frames[-2], frames[-1])  # the last estimate is the image


def test_a_visitor_who_leaves_ends_the_work(studio):
    import threading

    before, frames = threading.active_count(), studio.draw(studio.settings(Wish(0, 2, sampler="euler", steps=100)))
    next(frames)
    frames.close()
    while threading.active_count() > before:
        time.sleep(0.01)


def test_the_nearest_of_training_images_are_themselves(studio):
    images = Reader(studio.train).read(np.array([7, 30, 59]))
    found, caption = studio.nearest(images)
    assert np.array_equal(found, images) and caption == "Nearest of 60 of 60"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(0, 17), "count: found 17, expected a whole number from 1 to 16"),
        (Wish(-1, 1), "seed: found -1"),
        (Wish(None, 1), "seed: found nothing"),
        (Wish(0, 1, steps=201), "steps: found 201, expected a whole number from 1 to 200"),
        (Wish(0, 1, label=9), "class: found number 9, expected one of small, middle, large"),
        (Wish(0, 1, sampler="magic"), "magic"),
        (Wish(0, 1, guidance=float("nan")), "guidance: found nan"),
    ],
)
def test_a_bad_value_is_a_sentence(studio, wish, said):
    with pytest.raises(UserError, match=re.escape(said)):
        studio.settings(wish)


@pytest.mark.parametrize("model", [tiny.GAME, tiny.VAE], ids=["gan", "vae"])
def test_models_of_one_step_draw_too(tmp_path, model, capsys):
    cfg = tiny.config(tmp_path, model=model, duration="2 steps", checkpoint_every="2 steps")
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    studio, wish = Studio([str(run.path)]), Wish(2, 4, label=1)
    assert not studio.diffusion and not studio.paints
    by_command(studio.again(studio.settings(wish), call=""), capsys)
    (directory,) = run.samples(2).iterdir()
    assert np.array_equal(Reader(open_shards(directory)).read(np.arange(4)), last(studio, wish))


FORMS = ("diffusers", "safetensors")


@pytest.fixture(scope="module", params=FORMS)
def exported(run, request, tmp_path_factory):
    """A folder that `export` wrote, somewhere else."""
    folder = tmp_path_factory.mktemp("given") / request.param
    assert main(["export", str(run.path), "--format", request.param, "--to", str(folder)]) == 0
    return folder


def by_python(lines, folder, monkeypatch):
    """Run the lines that the page shows; the picture that they save."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    exec(lines, {})
    return np.asarray(Image.open("picture.png"))


def far(first, second):
    return np.abs(first.astype(int) - second.astype(int)).max()


@pytest.mark.parametrize(
    "wish", [Wish(5, 4), Wish(3, 5, label=1), Wish(0, 8, 2, {}, "ddpm", 6, 2.0)], ids=["plain", "class", "all"]
)
def test_an_export_draws_what_its_run_draws(studio, exported, wish):
    alone = Studio([str(exported)])
    assert (alone.classes, alone.title) == (studio.classes, studio.title)
    assert alone.cfg.sample.sampler == studio.cfg.sample.sampler
    assert far(last(alone, wish), last(studio, wish)) <= 1


def test_the_seed_and_the_precision_of_a_run_leave_with_its_export(tmp_path):
    cfg = tiny.config(tmp_path, model={**tiny.UNET, "condition": "class"}, precision="bf16", duration="3 steps")
    cfg = tiny.revalidated(cfg, seed=77)
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    assert main(["export", str(run.path), "--to", str(tmp_path / "out")]) == 0
    assert far(last(Studio([str(tmp_path / "out")]), Wish(2, 8)), last(Studio([str(run.path)]), Wish(2, 8))) <= 1


def test_the_lines_of_python_below_an_exports_pictures_make_them_again(studio, exported, tmp_path, monkeypatch):
    alone = Studio([str(exported), "sample.sampler.steps=4"])
    layer = np.zeros((SIZE * 4, SIZE * 4, 4), np.uint8)
    layer[4:20, 8:24] = 255
    given = {"background": np.full((SIZE * 4, SIZE * 4, 3), 90, np.uint8), "layers": [layer]}
    wish = Wish(4, 3, label=1)
    (tmp_path / "files").mkdir()
    shown = [
        (demo.drawing(alone, wish), alone.again(alone.settings(wish), call=f"drawing(studio, {wish!r})")),
        demo.interpolated(alone, Wish(3, 1, label=2), to=8, to_class=None, frames=5),
        demo.interpolated(alone, Wish(3, 1, guidance=1.5), to=None, to_class=2, frames=5),
        demo.inpainted(alone, wish, given, tmp_path / "files")[:2],
    ]
    for number, (pixels, lines) in enumerate(shown):
        assert np.array_equal(by_python(lines, tmp_path / str(number), monkeypatch), pixels), lines
    expected, _ = demo.interpolated(studio, Wish(3, 1, label=2, steps=4), to=8, to_class=None, frames=5)
    assert far(shown[1][0], expected) <= 1


def test_an_export_says_what_it_does_not_have(exported):
    alone = Studio([str(exported)])
    assert any("training images are not in the folder" in note for note in alone.notes)
    for overrides, step, said in (
        (["model.width=16"], None, "is trained. Say settings of sample or cluster"),
        ([], 3, "found 3, but"),
    ):
        with pytest.raises(UserError, match=said):
            Studio([str(exported), *overrides], step=step)
    with pytest.raises(UserError, match="an export holds the model alone"):
        alone.nearest(last(alone, Wish(0, 1)))
    with pytest.raises(UserError, match="class: found number 9, expected one of small, middle, large"):
        alone.settings(Wish(0, 1, label=9))


def test_the_page_of_an_export_says_so_and_offers_no_nearest_images(run, exported, tmp_path):
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    found = {}
    for given in (run.path, exported):
        parts = [part["props"] for part in demo.page(Studio([str(given)]), tmp_path).config["components"]]
        box = next(part for part in parts if part.get("label") == "the nearest training images")
        text = " ".join(str(part.get(name, "")) for part in parts for name in ("value", "label"))
        found[given] = box["visible"], "the same from Python" in text, "training images are not in the folder" in text
    assert found == {run.path: (True, False, False), exported: (False, True, True)}


def test_what_a_folder_of_diffusers_does_not_say_takes_defaults_and_is_said(run, tmp_path):
    assert main(["export", str(run.path), "--to", str(tmp_path / "diffusers")]) == 0
    (tmp_path / "diffusers" / "settings.json").unlink()
    alone = Studio([str(tmp_path / "diffusers")])
    assert alone.classes == ("class 0", "class 1", "class 2") and alone.cfg.sample.sampler.steps == 18
    told = " ".join(alone.notes)
    assert "sampler, steps and guidance are the defaults" in told and "does not name its classes" in told
    assert "The same seed gives the same image" not in told and "does not say the seed" in told
    assert last(alone, Wish(0, 2, label=1)).shape == (2, SIZE, SIZE, 1)
    (tmp_path / "diffusers" / "vae").mkdir()
    with pytest.raises(UserError, match="does not say how its latents were normalised"):
        Studio([str(tmp_path / "diffusers")])
    shutil.rmtree(tmp_path / "diffusers" / "scheduler")
    with pytest.raises(UserError, match="does not say by which diffusion process"):
        Studio([str(tmp_path / "diffusers")])


def test_an_export_of_latents_decodes_with_the_autoencoder_that_it_has(tmp_path):
    cfg = tiny_latents.prepared(tmp_path / "run", steps=20, duration="3 steps")
    run = create_run(cfg)
    assert train(cfg, run) == 0
    studio = Studio([str(run.path)])
    for form in FORMS:
        folder = tmp_path / form
        assert main(["export", str(run.path), "--format", form, "--to", str(folder)]) == 0
        alone = Studio([str(folder)])
        assert not alone.paints and far(last(alone, Wish(1, 6)), last(studio, Wish(1, 6))) <= 1
    with pytest.raises(UserError, match="kl_autoencoder, which makes no images of noise"):
        Studio([str(tmp_path / "diffusers" / "vae")])
    shutil.rmtree(tmp_path / "safetensors" / "autoencoder")
    with pytest.raises(UserError, match="is not a folder"):
        Studio([str(tmp_path / "safetensors")])


@pytest.mark.parametrize("model", [tiny.GAME, tiny.VAE], ids=["gan", "vae"])
def test_exports_of_models_of_one_step_draw_too(tmp_path, model):
    cfg = tiny.config(tmp_path, model=model, duration="2 steps", checkpoint_every="2 steps")
    tiny.prepare(cfg)
    run, folder = tiny.run(cfg), tmp_path / "out"
    assert main(["export", str(run.path), "--format", "safetensors", "--to", str(folder)]) == 0
    wish = Wish(2, 4, label=1)
    assert far(last(Studio([str(folder)]), wish), last(Studio([str(run.path)]), wish)) <= 1


def test_attributes_are_asked_of_an_export_by_name(tmp_path):
    model = {**tiny.UNET, "condition": "attributes"}
    cfg = tiny.config(tmp_path, model=model, duration="2 steps", checkpoint_every="2 steps")
    source = {"kind": "folder", "path": str(tmp_path), "attribute_columns": list(tiny.ATTRIBUTES)}
    cfg = tiny.revalidated(cfg, data={"source": source})
    tiny.prepare(cfg, attributes=True)
    run, folder = tiny.run(cfg), tmp_path / "out"
    assert main(["export", str(run.path), "--format", "safetensors", "--to", str(folder)]) == 0
    alone, wish = Studio([str(folder)]), Wish(0, 4, attributes={"Left": 1, "Large": 0, "Top": 1})
    assert alone.attributes == tiny.ATTRIBUTES
    assert far(last(alone, wish), last(Studio([str(run.path)]), wish)) <= 1


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("photo.png",), "is neither a run directory, which has config.yaml, nor a folder that `export` or diffusers"),
        (None, "does not exist. Expected a run directory, or a folder that `export` wrote"),
        (("model_index.json",), "holds no network"),
    ],
)
def test_a_folder_that_is_neither_says_what_was_expected(tmp_path, files, said):
    if files is not None:
        (tmp_path / "x").mkdir()
    for name in files or ():
        (tmp_path / "x" / name).write_text("{}")
    with pytest.raises(UserError, match=re.escape(said)):
        Studio([str(tmp_path / "x")])


@contextlib.contextmanager
def served(target, home):
    """The address of a real page, in a process of its own, started in a folder that must stay empty."""
    (home / "cwd").mkdir()
    (home / "tmp").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(home / "tmp"), "HOME": str(home / "home")}
    argv = [sys.executable, "-m", "pipeline", "demo", str(target)]
    before = set(target.rglob("*"))
    with (home / "log").open("w") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=env, cwd=home / "cwd")
    try:
        end = time.monotonic() + 600
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", text := (home / "log").read_text())):
            assert process.poll() is None and time.monotonic() < end, text
            time.sleep(0.1)
        yield found[0]
        assert "Traceback" not in (text := (home / "log").read_text()), text
        assert not list((home / "cwd").iterdir()) and set(target.rglob("*")) == before
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    with served(run.path, tmp_path_factory.mktemp("served")) as found:
        yield found


FILL = """(([label, value]) => { const box = [...document.querySelectorAll('label')].filter(
    e => e.textContent.trim().startsWith(label)).map(e => e.querySelector('input')).filter(e => e)[0];
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
    set.call(box, value); box.dispatchEvent(new Event('input', {bubbles: true}));
    box.dispatchEvent(new Event('change', {bubbles: true})); box.blur(); return true; })(WHAT)"""
PRESS = """(what => { const found = [...document.querySelectorAll('button')].filter(
    e => e.textContent.trim() === what && e.getBoundingClientRect().width > 0).pop();
    if (found) found.click(); return found !== undefined; })(WHAT)"""
COMMAND = "(document.querySelector('#command textarea')?.value ?? '')"
IMAGES = """[...document.querySelectorAll('img')].filter(
    e => e.getBoundingClientRect().width > 50 && e.complete && e.naturalWidth > 50).length"""
REQUESTED = "performance.getEntriesByType('resource').map(e => e.name).concat([location.href])"


def press(page, name):
    end = time.monotonic() + 600
    while not page.evaluate(PRESS.replace("WHAT", json.dumps(name))):
        assert time.monotonic() < end, f"no button {name}"
        time.sleep(0.1)


def until(page, code):
    end = time.monotonic() + 600
    while not page.evaluate(code):
        assert time.monotonic() < end, (code, page.text())
        time.sleep(0.1)


def press_until(page, name, code):
    """A page that is still being built loses a press; so does a person's, who presses again."""
    wait, end = 15, time.monotonic() + 600
    while True:
        press(page, name)
        again, wait = time.monotonic() + wait, 2 * wait
        while time.monotonic() < again:
            if page.evaluate(code):
                return
            time.sleep(0.1)
        assert time.monotonic() < end, (code, page.text())


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: Debian's package chromium is not installed")
def test_a_visitor_draws_interpolates_and_inpaints_in_a_real_browser(address, tmp_path):
    pictures = Path(os.environ.get("MUDI_PICTURES", tmp_path))
    with Browser(tmp_path / "profile", size=(1300, 900)) as page:
        page.open(address)
        page.wait_for("seed of the first image", "guidance", "sampler")
        press_until(page, "draw", f"{COMMAND}.includes('mudi sample') && {IMAGES} > 0")
        page.picture(pictures / "demo-draw.png")
        page.evaluate(FILL.replace("WHAT", json.dumps(["steps", "500"])))
        press(page, "draw")
        text = page.wait_for("steps: found 500, expected a whole number from 1 to 200")
        assert "Traceback" not in text
        page.picture(pictures / "demo-refused.png")
        page.evaluate(FILL.replace("WHAT", json.dumps(["steps", "3"])))
        press(page, "interpolate")
        time.sleep(0.5)
        press_until(page, "interpolate", f"{COMMAND}.includes('visualize') && {COMMAND}.includes('interpolate')")
        until(page, f"{IMAGES} > 0")
        page.picture(pictures / "demo-interpolate.png")
        press(page, "inpaint")
        press(page, "take the image of the seed")
        until(page, "document.querySelectorAll('canvas').length > 0")
        end = time.monotonic() + 600
        while not page.evaluate(f"{COMMAND}.includes('--mask')"):  # again, where the image had not come yet
            assert time.monotonic() < end, page.text()
            page.drag("canvas")
            time.sleep(1)
            press(page, "inpaint")
            time.sleep(2)
        until(page, f"{IMAGES} > 0")
        page.picture(pictures / "demo-inpaint.png")
        outside = [url for url in page.evaluate(REQUESTED) if not url.startswith((address, "data:", "blob:"))]
        assert outside == []


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: Debian's package chromium is not installed")
def test_an_export_draws_in_a_real_browser(exported, tmp_path):
    pytest.importorskip("gradio", reason="needs the extra 'demo'")
    pictures = Path(os.environ.get("MUDI_PICTURES", tmp_path))
    with served(exported, tmp_path) as address, Browser(tmp_path / "profile", size=(1300, 900)) as page:
        page.open(address)
        page.wait_for("seed of the first image", "the same from Python")
        press_until(page, "draw", f"{COMMAND}.includes('drawing(studio') && {IMAGES} > 0")
        page.picture(pictures / "demo-export.png")
        assert "the nearest of them cannot be shown" in page.text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: Debian's package chromium is not installed")
def test_two_visitors_at_once_each_get_their_own(address, tmp_path):
    with Browser(tmp_path / "one") as one, Browser(tmp_path / "two") as two:
        for page, seed in ((one, "3"), (two, "11")):
            page.open(address)
            page.wait_for("seed of the first image")
            page.evaluate(FILL.replace("WHAT", json.dumps(["seed of the first image", seed])))
        for page in (one, two):
            press(page, "draw")
        for page, seed in ((one, "3"), (two, "11")):
            press_until(page, "draw", f"{COMMAND}.includes('sample.first_seed={seed}') && {IMAGES} > 0")


def test_it_listens_here_alone_and_answers(address):
    port = int(address.rsplit(":", 1)[1])
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert "fonts.googleapis" not in answer.read().decode()


def test_without_gradio_it_says_what_to_install(run, tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('none')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    argv = [sys.executable, "-m", "pipeline", "demo", str(run.path)]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'mudi[demo]'" in done.stderr and "Traceback" not in done.stderr
