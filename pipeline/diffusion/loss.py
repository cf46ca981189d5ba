"""The training loss."""

from collections.abc import Callable

from torch import Tensor

from pipeline.diffusion.preconditioning import Network, Precondition

Weight = Callable[[Tensor], Tensor]


def denoising_loss(
    network: Network,
    scales: Precondition,
    x0: Tensor,
    *,
    sigma: Tensor,
    noise: Tensor,
    weight: Weight,
    cond: Tensor | None = None,
) -> Tensor:
    """Weighted squared error of the denoiser, per image, [B]: weight(sigma) * |D(x0 + sigma * noise) - x0|^2.

    Nothing random happens here: the caller drew sigma [B, 1, 1, 1] and noise, of the shape of x0 [B, C, H, W].
    The error is taken at the network's output, where no digits cancel (Karras et al. 2022, equation 8).
    """
    x, s = x0 + sigma * noise, scales(sigma)
    target = (x0 - s.c_skip * x) / s.c_out  # what a perfect network would return
    error = network(s.c_in * x, s.c_noise.flatten(), cond) - target
    return (weight(sigma) * s.c_out**2 * error**2).mean(dim=(1, 2, 3))
