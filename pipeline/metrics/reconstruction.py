"""How near reconstructed images are to the originals, image by image."""

import torch
from torch import Tensor

RANGE = 2.0  # of pixels in [-1, 1]
SSIM_WINDOW = 11  # pixels: the Gaussian of Wang et al. 2004, deviation 1.5


def psnr(reconstructed: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, [B], of images [B, C, H, W]: 10 log10(range^2 / mean squared error).

    Values outside [-1, 1] are clipped. Equal images have 100 dB rather than infinity, so that means stay finite.
    """
    squared = (reconstructed.clamp(-1, 1) - originals).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(RANGE**2 / squared.clamp_min(RANGE**2 * 1e-10))


def ssim(reconstructed: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity [B] of images [B, C, H, W] in [-1, 1], by torchmetrics (Wang et al. 2004).

    Of values from 0 to 1, as it is published: its comparison of means is one of light, of which there is none below 0.
    NaN where the images are no larger than half the window, which cannot be mirrored into a border then.
    """
    # Loaded here, for it brings matplotlib and scipy: two seconds, which no other job is to spend.
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(originals.shape[2:]) <= SSIM_WINDOW // 2:
        return originals.new_full((len(originals),), torch.nan)
    light = ((images.clamp(-1, 1) + 1) / 2 for images in (reconstructed, originals))
    found: Tensor = structural_similarity_index_measure(*light, data_range=1.0, reduction="none")
    return found.reshape(len(originals))
