"""Triton kernels draw the bits of the eager code on a CPU: on a GPU, or interpreted where TRITON_INTERPRET=1."""

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pipeline.metrics.domain import LABELS, DomainClassifier, Shape
from pipeline.models import dropout
from pipeline.models.dropout import KeyedDropout, keyed_dropout
from pipeline.objectives.perceptual import DomainMaps, distance
from pipeline.runtime import random
from pipeline.runtime.random import Stream, chosen, normal, philox, uniform

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU: none found", allow_module_level=True)
pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch: not installed")

gpu_only = pytest.mark.skipif(INTERPRETED, reason="is about a real GPU")
NUMBERS = torch.tensor([0, 1, 2**32, 2**33 + 5, 2**63 - 1])
SHAPES = [(), (1,), (4,), (3, 5), (16,), (3, 33, 31)]
# Words below and above 2**31, in the key and in the counter; 1 is an argument that Triton likes to fold in.
KEYS = [(0, 0), (1, 1), (2**31, 2**23), (2**62 + 12345, 2**24 - 1), (2**63 - 1, 3)]
SEED, SHARE = 2**62 + 5, 0.3

keys = pytest.mark.parametrize(("seed", "draw"), KEYS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
floats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """Draws run as kernels, also in the interpreter, whose tensors are a CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (random, dropout) if INTERPRETED else ():
            patch.setattr(module, "fused", lambda device: True)  # noqa: ARG005
        yield


def drawn(function, seed, stream, numbers: Tensor, **given) -> Tensor:
    with kernels():
        return function(seed, stream, numbers.to(DEVICE), **given).cpu()


@keys
@shapes
@floats
def test_uniform_values_are_the_same_bits(seed, draw, shape, dtype):
    for numbers in (NUMBERS, NUMBERS[3:4], NUMBERS[:0], NUMBERS[::2]):
        given = {"shape": shape, "draw": draw, "dtype": dtype}
        expected = uniform(seed, Stream.DEGRADE, numbers, **given)
        assert torch.equal(drawn(uniform, seed, Stream.DEGRADE, numbers, **given), expected)


@keys
@shapes
def test_normal_values_are_the_same_up_to_rounding(seed, draw, shape):
    for dtype, tolerance in ((torch.float32, 1e-6 if INTERPRETED else 2e-6), (torch.float64, 1e-12)):
        given = {"shape": shape, "draw": draw, "dtype": dtype}
        expected = normal(seed, Stream.NOISE, NUMBERS, **given)
        assert torch.allclose(drawn(normal, seed, Stream.NOISE, NUMBERS, **given), expected, rtol=0, atol=tolerance)


@keys
@shapes
def test_choices_are_the_same(seed, draw, shape):
    for share in (0.0, SHARE, 1.0):
        given = {"shape": shape, "draw": draw, "share": share}
        expected = chosen(seed, Stream.DROPOUT, NUMBERS, **given)
        assert torch.equal(drawn(chosen, seed, Stream.DROPOUT, NUMBERS, **given), expected)


def test_many_numbers_and_none():
    """More than one program, of many numbers and of one; a batch that no tile divides; nothing at all."""
    numbers = torch.arange(1301) + 10**10
    for shape in ((), (9,), (0, 3)):
        expected = uniform(SEED, Stream.SIGMA, numbers, shape=shape)
        assert torch.equal(drawn(uniform, SEED, Stream.SIGMA, numbers, shape=shape), expected)
    assert drawn(normal, SEED, Stream.SIGMA, numbers[:0], shape=(3, 4)).shape == (0, 3, 4)
    with pytest.raises(ValueError, match="bfloat16"):
        drawn(uniform, SEED, Stream.SIGMA, numbers, dtype=torch.bfloat16)


def layer_of(share: float) -> KeyedDropout:
    layer = KeyedDropout(share).train()
    layer.layer, layer.seed = 5, SEED
    return layer


def example(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, *shape).to(dtype)
    return (x.contiguous(memory_format=layout) if len(shape) == 3 else x), torch.tensor([5, 2**40, 7])


def step(layer, x: Tensor, sample_indices: Tensor) -> tuple[Tensor, Tensor]:
    """The output and a gradient that is not that of a sum."""
    x = x.detach().requires_grad_()
    y = layer(x, sample_indices)
    (gradient,) = torch.autograd.grad(
        (y.float() * torch.arange(3, device=x.device).view(-1, *[1] * (x.dim() - 1))).sum(), x
    )
    return y.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (10, 48), (5, 8, 8), (20, 3, 5), (130, 4, 6), (3, 36, 36), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_dropout_is_the_one_of_a_cpu_with_a_stored_mask(dtype, shape, layout):
    """The same bits: the kernel divides with correct rounding. The layout is kept."""
    x, sample_indices = example(shape, dtype, layout)
    for share in (SHARE, 0.1):
        expected = step(layer_of(share), x, sample_indices)
        with kernels():
            found = step(layer_of(share), x.to(DEVICE), sample_indices.to(DEVICE))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.cpu() == 0, other == 0)
            # The interpreter cuts off where a GPU and a CPU round to bfloat16.
            cut = INTERPRETED and dtype == torch.bfloat16
            assert torch.allclose(one.cpu(), other, rtol=2**-7, atol=0) if cut else torch.equal(one.cpu(), other)
        assert found[0].stride() == x.stride()


def test_dropout_of_any_strides():
    x, sample_indices = example((6, 4, 4), torch.float32, torch.contiguous_format)
    for view in (x.transpose(1, 3), x[..., ::2], x[:, :1].expand(3, 6, 4, 4), x[:0]):
        numbers = sample_indices[: len(view)]
        with kernels():
            assert torch.equal(
                layer_of(SHARE)(view.to(DEVICE), numbers.to(DEVICE)).cpu(), layer_of(SHARE)(view, numbers)
            )


def test_too_few_numbers_are_refused():
    x, sample_indices = example((5,), torch.float32, torch.contiguous_format)
    with kernels(), pytest.raises(ValueError, match=r"found \[2\] for 3 images"):
        layer_of(SHARE)(x.to(DEVICE), sample_indices[:2].to(DEVICE))


def test_a_value_that_is_not_finite_can_be_dropped():
    x, sample_indices = torch.full((3, 40), float("nan")), torch.arange(3)
    with kernels():
        found = layer_of(SHARE)(x.to(DEVICE), sample_indices.to(DEVICE)).cpu()
    assert torch.equal(found.isnan(), ~chosen(SEED, Stream.DROPOUT, sample_indices, share=SHARE, shape=(40,), draw=5))
    assert (found[~found.isnan()] == 0).all()


def test_operations_are_whole_to_torch():
    numbers = NUMBERS.to(DEVICE)
    x, sample_indices = (t.to(DEVICE) for t in example((6, 4, 4), torch.float32, torch.channels_last))
    given = {"kind": "normal", "key": [3, 4], "last": 5, "dtype": torch.float32, "threshold": 0}
    with kernels():
        torch.library.opcheck(random._draw, (numbers, [3, 5]), given)
        given = {"share": SHARE, "seed": SEED, "layer": 3}
        torch.library.opcheck(keyed_dropout, (x.requires_grad_(), sample_indices), given)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=gpu_only)])
def test_a_compiler_takes_them_in_one_graph(backend):
    x, sample_indices = (t.to(DEVICE) for t in example((6, 4, 4), torch.float32, torch.channels_last))
    dropping = layer_of(SHARE).to(DEVICE)

    def noisy(x: Tensor, sample_indices: Tensor) -> Tensor:
        hidden = x + normal(SEED, Stream.NOISE, sample_indices, shape=(6, 4, 4))
        level = uniform(SEED, Stream.SIGMA, sample_indices)
        return dropping(hidden * level[:, None, None, None], sample_indices).relu()

    random.for_the_compiler()
    with kernels():
        found, expected = (
            step(torch.compile(noisy, backend=backend, fullgraph=True), x, sample_indices),
            step(noisy, x, sample_indices),
        )
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))


@gpu_only
def test_philox_in_torch_operations_is_the_same_on_a_gpu():
    counter = torch.arange(4000).view(-1, 4) * 1_000_003 % 2**32
    assert torch.equal(philox(counter.cuda(), (1, 2)).cpu(), philox(counter, (1, 2)))


@gpu_only
def test_eager_code_on_a_gpu_draws_the_same(monkeypatch):
    """What runs on CUDA where there is no Triton."""
    monkeypatch.setattr(random, "fused", lambda device: False)  # noqa: ARG005
    numbers = torch.arange(50)
    for draw, tolerance in ((uniform, 0), (normal, 1e-5)):
        found = draw(1, Stream.NOISE, numbers.cuda(), shape=(3, 33)).cpu()
        assert torch.allclose(found, draw(1, Stream.NOISE, numbers, shape=(3, 33)), rtol=0, atol=tolerance)


@gpu_only
def test_nothing_waits_for_the_device_or_stores_a_mask_or_compiles_anew():
    from pipeline.runtime import philox_triton

    x, sample_indices = (t.cuda() for t in example((64, 16, 16), torch.bfloat16, torch.channels_last))
    x.requires_grad_()
    dropping = layer_of(SHARE)

    def work(number: int) -> None:
        dropping.layer = number
        normal(SEED, Stream.NOISE, sample_indices + number, shape=(3, 64, 64), draw=number)
        before = torch.cuda.memory_allocated()
        y = dropping(x, sample_indices)
        assert torch.cuda.memory_allocated() - before == y.numel() * y.element_size()
        y.backward(y.detach())

    def compiled() -> int:
        caches = [k.device_caches for k in (philox_triton._fill, philox_triton._drop_channels_last)]
        return sum(len(kept[0]) for cache in caches for kept in cache.values())

    work(0)
    count = compiled()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (1, 2, 16, 17, 1000):
            work(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compiled() == count


@gpu_only
@pytest.mark.skipif(
    not INTERPRETED and torch.cuda.mem_get_info()[0] < 24 * 2**30, reason="needs 24 GiB of free GPU memory"
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_more_than_2_to_the_31_values(layout):
    """Offsets are of 64 bits: the last image comes out as it does alone."""
    x = torch.ones(5, 64, 4096, 2048, dtype=torch.bfloat16, device="cuda").to(memory_format=layout)
    sample_indices = torch.arange(5, device="cuda") + 2**40
    last = layer_of(SHARE)(x[4:], sample_indices[4:])
    assert torch.equal(layer_of(SHARE)(x, sample_indices)[4:], last)
    dropped = chosen(SEED, Stream.DROPOUT, sample_indices, share=SHARE, shape=(64, 4096, 2048), draw=5)
    assert torch.equal(dropped[4:], last == 0)


@gpu_only
def test_a_perceptual_loss_has_a_gradient_that_can_be_repeated():
    classifier = DomainClassifier(Shape(channels=3, size=64, classes=4, width=8, features=16, task=LABELS))
    network = DomainMaps(classifier).cuda()
    images = torch.randn(2, 3, 64, 64, device="cuda", requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        distance(network(images), network(torch.zeros_like(images))).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert images.grad is not None and images.grad.isfinite().all()
