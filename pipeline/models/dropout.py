"""Dropout whose masks belong to images: the same image number gets the same mask on any rank and in any batch."""

import torch
from torch import Tensor, nn

from pipeline.runtime.random import Stream, chosen


@torch.library.custom_op("mudi::dropout_mask", mutates_args=())
def dropout_mask(visits: Tensor, shape: list[int], *, share: float, seed: int, layer: int) -> Tensor:
    """Which values to drop, bool [B, *shape]. One operation to the compiler, which would unroll Philox's tiles."""
    return chosen(seed, Stream.DROPOUT, visits, share=share, shape=tuple(shape), draw=layer)


@dropout_mask.register_fake
def _(visits: Tensor, shape: list[int], *, share: float, seed: int, layer: int) -> Tensor:
    del share, seed, layer
    return visits.new_empty([visits.shape[0], *shape], dtype=torch.bool)


class KeyedDropout(nn.Module):
    """Zero a share of the values while training, and scale the rest up (Srivastava et al. 2014).

    The mask is a function of (seed, image number, layer). `number_layers` gives the layers of a network their numbers.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.layer = 0
        self.seed = 0

    def forward(self, x: Tensor, visits: Tensor | None) -> Tensor:
        """[B, ...] and image numbers int64 [B] -> [B, ...]; the input itself when not training."""
        if not self.training or self.share == 0:
            return x
        if visits is None:
            raise ValueError("dropout needs `visits`, the image numbers [B] that its masks belong to: pass them")
        dropped = dropout_mask(visits, list(x.shape[1:]), share=self.share, seed=self.seed, layer=self.layer)
        return (x / (1 - self.share)).masked_fill(dropped, 0.0)


def number_layers(network: nn.Module, *, seed: int = 0) -> None:
    """Number the dropout layers of `network` in order, so that no two share a mask, and key them by `seed`."""
    layers = [module for module in network.modules() if isinstance(module, KeyedDropout)]
    for number, layer in enumerate(layers):
        layer.layer, layer.seed = number, seed
