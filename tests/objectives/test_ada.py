"""Adaptive discriminator augmentation: each change against its closed form, gradients, and the controller of p."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline.objectives import ada
from pipeline.objectives.ada import AMOUNTS, GATES, NORMALS, Draws, adjusted, augment, draws

ALL, NEVER = torch.tensor(1.0), torch.tensor(0.0)
ON, OFF = 0.25, 0.75  # gates, where p is 0.5
HALF = torch.tensor(0.5)


def images(count=4, channels=3, size=8, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.rand(count, channels, size, size, dtype=dtype) * 2 - 1


def made(count=4, *, gates=(), **values):
    """Draws that make the changes named by `gates` alone; `values` are amounts, or normal numbers under "n_"."""
    full = lambda value: torch.full((count,), float(value), dtype=torch.float64)  # noqa: E731
    return Draws(
        {name: full(ON if name in gates else OFF) for name in GATES},
        {name: full(values.get(name, 0.5)) for name in AMOUNTS},
        {name: full(values.get(f"n_{name}", 0.0)) for name in NORMALS},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_without_probability_nothing_changes(channels, dtype):
    x = images(64, channels, 16, dtype)
    assert torch.equal(augment(x, draws(5, torch.arange(64), draw=0), NEVER), x)


@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_are_exact(turns):
    x = images()
    found = augment(x, made(gates=["quarter"], quarter=(turns + 0.5) / 4), HALF)
    assert torch.equal(found, torch.rot90(x, turns, dims=(2, 3)))


def test_a_mirrored_image_is_exact():
    x = images()
    assert torch.equal(augment(x, made(gates=["flip"], flip=0.9), HALF), x.flip(3))
    assert torch.equal(augment(x, made(gates=["flip"], flip=0.1), HALF), x)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, -1), (-1, 1)])
def test_whole_shifts_are_those_of_a_padded_image(right, down):
    """Beyond the edge is the mirror image, as torch pads by reflection."""
    x = images(size=8)  # an eighth of a side is one pixel
    found = augment(x, made(gates=["whole_shift"], right=(right + 1) / 2, down=(down + 1) / 2), HALF)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    assert torch.equal(found, padded[:, :, 2 - down : 10 - down, 2 - right : 10 - right])


def ramp(size=17):
    """An image whose values are the positions of its pixels about the middle: [1, 2, H, W] of x and y."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.stack([place.expand(size, size), place[:, None].expand(size, size)])[None]


def inner(x, margin=6):
    return x[:, :, margin:-margin, margin:-margin]


@pytest.mark.parametrize(
    ("gate", "values", "expected"),
    [
        ("scale", {"n_scale": 2.0}, lambda x, y: (x * 2**-0.4, y * 2**-0.4)),
        ("stretch", {"n_stretch": 2.0}, lambda x, y: (x * 2**-0.4, y * 2**0.4)),
        ("shift", {"n_right": 0.3, "n_down": -0.2}, lambda x, y: (x - 0.0375 * 17, y + 0.025 * 17)),
        *(
            (f"turn_{when}", {f"turn_{when}": (1 + 1 / 6) / 2}, lambda x, y: turned(x, y, math.pi / 6))
            for when in ("before", "after")
        ),
    ],
)
def test_geometry_takes_pixels_from_where_its_closed_form_says(gate, values, expected):
    """Bilinear sampling of a linear image is exact: the result is the position that was looked at."""
    found = augment(ramp(), made(1, gates=[gate], **values), torch.tensor(0.6), groups=("blit", "geometric"))
    x, y = ramp()[:, 0], ramp()[:, 1]
    assert torch.allclose(inner(found), inner(torch.stack(expected(x, y), 1)), atol=1e-12)


def turned(x, y, angle):
    return math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y


def test_changes_come_in_the_papers_order():
    """Undone from the last: what is scaled first and shifted then is looked at shifted back, then scaled back."""
    drawn = made(1, gates=["shift", "scale"], n_scale=2.0, n_right=0.3)
    found = augment(ramp(), drawn, HALF, groups=("geometric",))
    assert torch.allclose(inner(found)[:, 0], (inner(ramp())[:, 0] - 0.0375 * 17) * 2**-0.4, atol=1e-12)


