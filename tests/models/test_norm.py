"""Norms of blocks: the plain formula, its precision, and the fused kernels against it.

The kernels run on a GPU where there is one, else in Triton's interpreter.
"""

import os

import pytest
import torch
from torch.nn import functional

from pipeline.models.norm import GroupNorm, LayerNorm

SHAPES = [(2, 64, 8, 8, 32), (3, 24, 5, 7, 4), (2, 192, 20, 16, 32), (1, 12, 17, 17, 3), (2, 8, 1, 1, 2)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def formula(x, weight, bias, *, groups, before, scale, shift, silu):
    out = functional.group_norm(x if before is None else x + before[..., None, None], groups, weight, bias, 1e-5)
    out = out if scale is None else out * (1 + scale[..., None, None]) + shift[..., None, None]
    return functional.silu(out) if silu else out


def inputs(shape, *, moved, modulated, dtype=torch.float32):
    """x, weight, bias, before, scale, shift, with gradients wanted; a mean far from zero."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width, _ = shape

    def drawn(*size):
        return torch.randn(*size, generator=generator).to(DEVICE)

    x = (drawn(batch, channels, height, width) * 2 + 3).to(dtype).to(memory_format=torch.channels_last)
    each = [drawn(batch, channels) for _ in range(3)]
    found = [x, drawn(channels), drawn(channels), each[0] if moved else None]
    found += each[1:] if modulated else [None, None]
    return [None if v is None else v.requires_grad_() for v in found]


def error(found, expected):
    return float(
        (found.detach().double() - expected.detach().double()).norm()
        / expected.detach().double().norm().clamp(min=1e-30)
    )


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_the_module_is_the_formula_and_keeps_its_precision(modulated, silu):
    norm = GroupNorm(4, 24).to(DEVICE)
    x, weight, bias, before, scale, shift = inputs(SHAPES[1], moved=True, modulated=modulated)
    norm.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    known = {"before": before, "scale": scale, "shift": shift, "silu": silu}
    assert error(norm(x, **known), formula(x, weight, bias, groups=4, **known)) < 1e-6
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        narrow = norm(x.bfloat16(), **known)
    assert narrow.dtype == torch.bfloat16
    assert error(narrow, norm(x, **known)) < 1e-2


def test_a_layer_norm_keeps_its_precision():
    tokens = torch.randn(2, 5, 16, device=DEVICE)
    norm = LayerNorm(16, eps=1e-6)
    assert torch.equal(norm(tokens), functional.layer_norm(tokens, (16,), eps=1e-6))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert norm(tokens.bfloat16()).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def kernels():
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    pytest.importorskip("triton", reason="there is no triton, which comes with torch for CUDA")
    from pipeline.models import norm_triton

    return norm_triton


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_fused_values_and_gradients_are_those_of_the_formula(kernels, shape, moved, modulated, silu):
    ours = inputs(shape, moved=moved, modulated=modulated)
    wide = [None if v is None else v.detach().double().requires_grad_() for v in ours]
    names = ("before", "scale", "shift")
    found = kernels.group_norm(
        *ours[:3], groups=shape[-1], eps=1e-5, silu=silu, **dict(zip(names, ours[3:], strict=True))
    )
    expected = formula(*wide[:3], groups=shape[-1], silu=silu, **dict(zip(names, wide[3:], strict=True)))
    slopes = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found.backward(slopes)
    expected.backward(slopes.double())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, expected) < 1e-6
    scale = max(float(v.grad.norm()) for v in wide if v is not None)
    for one, other in zip(ours, wide, strict=True):
        if one is not None:  # relative to the largest: some gradients cancel to nothing
            assert float((one.grad.double() - other.grad).norm()) < 3e-6 * scale


def test_fused_results_of_an_image_do_not_depend_on_its_batch(kernels):
    x, weight, bias, *_ = inputs((5, 24, 20, 16, 4), moved=False, modulated=False)
    whole = kernels.group_norm(x, weight, bias, groups=4, eps=1e-5, silu=True)
    part = kernels.group_norm(x[2:3], weight, bias, groups=4, eps=1e-5, silu=True)
    assert torch.equal(whole[2:3], part)


@pytest.mark.parametrize("shape", [(2, 24, 6, 10), (1, 64, 8, 8), (3, 5, 2, 2)], ids=str)
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("up", [True, False])
def test_fused_resampling_is_torchs_with_its_gradients(shape, up):
    from pipeline.models.maps_triton import double, halve

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE).to(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = (double if up else halve)(ours)
    expected = functional.interpolate(theirs, scale_factor=2.0) if up else functional.avg_pool2d(theirs, 2)
    assert found.is_contiguous(memory_format=torch.channels_last) and torch.allclose(found, expected, atol=1e-6)
    slopes = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found.backward(slopes)
    expected.backward(slopes)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(2, 24, 5, 7), (3, 80, 20, 20), (5, 3, 1, 1)], ids=str)
def test_a_bias_is_added_and_its_gradient_is_the_sum_over_pixels(shape):
    from pipeline.models.maps_triton import add

    a, b, bias = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    a, b = (v.to(DEVICE).to(memory_format=torch.channels_last).requires_grad_() for v in (a, b))
    bias = bias.to(DEVICE).requires_grad_()
    for first in (a, None):
        y = add(first, b, bias)
        assert torch.allclose(y, (b if first is None else a + b) + bias[:, None, None], atol=1e-6)
        found = torch.autograd.grad(y.square().sum(), [v for v in (first, b, bias) if v is not None])
        assert all(torch.allclose(gradient, 2 * y) for gradient in found[:-1])
        assert torch.allclose(found[-1], (2 * y).sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_joined_and_their_gradients_taken_apart(dtype):
    from pipeline.models.maps_triton import join

    for first, second, height, width in ((24, 40, 5, 7), (64, 128, 12, 12), (1, 3, 1, 4), (5, 7, 3, 1)):
        a, b = (
            torch.randn(3, channels, height, width).to(DEVICE, dtype).to(memory_format=torch.channels_last)
            for channels in (first, second)
        )
        a.requires_grad_()
        b.requires_grad_()
        y = join(a, b)
        assert torch.equal(y, torch.cat([a, b], dim=1)) and y.is_contiguous(memory_format=torch.channels_last)
        slopes = torch.randn(y.shape).to(y)
        found = torch.autograd.grad(y, (a, b), slopes)
        for gradient, expected in zip(found, slopes.split((first, second), dim=1), strict=True):
            assert torch.equal(gradient, expected) and gradient.is_contiguous(memory_format=torch.channels_last)
