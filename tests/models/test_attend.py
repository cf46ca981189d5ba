"""Attention written out on a CPU is the attention of torch's kernel."""

import pytest
import torch

from pipeline.models.layers import attend


@pytest.mark.parametrize("tokens", [64, 256, 1024])
def test_narrow_attention_is_within_rounding_of_attention_in_float64(tokens):
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, tokens, 32, dtype=torch.bfloat16).double().requires_grad_() for _ in range(3)]
    narrow = [x.detach().bfloat16().requires_grad_() for x in exact]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact)
    result = attend(*narrow)
    assert result.dtype == torch.bfloat16
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    result.backward(gradient.bfloat16())
    for wide, close in zip([expected, *(x.grad for x in exact)], [result, *(x.grad for x in narrow)], strict=True):
        assert (close - wide).norm() < 0.02 * wide.norm()
