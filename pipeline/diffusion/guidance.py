"""Guidance and limits as wrappers of denoisers: samplers never know of them."""

import torch
from torch import Tensor

from pipeline.diffusion.preconditioning import Denoise


def extrapolated(main: Denoise, guide: Denoise, *, factor: float) -> Denoise:
    """guide + factor * (main - guide): away from the guide's prediction. Factor 1 is main, 0 is the guide.

    Classifier-free guidance where the guide is unconditional (Ho & Salimans 2022, equation 6, with factor = 1 + w);
    autoguidance where it is a worse model of the same condition (Karras et al. 2024b).
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(guide(x, sigma), main(x, sigma), factor)

    return denoise


def within(inside: Denoise, outside: Denoise, *, low: float, high: float) -> Denoise:
    """`inside` where low <= sigma <= high, else `outside` (Kynkaanniemi et al. 2024: guidance in an interval)."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (inside if low <= float(sigma.max()) <= high else outside)(x, sigma)

    return denoise


def rescaled(guided: Denoise, conditional: Denoise, *, share: float) -> Denoise:
    """`share` of the way back to the conditional's standard deviation, per image (Lin et al. 2023, equations 15, 16).

    Taken on the estimate of x0, so that it means the same for every parametrisation. The conditional is called again:
    share it through `remembered`.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0, reference = guided(x, sigma), conditional(x, sigma)
        ratio = reference.flatten(1).std(dim=1) / x0.flatten(1).std(dim=1)
        return x0 * (share * ratio + 1 - share)[:, None, None, None]

    return denoise


def remembered(denoise: Denoise) -> Denoise:
    """`denoise`, where a second question about the same tensor at the same level costs nothing."""
    last: list[tuple[Tensor, Tensor, Tensor]] = []

    def remembering(x: Tensor, sigma: Tensor) -> Tensor:
        if not (last and last[0][0] is x and last[0][1] is sigma):
            last[:] = [(x, sigma, denoise(x, sigma))]
        return last[0][2]

    return remembering


def clipped(denoise: Denoise, *, bound: float) -> Denoise:
    """Estimates of x0 limited to [-bound, bound], where pixels lie (Ho et al. 2020)."""
    return lambda x, sigma: denoise(x, sigma).clamp(-bound, bound)


def hide_labels(condition: Tensor, u: Tensor, *, share: float, unknown: int) -> Tensor:
    """`condition` with a `share` of entries replaced by `unknown`: the training half of classifier-free guidance.

    Ho & Salimans 2022, algorithm 1, with p_uncond = share.

    condition: classes [B], or attributes [B, A]. u: uniform in (0, 1), [B] hides whole conditions, [B, A] single
    attributes. An entry is hidden where u < share, so each image keeps its fate wherever it is computed.
    """
    hidden = (u < share).reshape(u.shape + (1,) * (condition.ndim - u.ndim))
    return condition.masked_fill(hidden, unknown)
