"""A plain U-Net: what a first report builds. Kept as the baseline that `unet` is measured against."""

from typing import Any

from einops import rearrange
from torch import Tensor, cat, nn

from pipeline.config.schema_model import SimpleUNetConfig
from pipeline.models.conditioning import NoiseEmbedding, build_condition
from pipeline.models.layers import Attention, convolution
from pipeline.models.norm import GroupNorm

EMBEDDING_WIDTH = 256


class DoubleConvolution(nn.Module):
    """(3x3 convolution, group norm of one group, GELU) twice; the embedding is added between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = convolution(inputs, outputs), GroupNorm(1, outputs)
        self.embed = nn.Linear(EMBEDDING_WIDTH, outputs)
        self.conv2, self.norm2 = convolution(outputs, outputs), GroupNorm(1, outputs)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, inputs, H, W], embedding [B, 256] -> [B, outputs, H, W]."""
        hidden = nn.functional.gelu(self.norm1(self.conv1(x)))
        hidden = hidden + rearrange(self.embed(embedding), "b c -> b c 1 1")
        return nn.functional.gelu(self.norm2(self.conv2(hidden)))


class SimpleUNet(nn.Module):
    """x [B, C, H, W], noise level [B], condition -> [B, C, H, W]. H and W are multiples of 2^(levels - 1)."""

    def __init__(
        self,
        cfg: SimpleUNetConfig,
        shape: tuple[int, int, int],
        *,
        classes: int = 0,
        attributes: int = 0,
        outputs: int | None = None,
    ) -> None:
        """`shape` is [C, H, W] of the images: H decides where the attention of `cfg.attention` stands."""
        super().__init__()
        self.cfg = cfg
        self.conditional = cfg.condition != "none"
        widths = [cfg.width * multiplier for multiplier in cfg.multipliers]
        self.noise_embedding = NoiseEmbedding(EMBEDDING_WIDTH, features=EMBEDDING_WIDTH, scale=cfg.embedding_scale)
        self.condition = build_condition(cfg.condition, EMBEDDING_WIDTH, classes=classes, attributes=attributes)
        inputs = [shape[0], *widths[:-1]]
        self.down = nn.ModuleList(DoubleConvolution(a, b) for a, b in zip(inputs, widths, strict=True))
        self.middle = DoubleConvolution(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            DoubleConvolution(below + width, width)
            for width, below in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True)
        )
        sizes = [shape[1] >> level for level in range(len(widths))]
        self.attention_down = nn.ModuleList(self._attention(w, s) for w, s in zip(widths, sizes, strict=True))
        self.attention_up = nn.ModuleList(
            self._attention(w, s) for w, s in zip(reversed(widths[:-1]), reversed(sizes[:-1]), strict=True)
        )
        self.conv_out = nn.Conv2d(widths[0], outputs or shape[0], 1)

    def forward(
        self, x: Tensor, noise_cond: Tensor, condition: Tensor | None = None, *, sample_indices: Tensor | None = None
    ) -> Tensor:
        """One evaluation. There is no dropout, so `sample_indices` is not used."""
        del sample_indices
        embedding = self.noise_embedding(noise_cond)
        if self.condition is not None:
            if condition is None:
                raise ValueError("a conditional network was called without a condition: pass labels, or 'unknown'")
            embedding = embedding + self.condition(condition)
        embedding = nn.functional.silu(embedding)
        maps: list[Tensor] = []
        for level, (block, attention) in enumerate(zip(self.down, self.attention_down, strict=True)):
            x = attention(block(nn.functional.max_pool2d(x, 2) if level else x, embedding))
            maps.append(x)
        x = self.middle(maps.pop(), embedding)
        for block, attention in zip(self.up, self.attention_up, strict=True):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = attention(block(cat([x, maps.pop()], dim=1), embedding))
        out: Tensor = self.conv_out(x)
        return out

    def _attention(self, channels: int, size: int) -> Any:
        if size not in self.cfg.attention:
            return nn.Identity()
        return Attention(channels, head_channels=channels // self.cfg.heads, groups=1)
