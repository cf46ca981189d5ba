"""Pictures that show how a diffusion model draws: strips, interpolations, edits, repaired parts. All from seeds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pipeline.config.paths import training_shards
from pipeline.config.schema import Config
from pipeline.data.pictures import Pixels, to_uint8
from pipeline.data.shards import ShardDirectory, open_shards
from pipeline.diffusion import editing
from pipeline.diffusion.build_sampler import Generator
from pipeline.diffusion.samplers import Noise
from pipeline.inference import asked_for, autocast, loaded_objective, weak_model
from pipeline.objectives.denoising import Denoising
from pipeline.runtime import distributed
from pipeline.runtime.errors import UserError
from pipeline.runtime.random import Stream
from pipeline.runtime.run_dir import RunDir

Way = Literal["spherical", "linear"]
HOLE = 0.0  # grey, where a picture shows what is to be painted


@dataclass(frozen=True)
class Model:
    """A trained diffusion model, and the settings that it is sampled with."""

    cfg: Config
    objective: Denoising
    weak: Denoising | None
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
        """What draws for `seeds` what each of them is asked for."""
        told = asked_for(self.cfg, seeds, self.train).to(self.device)
        weak = None if self.weak is None else self.weak.denoise(self.weak.networks, told.labels, told.attributes)
        return self.objective.generator(
            self.objective.networks,
            told.labels,
            attributes=told.attributes,
            sampler=self.cfg.sample.sampler,
            weak=weak,
        )

    def pixels(self, x0: Tensor) -> Pixels:
        """uint8 [B, H, W, C] of what the network makes."""
        return to_uint8(self.objective.images(x0))


def load_model(cfg: Config, run: RunDir, *, step: int) -> Model:
    """The model of a checkpoint.

    Raises:
        UserError: for a model that makes images in one step.
    """
    device = distributed.own_device()
    train = open_shards(training_shards(cfg) / "train")
    objective = loaded_objective(cfg, run, train.manifest, step=step, device=device)
    if not isinstance(objective, Denoising):
        raise UserError(
            f"{run.path} has model.kind={cfg.model.kind}, which makes images in one step: there is no way from noise "
            "to draw. Give the run of a diffusion model."
        )
    return Model(cfg, objective, weak_model(cfg, train.manifest, device), train, device)


@torch.inference_mode()
def strip(model: Model, seeds: Tensor, *, frames: int) -> Pixels:
    """For each seed its estimates of the image on the way from noise, evenly spaced, and the image: a row each."""
    generator, noise, fresh = model.generator(seeds), model.start(seeds), model.fresh(seeds)
    sampler = generator.sampler
    with autocast(model.cfg, model.device):
        seen = editing.strip(
            lambda denoise: sampler(denoise, sampler.start(noise), fresh), generator.denoise, frames=frames
        )
    return model.pixels(seen.transpose(0, 1).flatten(0, 1))


@torch.inference_mode()
def interpolation(model: Model, seeds: Tensor, *, frames: int, way: Way = "spherical") -> Pixels:
    """Images from each seed to the next one in `frames`, a row each: only the noise at the start moves.

    What the row is asked for, and the noise added on the way, are those of its first seed.
    """
    first, second = seeds[:-1], seeds[1:]
    between = editing.spherical if way == "spherical" else editing.linear
    shares = torch.linspace(0, 1, frames, device=model.device)
    noise = between(model.start(first), model.start(second), shares).transpose(0, 1).flatten(0, 1)
    each = first.repeat_interleave(frames)
    with autocast(model.cfg, model.device):
        return model.pixels(model.generator(each)(noise, model.fresh(each)))


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
        raise UserError("latents: this model works on latents, and images are edited in pixels only. Draw a strip.")
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
            f"{option}: {path} has {image.width} x {image.height} pixels, but the model draws {size[0]} x {size[1]}. "
            "Crop and resize it first."
        )
    return np.asarray(image)
