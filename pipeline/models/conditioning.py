"""What a network is given besides the image: the noise level, and the condition: a class or a set of attributes.

Every embedding here is a vector [B, width] and they are added: the sum is the `embedding` that blocks are scaled and
shifted by.
"""

import math
from typing import Literal

import torch
from einops import reduce
from torch import Tensor, nn

Order = Literal["cos_sin", "sin_cos"]


def sinusoid(values: Tensor, width: int, *, shift: int = 0, order: Order = "cos_sin") -> Tensor:
    """Cosines, then sines, of `values` [B] at frequencies from 1 down to about 1e-4 radians: [B, width], in fp32.

    Vaswani et al. 2017, section 3.5, as DDPM uses it. `shift` is subtracted from the number of frequencies in the
    exponent: 0 in ADM, 1 in DDPM and DiT of diffusers. An odd width ends in a zero.
    `order` says which half comes first.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=values.device) / (half - shift))
    angles = values.float()[:, None] * frequencies
    halves = [angles.cos(), angles.sin()]
    return nn.functional.pad(torch.cat(halves if order == "cos_sin" else halves[::-1], dim=1), (0, width % 2))


class FourierFeatures(nn.Module):
    """Cosines and sines of random frequencies, drawn once: [B] -> [B, width].

    Tancik et al. 2020, section 4, `cos(2 pi b value)` with b normal of deviation `scale`. It suits a noise
    level that moves by about 1 (EDM's log(sigma) / 4), where a sinusoid's lower frequencies do not move at all. An odd
    width ends in a zero.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.odd = width % 2
        self.register_buffer("frequencies", torch.randn(width // 2) * scale)

    def forward(self, values: Tensor) -> Tensor:
        """[B] -> [B, width], in fp32."""
        angles = 2 * math.pi * values.float()[:, None] * self.frequencies.float()
        return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, self.odd))


class NoiseEmbedding(nn.Module):
    """The noise level as a vector: features of it, then two linear layers. [B] -> [B, width]."""

    def __init__(
        self,
        width: int,
        *,
        features: int,
        kind: Literal["sinusoidal", "fourier"] = "sinusoidal",
        scale: float = 1.0,
        shift: int = 0,
        order: Order = "cos_sin",
    ) -> None:
        """`scale` multiplies the noise level (sinusoidal) or is the deviation of the frequencies (fourier).

        `shift` and `order` are those of `sinusoid`.
        """
        super().__init__()
        self.features, self.shift = features, shift
        self.order: Order = order
        self.scale = scale if kind == "sinusoidal" else 1.0
        self.fourier = FourierFeatures(features, scale) if kind == "fourier" else None
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)

    def forward(self, noise_cond: Tensor) -> Tensor:
        """[B] -> [B, width]."""
        if self.fourier is not None:
            features = self.fourier(noise_cond)
        else:
            features = sinusoid(noise_cond * self.scale, self.features, shift=self.shift, order=self.order)
        hidden = nn.functional.silu(self.first(features.to(self.first.weight.dtype)))
        embedding: Tensor = self.second(hidden)
        return embedding


class ClassEmbedding(nn.Module):
    """One learned row per class and a last one for "no label": int64 [B] in 0..classes -> [B, width]."""

    def __init__(self, classes: int, width: int, *, deviation: float = 1.0) -> None:
        super().__init__()
        self.rows = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.rows.weight, std=deviation)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels [B], where the number of classes (or -1, as data sets write it) means unknown -> [B, width]."""
        unknown = self.rows.num_embeddings - 1
        rows: Tensor = self.rows(torch.where(labels < 0, unknown, labels))
        return rows


class AttributeEmbedding(nn.Module):
    """A learned row for each attribute and each of its values no, yes, unknown: int [B, A] -> [B, width].

    Any subset may be unknown: all unknown is the unconditional model. The sum of A rows is divided by sqrt(A), so that
    the embedding is as large, however many attributes there are. Rows begin smaller than a class's: nearly every image
    has its own set of attributes, so large ones begin as noise that no two images share, and a network first learns to
    ignore them (faces at 32 px after 16,000 images by Muon: validation loss 0.262 from 1.0, 0.255 from 0.3, 0.252 from
    0.1). Not too small, or AdamW takes long to make them matter (`tests/test_latents_attributes.py` fails from 0.1).
    """

    def __init__(self, attributes: int, width: int, *, deviation: float = 0.3) -> None:
        super().__init__()
        self.attributes = attributes
        self.rows = nn.Embedding(3 * attributes, width)
        nn.init.normal_(self.rows.weight, std=deviation)

    def forward(self, values: Tensor) -> Tensor:
        """int [B, A] in {0 no, 1 yes, -1 unknown} -> [B, width]."""
        value = torch.where(values < 0, 2, values.long())
        first_row = 3 * torch.arange(self.attributes, device=values.device)
        total: Tensor = reduce(self.rows(first_row + value), "b a width -> b width", "sum")
        return total / math.sqrt(self.attributes)


def build_condition(
    kind: str, width: int, *, classes: int, attributes: int, deviation: float | None = None
) -> nn.Module | None:
    """The embedding of `model.condition`, or None for an unconditional network.

    `deviation` is that of its first rows; None takes each kind's own.
    """
    begin = {} if deviation is None else {"deviation": deviation}
    if kind == "class":
        return ClassEmbedding(classes, width, **begin)
    if kind == "attributes":
        return AttributeEmbedding(attributes, width, **begin)
    return None
