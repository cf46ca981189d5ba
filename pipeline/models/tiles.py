"""Decoding large images within a memory limit: one image at a time, or in overlapping tiles that are blended."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Decode = Callable[[Tensor], Tensor]


def sliced(decode: Decode, latents: Tensor, *, images: int = 1) -> Tensor:
    """`decode` on `images` latents at a time: the same result (networks here treat images one by one)."""
    return torch.cat([decode(part) for part in torch.split(latents, images)])


def tiled(decode: Decode, latents: Tensor, *, tile: int, overlap: int) -> Tensor:
    """`decode` on square tiles of the latents, blended linearly where they overlap.

    latents [B, d, h, w]; `tile` and `overlap` in latent pixels, 0 < overlap < tile. Group norms and attention see one
    tile only, so this is near to, not equal to, decoding at once; where one tile holds everything it is equal.
    """
    if not 0 < overlap < tile:
        raise ValueError(f"overlap: found {overlap}, expected more than 0 and less than the tile of {tile}")
    height, width = latents.shape[2:]
    if height <= tile and width <= tile:
        return decode(latents)
    total = weights = torch.zeros(())
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = decode(latents[:, :, top : top + tile, left : left + tile])
            factor = part.shape[2] // min(tile, height)
            if total.dim() == 0:
                total = part.new_zeros(*part.shape[:2], height * factor, width * factor)
                weights = part.new_zeros(height * factor, width * factor)
            ramp = overlap * factor
            weight = _ramp(part.shape[2], ramp, part)[:, None] * _ramp(part.shape[3], ramp, part)
            at = (
                slice(top * factor, top * factor + part.shape[2]),
                slice(left * factor, left * factor + part.shape[3]),
            )
            total[:, :, *at] += part * weight
            weights[*at] += weight
    return total / weights


def _starts(size: int, tile: int, overlap: int) -> Iterator[int]:
    """Where tiles begin: every `tile - overlap`, the last one at the edge."""
    for start in range(0, max(size - overlap, 1), tile - overlap):
        yield max(min(start, size - tile), 0)


def _ramp(size: int, overlap: int, like: Tensor) -> Tensor:
    """Weights [size] that rise over `overlap` pixels from both edges; never zero."""
    steps = torch.arange(size, device=like.device, dtype=like.dtype)
    return ((torch.minimum(steps, size - 1 - steps) + 1) / (overlap + 1)).clamp(max=1)
