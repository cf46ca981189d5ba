"""Dropout whose masks belong to images: the same image number gets the same mask on any rank and in any batch."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.runtime.random import Stream, chosen, drop, fused


@torch.library.custom_op("mudi::dropout_mask", mutates_args=())
def dropout_mask(sample_indices: Tensor, shape: list[int], *, share: float, seed: int, layer: int) -> Tensor:
    """Which values to drop, bool [B, *shape]. One operation to the compiler, which would unroll Philox's tiles."""
    return chosen(seed, Stream.DROPOUT, sample_indices, share=share, shape=tuple(shape), draw=layer)


@dropout_mask.register_fake
def _(sample_indices: Tensor, shape: list[int], *, share: float, seed: int, layer: int) -> Tensor:
    del share, seed, layer
    return sample_indices.new_empty([sample_indices.shape[0], *shape], dtype=torch.bool)


@torch.library.custom_op("mudi::keyed_dropout", mutates_args=())
def keyed_dropout(x: Tensor, sample_indices: Tensor, *, share: float, seed: int, layer: int) -> Tensor:
    """Dropout of [B, ...] by `dropout_mask`, which is computed again in the backward pass instead of stored.

    One kernel each way on a GPU: a mask would cost more to write and to read than to compute. Gradients of any order.
    """
    x = _dense(x)
    if fused(x.device):
        return drop(x, seed, Stream.DROPOUT, sample_indices, share=share, draw=layer)
    return _zeroed(x, dropout_mask(sample_indices, list(x.shape[1:]), share=share, seed=seed, layer=layer), share)


@keyed_dropout.register_fake
def _(x: Tensor, sample_indices: Tensor, *, share: float, seed: int, layer: int) -> Tensor:
    del sample_indices, share, seed, layer
    return torch.empty_like(_dense(x))


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    del output
    ctx.save_for_backward(inputs[1])
    ctx.settings = keyword_only_inputs


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    """Dropout is linear and its matrix is diagonal: the gradient goes through the same dropout."""
    (sample_indices,) = ctx.saved_tensors
    return keyed_dropout(gradient, sample_indices, **ctx.settings), None


keyed_dropout.register_autograd(_backward, setup_context=_remember)


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor) -> Tensor:
    """x in a layout that the kernel has: contiguous or channels_last as it is, anything else made contiguous."""
    return x if x.is_contiguous() or _channels_last(x) else x.contiguous()


def _zeroed(x: Tensor, dropped: Tensor, share: float) -> Tensor:
    """x scaled up, and zero where `dropped`; in x's layout, which `masked_fill` out of place would not keep."""
    if _channels_last(x):
        dropped = dropped.contiguous(memory_format=torch.channels_last)
    return (x / (1 - share)).masked_fill_(dropped, 0.0)


class KeyedDropout(nn.Module):
    """Zero a share of the values while training, and scale the rest up (Srivastava et al. 2014).

    The mask is a function of (seed, image number, layer). `number_layers` gives the layers of a network their numbers.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.layer = 0
        self.seed = 0

    def forward(self, x: Tensor, sample_indices: Tensor | None) -> Tensor:
        """[B, ...] and image numbers int64 [B] -> [B, ...]; the input itself when not training."""
        if not self.training or self.share == 0:
            return x
        if sample_indices is None:
            raise ValueError(
                "dropout needs `sample_indices`, the image numbers [B] that its masks belong to: pass them"
            )
        if fused(x.device):
            found: Tensor = keyed_dropout(x, sample_indices, share=self.share, seed=self.seed, layer=self.layer)
            return found
        dropped = dropout_mask(sample_indices, list(x.shape[1:]), share=self.share, seed=self.seed, layer=self.layer)
        return _zeroed(x, dropped, self.share)  # a CPU computes no mask twice: it takes longer than to store it


def number_layers(network: nn.Module, *, seed: int = 0) -> None:
    """Number the dropout layers of `network` in order, so that no two share a mask, and key them by `seed`."""
    layers = [module for module in network.modules() if isinstance(module, KeyedDropout)]
    for number, layer in enumerate(layers):
        layer.layer, layer.seed = number, seed
