"""Adaptive discriminator augmentation (ADA), Karras et al. 2020, "Training generative adversarial networks with limited
data", arXiv:2006.06676: the discriminator sees real and generated images augmented alike, each change with
probability p, and p follows how far the discriminator is sure of its real images.

Two parts: `augment` (the paper's appendix B), a function of images, draws and p, differentiable by the images; and
`adjusted` (section 3.1, equation 1), p as a function of what the discriminator found. The generator does not learn to
draw augmented images while p stays below about 0.8 (section 2.2).

Positions are sampled bilinearly at the image's own resolution, where the paper doubles it and filters by wavelets.
Every image is computed by itself: nothing depends on how a batch is divided.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.schema_objectives import AdaConfig
from pipeline.runtime.random import Stream, normal, uniform

# What the uniform numbers of an image decide: first whether each change is made, then amounts.
GATES = (
    *("flip", "quarter", "whole_shift", "scale", "turn_before", "stretch", "turn_after", "shift"),
    *("brightness", "contrast", "luma_flip", "hue", "saturation"),
)
AMOUNTS = ("flip", "quarter", "right", "down", "turn_before", "turn_after", "luma_flip", "hue")
NORMALS = ("scale", "stretch", "right", "down", "brightness", "contrast", "saturation")
_SHIFT = 0.125  # of a side: the largest whole shift, and the deviation of the fractional one
_SCALE, _CONTRAST, _SATURATION = 0.2, 0.5, 1.0  # deviations of base-2 logarithms
_BRIGHTNESS = 0.2  # deviation; pixels are in [-1, 1]
_NORMAL_DRAWS = 2**8  # normal numbers are other draws of the stream than uniform ones

Form = Tensor
"""A position's coordinate as a linear function of the output's (x, y, 1): [B, 3] float64."""


@dataclass(frozen=True)
class Draws:
    """Random numbers of images by name, [B] each: `gates` and `amounts` uniform in (0, 1), `normals` normal."""

    gates: dict[str, Tensor]
    amounts: dict[str, Tensor]
    normals: dict[str, Tensor]


def draws(seed: int, sample_indices: Tensor, *, draw: int) -> Draws:
    """The numbers of each image number of `sample_indices` [B]; `draw` keeps real and generated images apart."""
    flat = uniform(seed, Stream.ADA, sample_indices, shape=(len(GATES) + len(AMOUNTS),), draw=draw).double().unbind(1)
    bells = (
        normal(seed, Stream.ADA, sample_indices, shape=(len(NORMALS),), draw=draw + _NORMAL_DRAWS).double().unbind(1)
    )
    gates, amounts = flat[: len(GATES)], flat[len(GATES) :]
    return Draws(
        dict(zip(GATES, gates, strict=True)),
        dict(zip(AMOUNTS, amounts, strict=True)),
        dict(zip(NORMALS, bells, strict=True)),
    )


def adjusted(p: Tensor, sign: Tensor, *, target: float, amount: float) -> Tensor:
    """p a step of `amount` nearer to where E[sign(D(real))] is `target`, within [0, 1]: section 3.1.

    Too many positive scores of real images mean overfitting (r_t of equation 1): p grows. Scalars on the device.
    """
    return (p + amount * torch.sign(sign - target)).clamp(0, 1).to(p.dtype)


def augment(images: Tensor, drawn: Draws, p: Tensor, *, groups: tuple[str, ...] = AdaConfig().groups) -> Tensor:
    """Each change with probability `p` (a scalar on the device), in the paper's order: images [B, C, H, W] -> the same.

    At p = 0 the images themselves, exactly. `groups`: "blit" (flip, quarter turns, whole shifts), "geometric",
    "colour".
    """
    if {"blit", "geometric"} & set(groups):
        images = sampled(images, *positions(drawn, p, groups=groups, size=(images.shape[2], images.shape[3])))
    return coloured(images, drawn, p) if "colour" in groups else images


def positions(drawn: Draws, p: Tensor, *, groups: tuple[str, ...], size: tuple[int, int]) -> tuple[Form, Form]:
    """Where each pixel of the result is taken from: its x and y about the middle of the image, in pixels.

    The changes are undone from the last to the first. Quarter turns, flips and whole shifts are exact.
    """
    height, width = size
    one, zero = torch.ones_like(drawn.gates["flip"]), torch.zeros_like(drawn.gates["flip"])
    x, y = torch.stack([one, zero, zero], 1), torch.stack([zero, one, zero], 1)
    chance, turns = p.double(), 1 - torch.sqrt(1 - p.double())  # two turns together are made with probability p

    def some(name: str, change: Tensor, *, chance: Tensor = chance, neutral: float = 0.0) -> Tensor:
        return torch.where(drawn.gates[name] < chance, change, neutral)

    def angle(name: str) -> Tensor:
        return some(name, math.pi * (2 * drawn.amounts[name] - 1), chance=turns)

    bells = drawn.normals
    if "geometric" in groups:
        x, y = _shifted(
            x, y, some("shift", _SHIFT * width * bells["right"]), some("shift", _SHIFT * height * bells["down"])
        )
        x, y = _turned(x, y, angle("turn_after").cos(), angle("turn_after").sin())
        stretch = torch.exp2(some("stretch", _SCALE * bells["stretch"]))[:, None]
        x, y = _turned(x / stretch, y * stretch, angle("turn_before").cos(), angle("turn_before").sin())
        scale = torch.exp2(some("scale", _SCALE * bells["scale"]))[:, None]
        x, y = x / scale, y / scale
    if "blit" in groups:
        right, down = (2 * drawn.amounts[name] - 1 for name in ("right", "down"))
        x, y = _shifted(
            x,
            y,
            some("whole_shift", (_SHIFT * width * right).round()),
            some("whole_shift", (_SHIFT * height * down).round()),
        )
        quarter = some("quarter", (4 * drawn.amounts["quarter"]).floor())
        x, y = _turned(x, y, _at(quarter, 0) - _at(quarter, 2), _at(quarter, 1) - _at(quarter, 3))
        x = x * some("flip", 1 - 2 * (2 * drawn.amounts["flip"]).floor(), neutral=1.0)[:, None]
    return x, y


def _at(quarter: Tensor, number: int) -> Tensor:
    return (quarter == number).double()


def _shifted(x: Form, y: Form, right: Tensor, down: Tensor) -> tuple[Form, Form]:
    zero = torch.zeros_like(right)
    return x - torch.stack([zero, zero, right], 1), y - torch.stack([zero, zero, down], 1)


def _turned(x: Form, y: Form, cosine: Tensor, sine: Tensor) -> tuple[Form, Form]:
    """The image is turned against the clock; y points down."""
    c, s = cosine[:, None], sine[:, None]
    return c * x - s * y, s * x + c * y


def sampled(images: Tensor, x: Form, y: Form) -> Tensor:
    """Images at the positions, bilinearly; beyond the edge is the mirror image, without the edge itself twice.

    Four gathers, whose gradients are sums that a GPU can take in a fixed order; `grid_sample`'s cannot be.
    """
    height, width = images.shape[2:]
    rows, columns = (torch.arange(n, dtype=torch.float64, device=images.device) - (n - 1) / 2 for n in (height, width))

    def at(form: Form, size: int) -> Tensor:
        a, b, c = (part[:, None, None] for part in form.unbind(1))
        return a * columns[None, None, :] + b * rows[None, :, None] + c + (size - 1) / 2

    across, down = at(x, width), at(y, height)
    left, top = across.floor(), down.floor()
    shares = {"x": (across - left), "y": (down - top)}
    flat, out = images.flatten(2), None
    for dy in (0, 1):
        for dx in (0, 1):
            place = _mirrored(top + dy, height) * width + _mirrored(left + dx, width)
            weight = (shares["x"] if dx else 1 - shares["x"]) * (shares["y"] if dy else 1 - shares["y"])
            tap = flat.gather(2, place.flatten(1)[:, None].expand(-1, flat.shape[1], -1))
            part = weight.flatten(1)[:, None].to(images.dtype) * tap
            out = part if out is None else out + part
    return out.reshape(images.shape)  # type: ignore[union-attr]  # there are four


def _mirrored(place: Tensor, size: int) -> Tensor:
    """A whole position anywhere as an index of 0 ... size - 1, reflected at the first and last pixel."""
    return (torch.remainder(place + (size - 1), 2 * size - 2) - (size - 1)).abs().long()


def coloured(images: Tensor, drawn: Draws, p: Tensor) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation: what the paper writes as one matrix on colours.

    A colour is its mean and the rest, which is perpendicular to grey. Brightness and luma flip change the mean, hue
    turns the rest, saturation scales it, contrast scales both. Written as a change that is added: of nothing, exactly
    nothing.
    """

    def some(name: str, change: Tensor, *, neutral: float = 0.0) -> Tensor:
        return torch.where(drawn.gates[name] < p, change, neutral)[:, None, None, None].to(images.dtype)

    bells = drawn.normals
    bright = some("brightness", _BRIGHTNESS * bells["brightness"])
    contrast = some("contrast", torch.exp2(_CONTRAST * bells["contrast"]), neutral=1.0)
    flip = some("luma_flip", 1 - 2 * (2 * drawn.amounts["luma_flip"]).floor(), neutral=1.0)
    mean = images.mean(dim=1, keepdim=True)
    changed = images + (flip * contrast * (mean + bright) - mean)
    if images.shape[1] != 3:  # greyscale: there is no rest
        return changed
    turn = some("hue", math.pi * (2 * drawn.amounts["hue"] - 1))
    strength = contrast * some("saturation", torch.exp2(_SATURATION * bells["saturation"]), neutral=1.0)
    rest = images - mean
    crossed = (rest.roll(1, dims=1) - rest.roll(-1, dims=1)) / math.sqrt(3)  # (1, 1, 1) / sqrt(3) times the rest
    return changed + (strength * turn.cos() - 1) * rest + strength * turn.sin() * crossed
