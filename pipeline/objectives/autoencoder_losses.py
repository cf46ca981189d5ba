"""Losses of autoencoders. Every one is a value for each image, [B], and a function of that image alone.

So nothing depends on how a batch is divided over micro-batches and ranks, the adaptive weight included.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.posterior import Posterior, Reconstruction

LARGEST_WEIGHT = 1e4  # as in the reference code of Esser et al. 2021
EPS = 1e-6


def reconstructed_by(network: Callable[..., Tensor], *inputs: Tensor | None) -> Reconstruction:
    """What an autoencoder returns, as its type."""
    found: object = network(*inputs)
    if not isinstance(found, Reconstruction):
        raise TypeError(f"an autoencoder returns a Reconstruction, not {type(found).__name__}")
    return found


def error(kind: str, reconstructed: Tensor, originals: Tensor) -> Tensor:
    """Mean absolute ("l1") or squared ("l2") difference of the values of each image."""
    difference = (reconstructed - originals).flatten(1)
    return {"l1": torch.abs, "l2": torch.square}[kind](difference).mean(dim=1)


def divergence(posterior: Posterior, like: Tensor) -> Tensor:
    """The posterior's divergence from the prior in nats, divided by the number of values of an image of `like`."""
    wide = Posterior(posterior.mean.to(like.dtype), posterior.std.to(like.dtype))  # autocast may have made it narrow
    return wide.kl().flatten(1).sum(dim=1) / like[0].numel()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The hinge loss of a discriminator (Lim & Ye 2017), from scores [B, 1, h, w]: half the sum over both halves."""
    return (functional.relu(1 - real) + functional.relu(1 + fake)).flatten(1).mean(dim=1) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """What the generator minimises: the negative mean score."""
    return -fake.flatten(1).mean(dim=1)


def adaptive_weight(reconstruction: Tensor, game: Tensor, *, images: Tensor, inner: Tensor, size: int = 3) -> Tensor:
    """How much the game counts against the reconstruction (Esser et al. 2021, equation 7), [B], without a gradient.

    The ratio of the gradients' norms with respect to the weights of the last convolution. The paper takes the
    gradients of a whole batch; here each image has its own, so that the value belongs to the image.

    Args:
        reconstruction, game: losses [B] of the reconstructed `images` [B, C, H, W].
        inner: [B, c, H, W], what the last convolution (`size` x `size`, same padding) made `images` of.
    """
    norms = [
        _weight_gradient(torch.autograd.grad(loss.sum(), images, retain_graph=True)[0], inner.detach(), size=size)
        for loss in (reconstruction, game)
    ]
    return (norms[0] / (norms[1] + EPS)).clamp(0, LARGEST_WEIGHT)


def _weight_gradient(gradient: Tensor, inner: Tensor, *, size: int) -> Tensor:
    """|gradient with respect to a convolution's weight| for each image alone, [B]; a product for each tap."""
    height, width = gradient.shape[2:]
    padded = functional.pad(inner.to(gradient.dtype), (size // 2,) * 4)
    rows = gradient.flatten(2)
    squared = torch.zeros(len(gradient), dtype=gradient.dtype, device=gradient.device)
    for y in range(size):
        for x in range(size):
            tap = padded[:, :, y : y + height, x : x + width].flatten(2)
            squared = squared + torch.bmm(rows, tap.transpose(1, 2)).square().sum(dim=(1, 2))
    return squared.sqrt()
