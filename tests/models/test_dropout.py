"""Dropout that computes its mask again in the backward pass is dropout that stored it."""

import pytest
import torch

from pipeline.models.dropout import KeyedDropout, keyed_dropout
from pipeline.runtime.random import Stream, chosen

SHARE, SEED, LAYER = 0.3, 2**62 + 5, 7
GIVEN = {"share": SHARE, "seed": SEED, "layer": LAYER}


def dropout_layer() -> KeyedDropout:
    layer = KeyedDropout(SHARE).train()
    layer.layer, layer.seed = LAYER, SEED
    return layer


def example(shape=(6, 4, 4), *, dtype=torch.float64, layout=torch.contiguous_format):
    torch.manual_seed(0)
    x = torch.randn(3, *shape, dtype=dtype)
    x = x.contiguous(memory_format=layout) if len(shape) == 3 else x
    return x.requires_grad_(), torch.tensor([3, 2**40, 5])


layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_mask_follows_the_logical_index_and_the_layout_stays(dtype, layout):
    x, sample_indices = example(dtype=dtype, layout=layout)
    dropped = chosen(SEED, Stream.DROPOUT, sample_indices, share=SHARE, shape=(6, 4, 4), draw=LAYER)
    expected = (x / (1 - SHARE)).masked_fill(dropped, 0)
    for found in (dropout_layer()(x, sample_indices), keyed_dropout(x, sample_indices, **GIVEN)):
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)


@layouts
def test_gradients_are_those_of_the_stored_mask(layout):
    x, sample_indices = example((2, 3, 2), layout=layout)
    weight = torch.randn_like(x)
    (stored,) = torch.autograd.grad((dropout_layer()(x, sample_indices) * weight).sum(), x)
    (again,) = torch.autograd.grad((keyed_dropout(x, sample_indices, **GIVEN) * weight).sum(), x)
    assert torch.equal(again, stored)
    assert torch.autograd.gradcheck(lambda x: keyed_dropout(x, sample_indices, **GIVEN), x)
    assert torch.autograd.gradgradcheck(lambda x: keyed_dropout(x, sample_indices, **GIVEN), x)


@pytest.mark.parametrize("shape", [(), (5,), (7, 12), (6, 4, 4), (0, 3)])
def test_it_is_a_whole_operation_to_torch(shape):
    """Schema, fake tensor, gradient registration and tracing, as torch's own check sees them."""
    x, sample_indices = example(shape)
    torch.library.opcheck(keyed_dropout, (x, sample_indices), GIVEN)


def test_a_tensor_of_any_strides_is_taken():
    x, sample_indices = example((6, 4, 4))
    for view in (x.transpose(1, 3), x[..., ::2], x[:, :1].expand(3, 6, 4, 4)):
        assert torch.equal(keyed_dropout(view, sample_indices, **GIVEN), dropout_layer()(view, sample_indices))
        torch.library.opcheck(keyed_dropout, (view.detach().requires_grad_(), sample_indices), GIVEN)


@layouts
def test_a_compiler_sees_one_operation(layout):
    x, sample_indices = example(layout=layout)
    for work in (dropout_layer(), lambda x, sample_indices: keyed_dropout(x, sample_indices, **GIVEN)):
        compiled = torch.compile(work, backend="aot_eager", fullgraph=True)
        found, expected = compiled(x, sample_indices), dropout_layer()(x, sample_indices)
        assert torch.equal(found, expected)
        assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)))


def test_no_data_is_needed_where_there_is_none():
    x = torch.empty(3, 6, 4, 4, device="meta")
    sample_indices = torch.empty(3, dtype=torch.int64, device="meta")
    assert dropout_layer()(x, sample_indices).shape == keyed_dropout(x, sample_indices, **GIVEN).shape == x.shape