def test_two_turns_together_have_the_probability_p():
    drawn = draws(0, torch.arange(20000), draw=0)
    plain = replace(drawn, gates={**drawn.gates, **{n: torch.ones(20000) for n in ("scale", "stretch", "shift")}})
    x, _ = ada.positions(plain, HALF, groups=("geometric",), size=(8, 8))
    assert ((x[:, 1] != 0).double().mean() - 0.5).abs() < 0.015


def colour_matrix(*, b=0.0, c=1.0, flip=False, angle=0.0, s=1.0):
    """The paper's product of matrices on homogeneous colours (appendix B)."""
    v = torch.ones(3, dtype=torch.float64) / math.sqrt(3)
    grey, one = torch.outer(v, v), torch.eye(3, dtype=torch.float64)
    cross = torch.tensor([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]], dtype=torch.float64)
    hue = grey + math.cos(angle) * (one - grey) + math.sin(angle) * cross
    return (grey + s * (one - grey)) @ hue @ (one - 2 * grey * flip) * c, b


@pytest.mark.parametrize(
    ("gates", "values", "settings"),
    [
        (["brightness"], {"n_brightness": 1.5}, {"b": 0.3}),
        (["contrast"], {"n_contrast": 2.0}, {"c": 2.0}),
        (["luma_flip"], {"luma_flip": 0.9}, {"flip": True}),
        (["hue"], {"hue": 0.6}, {"angle": 0.2 * math.pi}),
        (["saturation"], {"n_saturation": -1.0}, {"s": 0.5}),
        (
            ["brightness", "contrast", "luma_flip", "hue", "saturation"],
            {"n_brightness": 1.5, "n_contrast": 2.0, "luma_flip": 0.9, "hue": 0.6, "n_saturation": -1.0},
            {"b": 0.3, "c": 2.0, "flip": True, "angle": 0.2 * math.pi, "s": 0.5},
        ),
    ],
)
def test_colours_are_those_of_the_papers_matrices(gates, values, settings):
    x = images()
    matrix, b = colour_matrix(**settings)
    expected = torch.einsum("dc,bchw->bdhw", matrix, x + b)
    assert torch.allclose(augment(x, made(gates=gates, **values), HALF), expected, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_pass_through_all_of_it(channels):
    x = images(3, channels, 5).requires_grad_()
    drawn = draws(1, torch.arange(3), draw=1)
    assert torch.autograd.gradcheck(lambda x: augment(x, drawn, ALL), (x,))
    assert torch.autograd.gradgradcheck(lambda x: augment(x, drawn, ALL).square(), (x,))


def test_a_change_belongs_to_its_image_number():
    x, numbers = images(8), torch.arange(10, 18)
    whole = augment(x, draws(3, numbers, draw=0), ALL)
    parts = [augment(x[s], draws(3, numbers[s], draw=0), ALL) for s in (slice(0, 3), slice(3, 8))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.allclose(augment(x, draws(3, numbers, draw=1), ALL), whole, atol=1e-2)
    assert not torch.allclose(augment(x, draws(4, numbers, draw=0), ALL), whole, atol=1e-2)


def test_p_moves_towards_the_target_and_stays_in_its_range():
    p, amount = torch.tensor(0.3), 0.1
    assert adjusted(p, torch.tensor(0.9), target=0.6, amount=amount).item() == pytest.approx(0.4)
    assert adjusted(p, torch.tensor(-0.2), target=0.6, amount=amount).item() == pytest.approx(0.2)
    assert adjusted(torch.tensor(0.05), torch.tensor(0.0), target=0.6, amount=amount).item() == 0
    assert adjusted(torch.tensor(0.95), torch.tensor(1.0), target=0.6, amount=amount).item() == 1


def test_p_holds_a_discriminator_at_the_target():
    """One whose r_t falls from 1 to 0.2 as p grows has r_t = 0.6 at p = 0.5."""
    p = torch.tensor(0.0)
    for _ in range(200):
        p = adjusted(p, 1 - 0.8 * p, target=0.6, amount=0.01)
    assert p.item() == pytest.approx(0.5, abs=0.011)
