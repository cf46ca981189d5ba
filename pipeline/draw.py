"""The drawing job: pictures of what a trained diffusion model can do with seeds and with images.

python -m pipeline draw RUN_DIR strip --seeds 0-7 --frames 8            from noise to image
python -m pipeline draw RUN_DIR interpolate --seeds 0-4 --frames 9      from one seed to the next
python -m pipeline draw RUN_DIR edit --image a.png --sigmas 0.5,1,2     a new image from a given one (SDEdit)
python -m pipeline draw RUN_DIR inpaint --image a.png --mask b.png      white of the mask is painted anew
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from pipeline import checkpoint, drawing
from pipeline.config.autoencoder import require_latents
from pipeline.config.paths import sample_set_name, tiling
from pipeline.config.schema import Config
from pipeline.data.pictures import Pixels, write_picture
from pipeline.drawing import Model, Way
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import content_hash, sha256_file
from pipeline.runtime.run_dir import RunDir, Step, existing_run, parse_step, step_name, step_of

KINDS = ("strip", "interpolate", "edit", "inpaint")
SEEDS = 8


@dataclass(frozen=True)
class Wish:
    """A picture that is asked for."""

    kind: str
    seeds: list[int]
    frames: int = 8
    way: Way = "spherical"
    sigmas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    image: Path | None = None
    mask: Path | None = None


def main(words: list[str]) -> int:
    """`python -m pipeline draw RUN_DIR strip|interpolate|edit|inpaint [--seeds 0-7] [options] [key=value ...]`."""
    parser = argparse.ArgumentParser(
        prog="pipeline draw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run directory, or experiment=NAME")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seeds", type=_seeds, default=list(range(SEEDS)), help="such as 0-7, or 3,5,8; default: 0-7")
    parser.add_argument("--frames", type=int, default=8, help="images a row, of strip and interpolate; default: 8")
    parser.add_argument("--way", choices=get_args(Way), default="spherical", help="of interpolate")
    parser.add_argument("--sigmas", type=_numbers, default=Wish.sigmas, help="noise levels of edit, such as 0.5,1,2")
    parser.add_argument("--image", type=Path, help="of edit and inpaint: of the size that the model draws")
    parser.add_argument("--mask", type=Path, help="of inpaint: white is painted anew, black stays")
    parser.add_argument("--step", help="of the checkpoint: a number, or best; default: sample.step, or else the newest")
    parser.add_argument("--to", type=Path, help="the PNG to write; default: in the run directory's drawings/")
    options, rest = parser.parse_known_args(words)
    run, cfg = existing_run([options.run, *rest])
    wish = Wish(**{name: getattr(options, name) for name in Wish.__dataclass_fields__})
    print(draw(cfg, run, wish, step=parse_step(options.step), to=options.to))
    return 0


def _seeds(text: str) -> list[int]:
    ends = [part.partition("-") for part in text.split(",")]
    return [seed for first, dash, last in ends for seed in range(int(first), int(last if dash else first) + 1)]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def draw(cfg: Config, run: RunDir, wish: Wish, *, step: Step = None, to: Path | None = None) -> Path:
    """Draw the picture; equal wishes are equal bytes in the same file. Returns its path.

    Raises:
        UserError: for a run without a checkpoint or of another kind, an image that is missing or of the wrong size.
    """
    _check(wish)
    require_latents(cfg)
    found = step_of(checkpoint.step_to_read(run, cfg.sample.step if step is None else step).name) or 0
    model = drawing.load_model(cfg, run, step=found)
    pixels, columns = _drawn(model, wish)
    return write_picture(to or run.path / "drawings" / step_name(found) / _name(cfg, wish), pixels, columns=columns)


def _check(wish: Wish) -> None:
    """Raise for a wish that lacks something, before anything is loaded."""
    given = {"--image": wish.image, "--mask": wish.mask}
    for option, kinds in {"--image": ("edit", "inpaint"), "--mask": ("inpaint",)}.items():
        if wish.kind in kinds and given[option] is None:
            raise UserError(f"draw {wish.kind}: {option} is missing. Give the path of an image.")
        if wish.kind not in kinds and given[option] is not None:
            raise UserError(f"draw {wish.kind}: {option} is not read; only {', '.join(kinds)} does.")
    fewest = 2 if wish.kind == "interpolate" else 1
    if len(wish.seeds) < fewest or min(wish.seeds) < 0:
        raise UserError(f"--seeds: found {wish.seeds}, expected at least {fewest}, from 0 on, such as 0-7 or 3,5,8.")
    if wish.frames < 2:
        raise UserError(f"--frames: found {wish.frames}, expected at least 2.")


def _drawn(model: Model, wish: Wish) -> tuple[Pixels, int]:
    """The images of the picture and how many stand in a row."""
    seeds = torch.tensor(wish.seeds)
    if wish.kind == "strip":
        return drawing.strip(model, seeds, frames=wish.frames), wish.frames
    if wish.kind == "interpolate":
        return drawing.interpolation(model, seeds, frames=wish.frames, way=wish.way), wish.frames
    image = _given(wish.image, model)
    if wish.kind == "edit":
        return drawing.edited(model, image, seeds, sigmas=list(wish.sigmas)), 1 + len(wish.sigmas)
    if wish.mask is None:
        raise TypeError("inpainting without a mask was let through")
    return drawing.inpainted(model, image, seeds, mask=drawing.read_mask(wish.mask, model)), 1 + len(wish.seeds)


def _given(path: Path | None, model: Model) -> Tensor:
    if path is None:
        raise TypeError("an edit without an image was let through")
    return drawing.read_image(path, model)


def _name(cfg: Config, wish: Wish) -> str:
    """Readable, and a hash of all that decides the picture."""
    files = [sha256_file(path) for path in (wish.image, wish.mask) if path is not None]
    settings = {**cfg.sample.model_dump(mode="json"), **tiling(cfg)}
    decides = [wish.seeds, wish.frames, wish.way, list(wish.sigmas), files, settings]
    return f"{wish.kind}-{sample_set_name(cfg).rsplit('-', 1)[0]}-{content_hash(decides)[:6]}.png"
