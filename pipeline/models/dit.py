"""The diffusion transformer (Peebles & Xie 2023) with adaLN-zero.

Arranged so that diffusers' `DiTTransformer2DModel` computes the same from the same weights where there is no QK norm.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from pipeline.config.schema_model import DiTConfig
from pipeline.models.conditioning import NoiseEmbedding, build_condition
from pipeline.models.dropout import KeyedDropout, number_layers
from pipeline.models.layers import attend, zeroed
from pipeline.models.norm import LayerNorm

NOISE_FEATURES = 256
NORM_EPS = 1e-6


def positions(size: int, width: int) -> Tensor:
    """Fixed embeddings of a square grid's cells, row by row: sines and cosines of x, then of y: [size^2, width]."""
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    x, y = repeat(one, "x c -> (y x) c", y=size), repeat(one, "y c -> (y x) c", x=size)
    return torch.cat([x, y], dim=1).float()


class HeadNorm(nn.Module):
    """Root mean square 1 over a head's channels, times a learned weight, computed in fp32: [..., c] -> [..., c]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), NORM_EPS).to(x.dtype)


class TokenAttention(nn.Module):
    """Self-attention over tokens with optionally normalised queries and keys."""

    def __init__(self, width: int, *, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.norm_q = HeadNorm(width // heads) if qk_norm else nn.Identity()
        self.norm_k = HeadNorm(width // heads) if qk_norm else nn.Identity()
        self.to_out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> [B, N, width]."""
        q, k, v = rearrange(self.to_qkv(tokens), "b n (three heads c) -> three b heads n c", three=3, heads=self.heads)
        mixed = attend(self.norm_q(q), self.norm_k(k), v)
        out: Tensor = self.to_out(rearrange(mixed, "b heads n c -> b n (heads c)"))
        return out


class DiTBlock(nn.Module):
    """Attention and MLP; each is shifted, scaled and gated by the embedding, with gates that start at zero."""

    def __init__(self, cfg: DiTConfig) -> None:
        super().__init__()
        hidden = int(cfg.width * cfg.mlp_ratio)
        self.norm1 = LayerNorm(cfg.width, eps=NORM_EPS)
        self.attention = TokenAttention(cfg.width, heads=cfg.heads, qk_norm=cfg.qk_norm)
        self.norm2 = LayerNorm(cfg.width, eps=cfg.mlp_norm_eps)
        self.mlp_in, self.mlp_out = nn.Linear(cfg.width, hidden), nn.Linear(hidden, cfg.width)
        self.dropout = KeyedDropout(cfg.dropout)
        self.modulation = zeroed(nn.Linear(cfg.width, 6 * cfg.width))
        for layer in (self.attention.to_qkv, self.attention.to_out, self.mlp_in, self.mlp_out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, embedding: Tensor, sample_indices: Tensor | None) -> Tensor:
        """tokens [B, N, width], embedding [B, width] after its SiLU -> [B, N, width]."""
        modulation = rearrange(self.modulation(embedding), "b (six c) -> six b 1 c", six=6)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        tokens = tokens + gate1 * self.attention(torch.addcmul(shift1, self.norm1(tokens), 1 + scale1))
        hidden = self.mlp_in(torch.addcmul(shift2, self.norm2(tokens), 1 + scale2))
        hidden = self.dropout(nn.functional.gelu(hidden, approximate="tanh"), sample_indices)
        return torch.addcmul(tokens, gate2, self.mlp_out(hidden))


class DiT(nn.Module):
    """x [B, C, H, W], noise level [B], condition -> [B, C, H, W], H = W the size it was built for."""

    position: Tensor

    def __init__(
        self,
        cfg: DiTConfig,
        shape: tuple[int, int, int],
        *,
        classes: int = 0,
        attributes: int = 0,
        outputs: int | None = None,
    ) -> None:
        """`shape` is [C, H, W] of the images, H = W a multiple of `cfg.patch`."""
        super().__init__()
        self.cfg = cfg
        self.conditional = cfg.condition != "none"
        channels, self.grid = shape[0], shape[1] // cfg.patch
        self.patch_in = nn.Conv2d(channels, cfg.width, cfg.patch, stride=cfg.patch)
        nn.init.xavier_uniform_(self.patch_in.weight.flatten(1))
        self.register_buffer("position", positions(self.grid, cfg.width), persistent=False)
        self.noise_embedding = NoiseEmbedding(cfg.width, features=NOISE_FEATURES, scale=cfg.embedding_scale, shift=1)
        self.condition = build_condition(
            cfg.condition, cfg.width, classes=classes, attributes=attributes, deviation=0.02
        )
        self.blocks = nn.ModuleList(DiTBlock(cfg) for _ in range(cfg.depth))
        self.norm_out = LayerNorm(cfg.width, eps=NORM_EPS)
        self.modulation_out = zeroed(nn.Linear(cfg.width, 2 * cfg.width))
        self.patch_out = zeroed(nn.Linear(cfg.width, cfg.patch**2 * (outputs or channels)))
        for layer in (self.noise_embedding.first, self.noise_embedding.second):
            nn.init.normal_(layer.weight, std=0.02)
        number_layers(self)

    def forward(
        self, x: Tensor, noise_cond: Tensor, condition: Tensor | None = None, *, sample_indices: Tensor | None = None
    ) -> Tensor:
        """One evaluation. `sample_indices` [B] are the image numbers that dropout masks belong to."""
        embedding = self.noise_embedding(noise_cond)
        if self.condition is not None:
            if condition is None:
                raise ValueError("a conditional network was called without a condition: pass labels, or 'unknown'")
            embedding = embedding + self.condition(condition)
        embedding = nn.functional.silu(embedding)
        tokens = rearrange(self.patch_in(x), "b c y x -> b (y x) c") + self.position.to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, embedding, sample_indices)
        shift, scale = rearrange(self.modulation_out(embedding), "b (two c) -> two b 1 c", two=2)
        pixels = self.patch_out(torch.addcmul(shift, self.norm_out(tokens), 1 + scale))
        out: Tensor = rearrange(
            pixels, "b (y x) (p q c) -> b c (y p) (x q)", y=self.grid, p=self.cfg.patch, q=self.cfg.patch
        )
        return out
