"""Pictures of a trained model: what they show is what sampling makes, and what is given is kept."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_latents
import torch
from PIL import Image

from pipeline import visualize as pictures
from pipeline.__main__ import main
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.runtime.errors import UserError
from pipeline.sample import sample
from pipeline.visualize import Request, visualize

SIZE = tiny.SIZE


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cfg = tiny.config(tmp_path_factory.mktemp("drawn"))
    tiny.prepare(cfg)
    return cfg, tiny.run(cfg)


@pytest.fixture(scope="module")
def model(trained):
    cfg, run = trained
    return pictures.load_model(cfg, run, step=12)


@pytest.fixture(scope="module")
def sampled(trained):
    shards = open_shards(sample(*trained))
    assert (shards.path / "strip.png").is_file()
    return Reader(shards).read(np.arange(shards.manifest.count))


@pytest.fixture
def picture(tmp_path):
    """Write an image file of uint8 [H, W]."""

    def write(name, pixels):
        Image.fromarray(np.asarray(pixels, np.uint8)).save(tmp_path / name)
        return tmp_path / name

    return write


def sampling(cfg, **sampler):
    changed = cfg.sample.sampler.model_copy(update=sampler)
    return cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"sampler": changed})})


def far(first, second):
    return np.abs(first.astype(int) - second).max()


def test_a_strip_ends_in_the_samples_of_its_seeds(model, sampled):
    frames = pictures.strip(model, torch.tensor([3, 11]), frames=4).reshape(2, 4, SIZE, SIZE, 1)
    assert far(frames[:, -1], sampled[[3, 11]]) <= 1  # another batch rounds otherwise
    assert far(frames[0, 0], frames[0, -1]) > 1
    both = pictures.strip(model, torch.tensor([3, 11]), frames=4, show="both").reshape(2, 2, 4, SIZE, SIZE, 1)
    assert np.array_equal(both[:, 1], frames)
    noisy = pictures.strip(model, torch.tensor([3, 11]), frames=4, show="noisy").reshape(frames.shape)
    assert np.array_equal(both[:, 0], noisy) and np.array_equal(noisy[:, -1], frames[:, -1])
    assert noisy[:, 0].std() > 50  # noise of all levels is seen


@pytest.mark.parametrize("kind", ["heun", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"])
def test_an_interpolation_goes_from_seed_to_seed(trained, kind):
    """All rows are asked for the first seed's class: here both ends' class, as seeds are three apart."""
    cfg, run = trained
    model = pictures.load_model(sampling(cfg, kind=kind), run, step=12)
    seeds = torch.tensor([0, 3, 6])
    rows = pictures.interpolation(model, seeds, frames=3).reshape(2, 3, SIZE, SIZE, 1)
    own = pictures.strip(model, seeds, frames=2).reshape(3, 2, SIZE, SIZE, 1)[:, -1]
    assert far(rows[:, 0], own[:2]) <= 1
    if kind in ("heun", "dpmpp_2m"):  # others add noise on the way, the row's own
        assert far(rows[:, -1], own[1:]) <= 1
        assert far(rows[0, -1], rows[1, 0]) <= 1
    straight = pictures.interpolation(model, seeds, frames=3, kind="linear").reshape(2, 3, SIZE, SIZE, 1)
    assert far(straight[:, 0], rows[:, 0]) <= 1
    assert far(straight[:, 1], rows[:, 1]) > 1


def test_an_edit_keeps_the_image_at_little_noise_and_forgets_it_at_all_noise(model, sampled):
    image = torch.linspace(-1, 1, SIZE * SIZE).reshape(1, SIZE, SIZE)
    kept, little, everything = pictures.edited(model, image, torch.tensor([3]), sigmas=[0.004, 80.0])
    assert far(kept, little) <= 4
    other = pictures.edited(model, -image, torch.tensor([3]), sigmas=[0.004, 80.0])[2]
    assert far(everything, other) < far(kept, 255 - kept) / 4  # at sigma 80 an image of 1 is 1 / 80 of the noise
    assert far(everything, sampled[3]) < 64


def test_inpainting_keeps_every_known_pixel_and_each_seed_paints_its_own(model):
    image = torch.linspace(-1, 1, SIZE * SIZE).reshape(1, SIZE, SIZE)
    mask = torch.zeros(SIZE, SIZE)
    mask[:, 4:] = 1
    hole, *painted = pictures.inpainted(model, image, torch.arange(4), mask=mask)
    given = pictures.to_uint8(image[None])[0]
    for result in (hole, *painted):
        assert np.array_equal(result[:, :4], given[:, :4])
    assert (hole[:, 4:] == 128).all()
    assert len({result.tobytes() for result in painted}) == 4


def test_everything_may_be_painted_anew(model, sampled):
    painted = pictures.inpainted(model, torch.zeros(1, SIZE, SIZE), torch.tensor([5]), mask=torch.ones(SIZE, SIZE))
    assert far(painted[1], sampled[5]) <= 1


def test_commands_write_the_same_bytes_again(trained, picture, capsys):
    cfg, run = trained
    paint = np.zeros((SIZE, SIZE))
    paint[2:5, 2:5] = 255
    image, mask = picture("image.png", np.full((SIZE, SIZE), 200)), picture("mask.png", paint)
    requests = {
        "strip": ["--seeds", "0-2", "--frames", "3", "--show", "both"],
        "interpolate": ["--seeds", "0,2", "--frames", "3", "--interpolation", "linear"],
        "edit": ["--image", str(image), "--sigmas", "0.5,2", "--seeds", "1"],
        "inpaint": ["--image", str(image), "--mask", str(mask), "--seeds", "1,4"],
    }
    for kind, options in requests.items():
        found = set()
        for _ in range(2):
            assert main(["visualize", str(run.path), kind, *options, "sample.sampler.steps=4"]) == 0
            path = capsys.readouterr().out.strip()
            found.add((path, Path(path).read_bytes()))
        assert len(found) == 1
        assert f"visualizations/step-000000012/{kind}-heun4-w1-ema-" in path
    assert visualize(cfg, run, Request("strip", [0])) != visualize(cfg, run, Request("strip", [1]))


def test_what_cannot_be_drawn_is_said(trained, picture, tmp_path):
    cfg, run = trained
    image, small = picture("image.png", np.zeros((SIZE, SIZE))), picture("small.png", np.zeros((SIZE, 5)))
    text = tmp_path / "text.png"
    text.write_text("not an image")
    wrong = {
        r"--image is missing": Request("edit", [0]),
        r"--mask is missing": Request("inpaint", [0], image=image),
        r"--mask is not read; only inpaint": Request("edit", [0], image=image, mask=image),
        r"--image: .*small.png has 5 x 8 pixels, but the model makes 8 x 8": Request("edit", [0], image=small),
        r"--mask: .*small.png has 5 x 8": Request("inpaint", [0], image=image, mask=small),
        r"--mask: .* is all black": Request("inpaint", [0], image=image, mask=image),
        r"--image: .* cannot be read as an image": Request("edit", [0], image=text),
        r"--image: .* does not exist": Request("edit", [0], image=tmp_path / "none.png"),
        r"--sigmas: found 90, expected noise above 0 and at most the sampler's 80": Request(
            "edit", [0], image=image, sigmas=(90.0,)
        ),
        r"--seeds: found \[1\], expected at least 2": Request("interpolate", [1]),
        r"--frames: found 1, expected at least 2": Request("strip", [1], frames=1),
    }
    for message, request in wrong.items():
        with pytest.raises(UserError, match=message):
            visualize(cfg, run, request)


@pytest.mark.parametrize("kind", ["game", "vae"])
def test_a_model_of_vectors_goes_from_seed_to_seed(tmp_path, kind):
    cfg = tiny.config(
        tmp_path, model={"game": tiny.GAME, "vae": tiny.VAE}[kind], duration="6 steps", checkpoint_every="6 steps"
    )
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    sampled = Reader(open_shards(sample(cfg, run))).read(np.arange(9))
    model, seeds = pictures.load_any(cfg, run, step=6), torch.tensor([0, 3, 6])  # all of one class

    def rows(**settings):
        request = Request("interpolate", [0, 3, 6], frames=3, **settings)
        return pictures.between_vectors(model, seeds, request).reshape(2, 3, SIZE, SIZE, 1)

    found = rows()
    assert far(found[:, 0], sampled[[0, 3]]) <= 1
    if kind == "vae":  # a GAN's layers add the noise of the row's first seed
        assert far(found[:, -1], sampled[[3, 6]]) <= 1
    straight = rows(interpolation="linear")
    assert far(straight[:, [0, -1]], found[:, [0, -1]]) <= 1
    with pytest.raises(UserError, match=rf"model\.kind={cfg.model.kind} makes images in one step"):
        visualize(cfg, run, Request("strip", [0]))
    with pytest.raises(UserError, match=rf"model\.kind={cfg.model.kind}, which makes images in one step"):
        pictures.load_model(cfg, run, step=6)
    if kind == "vae":
        with pytest.raises(UserError, match="a VAE has no styles"):
            rows(space="w")
        return
    assert far(rows(space="w")[:, [0, -1]], found[:, [0, -1]]) <= 1
    generator = model.objective.networks["generator"]
    z, condition = model.objective.latents(seeds[:2]), torch.tensor([0, 0])
    middle = generator.synthesis(generator.styles(z, condition).mean(0, keepdim=True), sample_indices=seeds[:1])
    assert far(rows(space="w")[0, 1], pictures.to_uint8(middle)[0]) <= 1


def test_a_diffusion_model_has_no_styles(trained):
    with pytest.raises(UserError, match=r"--space: found w, but model\.kind=unet has no styles"):
        visualize(*trained, Request("interpolate", [0, 1], space="w"))


def test_a_model_of_latents_draws_its_way_decoded_and_edits_no_pixels(tmp_path, picture):
    cfg = tiny_latents.prepared(tmp_path, duration="2 steps", checkpoint_every="2 steps")
    run = tiny.run(cfg)
    shards = open_shards(sample(cfg, run))
    model = pictures.load_model(cfg, run, step=2)
    frames = pictures.strip(model, torch.tensor([0, 7]), frames=3).reshape(2, 3, SIZE, SIZE, 1)
    assert far(frames[:, -1], Reader(shards).read(np.array([0, 7]))) <= 1
    with pytest.raises(UserError, match="images are edited in pixels only"):
        visualize(cfg, run, Request("edit", [0], image=picture("image.png", np.zeros((SIZE, SIZE)))))
