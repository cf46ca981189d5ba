"""The blocks that a network repeats: what activation checkpointing computes again, piece by piece."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.dit import DiTBlock
from pipeline.models.layers import Attention, ResidualBlock
from pipeline.models.simple_unet import DoubleConvolution

REPEATED = (ResidualBlock, Attention, DoubleConvolution, DiTBlock)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Residual blocks, attentions and transformer blocks, in the order of the network's modules."""
    return [module for module in network.modules() if isinstance(module, REPEATED)]


def recompute_activations(network: nn.Module) -> None:
    """Let every block keep its inputs alone for the backward pass, which computes the rest again (Chen et al. 2016).

    Gradients are the same to the bit: a block draws nothing from torch's generator, whose state need not be kept, and
    dropout masks are functions of the image. It costs a second forward pass.
    """
    for block in blocks_of(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
