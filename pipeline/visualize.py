"""The visualize job: pictures of how a trained model makes images, and of what it can do with given ones.

Models that make an image at once of a vector (GAN, VAE) have `interpolate`; diffusion models have everything.

mudi visualize RUN_DIR strip --seeds 0-7 --frames 8          from noise to image
mudi visualize RUN_DIR interpolate --seeds 0-4 --frames 9    from one seed to the next
mudi visualize RUN_DIR interpolate --seeds 5 --classes 0,3   from one class to another, the noise kept
mudi visualize RUN_DIR interpolate --space w                 of a GAN: straight between its styles
mudi visualize RUN_DIR edit --image a.png --sigmas 0.5,1,2   a new image from a given one (SDEdit)
mudi visualize RUN_DIR inpaint --image a.png --mask b.png    white of the mask is painted anew
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pipeline import checkpoint
from pipeline.config.autoencoder import require_latents
from pipeline.config.paths import sample_set_name, tiling, training_shards
from pipeline.config.schema import Config
from pipeline.data.pictures import Pixels, class_names, to_uint8, write_picture
from pipeline.data.shards import ShardDirectory, open_shards
from pipeline.diffusion import editing
from pipeline.diffusion.build_sampler import Generator
from pipeline.diffusion.samplers import Noise
from pipeline.inference import asked_for, autocast, guide_model, loaded_objective
from pipeline.objectives.denoising import Denoising
from pipeline.objectives.objective import FromLatents
from pipeline.runtime import distributed
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import content_hash, sha256_file
from pipeline.runtime.random import Stream
from pipeline.runtime.run_dir import RunDir, Step, existing_run, parse_step, step_name, step_of

Kind = Literal["strip", "interpolate", "edit", "inpaint"]
Show = Literal["estimate", "noisy", "both"]
Interpolation = Literal["spherical", "linear"]
Space = Literal["z", "w"]
HOLE = 0.0  # grey, where a picture shows what is to be painted


@dataclass(frozen=True)
class Request:
    """A picture that is asked for; see `main` for what its fields mean."""

    kind: Kind
    seeds: list[int]
    frames: int = 8
    show: Show = "estimate"
    interpolation: Interpolation = "spherical"
    classes: tuple[int, int] | None = None
    space: Space = "z"
    sigmas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    image: Path | None = None
    mask: Path | None = None


def main(argv: list[str]) -> int:
    """`mudi visualize RUN_DIR strip|interpolate|edit|inpaint [--seeds 0-7] [options] [key=value ...]`."""
    parser = argparse.ArgumentParser(
        prog="mudi visualize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run directory, or experiment=NAME")
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("--seeds", type=_seeds, default=list(range(8)), help="such as 0-7, or 3,5,8; default: 0-7")
    parser.add_argument("--frames", type=int, default=8, help="images a row, of strip and interpolate; default: 8")
    parser.add_argument("--show", choices=get_args(Show), default="estimate", help="of strip: x_t, or what it shall be")
    parser.add_argument("--interpolation", choices=get_args(Interpolation), default="spherical", help="of noise")
    parser.add_argument("--classes", type=_two, help="of interpolate: from one class to another, such as 0,3")
    parser.add_argument("--space", choices=get_args(Space), default="z", help="of interpolate: a GAN's z, or styles w")
    parser.add_argument("--sigmas", type=_numbers, default=Request.sigmas, help="noise levels of edit, such as 0.5,1,2")
    parser.add_argument("--image", type=Path, help="of edit and inpaint: of the size that the model makes")
    parser.add_argument("--mask", type=Path, help="of inpaint: white is painted anew, black stays")
    parser.add_argument("--step", help="of the checkpoint: a number, or best; default: sample.step, or else the newest")
    parser.add_argument("--to", type=Path, help="the PNG to write; default: in the run directory's visualizations/")
    options, rest = parser.parse_known_args(argv)
    run, cfg = existing_run([options.run, *rest])
    request = Request(**{name: getattr(options, name) for name in Request.__dataclass_fields__})
    print(visualize(cfg, run, request, step=parse_step(options.step), to=options.to))
    return 0


def visualize(cfg: Config, run: RunDir, request: Request, *, step: Step = None, to: Path | None = None) -> Path:
    """Write the picture; equal requests are equal bytes in the same file. Returns its path.

    Raises:
        UserError: for a run without a checkpoint or of another kind, an image that is missing or of the wrong size.
    """
    _check(request)
    require_latents(cfg)
    found = step_of(checkpoint.step_to_read(run, cfg.sample.step if step is None else step).name) or 0
    model = load_any(cfg, run, step=found)
    pixels, columns = _picture(model, request)
    path = to or run.path / "visualizations" / step_name(found) / _name(cfg, request)
    return write_picture(path, pixels, columns=columns, names=row_names(model, request, rows=len(pixels) // columns))


def _seeds(text: str) -> list[int]:
    ends = [part.partition("-") for part in text.split(",")]
    return [seed for first, dash, last in ends for seed in range(int(first), int(last if dash else first) + 1)]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _two(text: str) -> tuple[int, int]:
    first, second = map(int, text.split(","))
    return first, second


def _check(request: Request) -> None:
    """Raise for a request that lacks something, before anything is loaded."""
    given = {"--image": request.image, "--mask": request.mask}
    for option, kinds in {"--image": ("edit", "inpaint"), "--mask": ("inpaint",)}.items():
        if request.kind in kinds and given[option] is None:
            raise UserError(f"visualize {request.kind}: {option} is missing. Give the path of an image.")
        if request.kind not in kinds and given[option] is not None:
            raise UserError(f"visualize {request.kind}: {option} is not read; only {', '.join(kinds)} does.")
    if request.classes is not None and request.kind != "interpolate":
        raise UserError(
            f"visualize {request.kind}: --classes is not read; only interpolate does. Use sample.classes=[0]."
        )
    fewest = 2 if request.kind == "interpolate" and request.classes is None else 1
    if len(request.seeds) < fewest or min(request.seeds) < 0:
        raise UserError(f"--seeds: found {request.seeds}, expected at least {fewest}, from 0 on, such as 0-7 or 3,5,8.")
    if request.frames < 2:
        raise UserError(f"--frames: found {request.frames}, expected at least 2.")


def _picture(model: "Model | AtOnce", request: Request) -> tuple[Pixels, int]:
    """The images of the picture and how many stand in a row."""
    seeds, frames = torch.tensor(request.seeds), request.frames
    if isinstance(model, AtOnce):
        if request.kind != "interpolate":
            raise UserError(
                f"visualize {request.kind}: model.kind={model.cfg.model.kind} makes images in one step: there is no "
                "way from noise to show. Use interpolate, or give the run of a diffusion model."
            )
        if request.classes is not None:
            raise UserError(f"--classes: model.kind={model.cfg.model.kind} draws in one step. Give two seeds instead.")
        return between_vectors(model, seeds, request), frames
    if request.space != "z":
        raise UserError(
            f"--space: found {request.space}, but model.kind={model.cfg.model.kind} has no styles. Leave it out, or "
            "give the run of a GAN."
        )
    image = None if request.image is None else read_image(request.image, model)
    mask = None if request.mask is None else read_mask(request.mask, model)
    if image is None:
        if request.kind == "strip":
            return strip(model, seeds, frames=frames, show=request.show), frames
        if request.classes is not None:
            return between_classes(model, seeds, request.classes, frames=frames), frames
        return interpolation(model, seeds, frames=frames, kind=request.interpolation), frames
    if mask is None:
        return edited(model, image, seeds, sigmas=list(request.sigmas)), 1 + len(request.sigmas)
    return inpainted(model, image, seeds, mask=mask), 1 + len(seeds)


def row_names(model: "Model | AtOnce", request: Request, *, rows: int) -> list[str]:
    """The class that each row shows; [] where rows are no seeds."""
    if request.kind == "inpaint" or request.classes is not None:
        return []
    labels = asked_for(model.cfg, torch.tensor(request.seeds), model.train).labels.tolist()
    names = class_names(model.train.manifest.classes, labels[: len(labels) - (request.kind == "interpolate")])
    return [names[row * len(names) // rows] for row in range(rows)]  # of strip --show both, two rows a seed


def _name(cfg: Config, request: Request) -> str:
    """Readable, and a hash of all that decides the picture."""
    files = [sha256_file(path) for path in (request.image, request.mask) if path is not None]
    settings = {**cfg.sample.model_dump(mode="json"), **tiling(cfg)}
    options = [request.seeds, request.frames, request.show, request.interpolation, request.sigmas]
    options += [] if request.classes is None else [request.classes]
    options += [] if request.space == "z" else [request.space]
    decides = content_hash([*options, files, settings])
    return f"{request.kind}-{sample_set_name(cfg).rsplit('-', 1)[0]}-{decides[:6]}.png"


@dataclass(frozen=True)
class Model:
    """A trained diffusion model, and the settings that it is sampled with."""

    cfg: Config
    objective: Denoising
    guide: Denoising | None
    train: ShardDirectory
    device: torch.device

    def start(self, seeds: Tensor) -> Tensor:
        """The noise that the images of `seeds` begin with."""
        return self.objective.noise(seeds.to(self.device), Stream.SAMPLE_START)

    def fresh(self, seeds: Tensor) -> Noise:
        """The noise that samplers add on the way."""
        numbers = seeds.to(self.device)
        return lambda draw: self.objective.noise(numbers, Stream.SAMPLE_STEP, draw)

    def generator(self, seeds: Tensor) -> Generator:
        """The sampler and the denoiser under the condition of each seed."""
        condition = asked_for(self.cfg, seeds, self.train).to(self.device)
        labels, attributes = condition.labels, condition.attributes
        guide = None if self.guide is None else self.guide.denoise(self.guide.networks, labels, attributes)
        networks, sampler = self.objective.networks, self.cfg.sample.sampler
        return self.objective.generator(networks, labels, attributes=attributes, sampler=sampler, guide=guide)

    def pixels(self, x0: Tensor) -> Pixels:
        """uint8 [B, H, W, C] of what the network makes."""
        return to_uint8(self.objective.images(x0))


@dataclass(frozen=True)
class AtOnce:
    """A trained model that makes an image of a vector in one step."""

    cfg: Config
    objective: FromLatents
    train: ShardDirectory
    device: torch.device


def load_any(cfg: Config, run: RunDir, *, step: int) -> Model | AtOnce:
    """The model of a checkpoint.

    Raises:
        UserError: for a model that makes no images of noise.
    """
    device = distributed.own_device()
    train = open_shards(training_shards(cfg) / "train")
    objective = loaded_objective(cfg, run, train.manifest, step=step, device=device)
    if isinstance(objective, Denoising):
        return Model(cfg, objective, guide_model(cfg, train.manifest, device), train, device)
    if isinstance(objective, FromLatents):
        return AtOnce(cfg, objective, train, device)
    raise UserError(
        f"{run.path} has model.kind={cfg.model.kind}, which makes no images of noise. Give the run of another model."
    )


def load_model(cfg: Config, run: RunDir, *, step: int) -> Model:
    """The diffusion model of a checkpoint."""
    model = load_any(cfg, run, step=step)
    if not isinstance(model, Model):
        raise UserError(
            f"{run.path} has model.kind={cfg.model.kind}, which makes images in one step: there is no way from noise "
            "to show. Give the run of a diffusion model."
        )
    return model


@torch.inference_mode()
def strip(model: Model, seeds: Tensor, *, frames: int, show: Show = "estimate") -> Pixels:
    """A row for each seed, evenly spaced over the sampler's calls of the network; the last is the image.

    `show`: the estimates of the image, or the noisy x_t that the network saw, scaled to a deviation of about 1; of
    both, x_t stands in the row above.
    """
    generator, noise, fresh = model.generator(seeds), model.start(seeds), model.fresh(seeds)
    sampler = generator.sampler
    with autocast(model.cfg, model.device):
        noisy, estimates = editing.strip(
            lambda denoise: sampler(denoise, sampler.start(noise), fresh), generator.denoise, frames=frames
        )
    rows = {"estimate": [estimates], "noisy": [noisy], "both": [noisy, estimates]}[show]
    return model.pixels(torch.stack(rows, dim=1).permute(2, 1, 0, 3, 4, 5).flatten(0, 2))


@torch.inference_mode()
def interpolation(model: Model, seeds: Tensor, *, frames: int, kind: Interpolation = "spherical") -> Pixels:
    """Images from each seed to the next one in `frames`, a row each: only the noise at the start changes.

    The condition of a row, and the noise added on the way, are those of its first seed.
    """
    first, second = seeds[:-1], seeds[1:]
    between = editing.spherical if kind == "spherical" else editing.linear
    shares = torch.linspace(0, 1, frames, device=model.device)
    noise = between(model.start(first), model.start(second), shares).transpose(0, 1).flatten(0, 1)
    each = first.repeat_interleave(frames)
    with autocast(model.cfg, model.device):
        return model.pixels(model.generator(each)(noise, model.fresh(each)))


@torch.inference_mode()
def between_classes(model: Model, seeds: Tensor, classes: tuple[int, int], *, frames: int) -> Pixels:
    """Images of each seed from one class to another in `frames`, a row each: the noise stays the same.

    A network knows whole classes alone. So every step mixes its estimates of the image for both classes.

    Raises:
        UserError: for a class that the data has not, and for a model without classes as its condition.
    """
    if model.cfg.model.condition != "class":
        raise UserError(f"--classes: model.condition is {model.cfg.model.condition}, expected class. Give two seeds.")
    each = seeds.repeat_interleave(frames)
    shares = torch.linspace(0, 1, frames, device=model.device).repeat(len(seeds)).view(-1, 1, 1, 1)
    first, second = (replace(model, cfg=_of_class(model.cfg, c)).generator(each) for c in classes)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(first.denoise(x, sigma), second.denoise(x, sigma), shares)

    with autocast(model.cfg, model.device):
        return model.pixels(Generator(denoise, first.sampler)(model.start(each), model.fresh(each)))


def _of_class(cfg: Config, number: int) -> Config:
    return cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"classes": (number,)})})


@torch.inference_mode()
def between_vectors(model: AtOnce, seeds: Tensor, request: Request) -> Pixels:
    """Images from each seed's vector to the next one's, a row each: spherical or linear in z, straight in w.

    The condition of a row, and the noise of a GAN's layers, are those of its first seed.
    """
    straight = request.space == "w" or request.interpolation == "linear"
    shares = torch.linspace(0, 1, request.frames, device=model.device)
    asked = asked_for(model.cfg, seeds[:-1], model.train).to(model.device)
    seeds, mix = seeds.to(model.device), editing.linear if straight else editing.spherical
    with autocast(model.cfg, model.device):
        images = model.objective.between(
            model.objective.latents(seeds),
            (asked.labels, asked.attributes),
            seeds=seeds[:-1],
            mix=lambda first, second: mix(first, second, shares),
            space=request.space,
            psi=model.cfg.sample.sampler.truncation,
        )
    return to_uint8(images)


@torch.inference_mode()
def edited(model: Model, image: Tensor, seeds: Tensor, *, sigmas: list[float]) -> Pixels:
    """The image [C, H, W], and what each seed makes of it after noise of each level: a row for each seed.

    The more noise, the less of the image is kept (Meng et al. 2022: SDEdit).
    """
    generator, noise, fresh = model.generator(seeds), model.start(seeds), model.fresh(seeds)
    given = image.to(model.device).expand(len(seeds), -1, -1, -1)
    columns, highest = [given], float(generator.sampler.sigmas[0])
    for sigma in sigmas:
        if not 0 < sigma <= highest:
            raise UserError(f"--sigmas: found {sigma:g}, expected noise above 0 and at most the sampler's {highest}.")
        rest, x = generator.sampler.from_image(given, noise, sigma=sigma)
        with autocast(model.cfg, model.device):
            columns.append(rest(generator.denoise, x, fresh))
    return to_uint8(torch.stack(columns, dim=1).flatten(0, 1))


@torch.inference_mode()
def inpainted(model: Model, image: Tensor, seeds: Tensor, *, mask: Tensor) -> Pixels:
    """The image [C, H, W] with a hole where `mask` [H, W] is 1, then one image a seed that fills it: a single row."""
    generator = model.generator(seeds)
    known, keep = image.to(model.device), 1 - mask.to(model.device)
    denoise = editing.inpainted(generator.denoise, known, mask=keep)
    with autocast(model.cfg, model.device):
        painted = Generator(denoise, generator.sampler)(model.start(seeds), model.fresh(seeds))
    hole = torch.lerp(torch.full_like(known, HOLE), known, keep)
    return to_uint8(torch.cat([hole[None], painted]))


def read_image(path: Path, model: Model) -> Tensor:
    """[C, H, W] in [-1, 1], of the model's size and channels.

    Raises:
        UserError: for a file that is no image or of another size, and for a model of latents.
    """
    channels, height, width = model.train.manifest.layout.shape
    if model.train.manifest.kind == "latents":
        raise UserError("latents: this model works on latents, and images are edited in pixels only. Show a strip.")
    pixels = _opened(path, "L" if channels == 1 else "RGB", option="--image", size=(width, height))
    return torch.from_numpy(pixels.reshape(height, width, channels).transpose(2, 0, 1).copy()) / 127.5 - 1


def read_mask(path: Path, model: Model) -> Tensor:
    """[H, W] in [0, 1]: 1 where the mask is white."""
    _, height, width = model.train.manifest.layout.shape
    mask = torch.from_numpy(_opened(path, "L", option="--mask", size=(width, height)).copy()) / 255
    if not mask.any():
        raise UserError(f"--mask: {path} is all black, so there is nothing to paint. White pixels are painted anew.")
    return mask


def _opened(path: Path, mode: str, *, option: str, size: tuple[int, int]) -> Pixels:
    if not path.is_file():
        raise UserError(f"{option}: {path} does not exist. Give the path of an image.")
    try:
        with Image.open(path) as file:
            image = file.convert(mode)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{option}: {path} cannot be read as an image ({error}). Give a PNG or JPEG.") from error
    if image.size != size:
        raise UserError(
            f"{option}: {path} has {image.width} x {image.height} pixels, but the model makes {size[0]} x {size[1]}. "
            "Crop and resize it first."
        )
    return np.asarray(image)
