"""A U-Net as first experiments build it: no norms, skips added, and not conditioned on the noise level unless asked."""

from torch import Tensor, nn

from pipeline.config.schema_model import AdditiveUNetConfig
from pipeline.models.conditioning import NoiseEmbedding
from pipeline.models.layers import convolution


class Pair(nn.Module):
    """The two 3x3 convolutions of a level. What the level adds to its map stands between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = convolution(inputs, outputs), convolution(outputs, outputs)

    def forward(self, x: Tensor, added: Tensor | float) -> Tensor:
        """x [B, inputs, H, W], added like the result or a number -> [B, outputs, H, W]."""
        return nn.functional.relu(self.second(nn.functional.relu(self.first(x)) + added))


class AdditiveUNet(nn.Module):
    """x [B, C, H, W], noise level [B] -> [B, C, H, W]. H and W are multiples of 2^(levels - 1).

    Each level has two 3x3 convolutions with ReLU. Down by max-pooling, up by nearest neighbours: there the first
    convolution brings the channels to those of the skip, which is added before the second.
    """

    def __init__(
        self,
        cfg: AdditiveUNetConfig,
        shape: tuple[int, int, int],
        *,
        classes: int = 0,  # noqa: ARG002  # it has no condition
        attributes: int = 0,  # noqa: ARG002
        outputs: int | None = None,
    ) -> None:
        """`shape` is [C, H, W] of the images."""
        super().__init__()
        self.cfg, self.conditional = cfg, False
        widths = [cfg.width * multiplier for multiplier in cfg.multipliers]
        before = [shape[0], *widths[:-1]]
        self.down = nn.ModuleList(Pair(a, b) for a, b in zip(before, widths, strict=True))
        self.up = nn.ModuleList(Pair(b, a) for a, b in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True))
        self.out = convolution(widths[0], outputs or shape[0])
        self.noise_embedding: NoiseEmbedding | None = None
        if cfg.noise_level:
            self.noise_embedding = NoiseEmbedding(4 * cfg.width, features=cfg.width)
            self.tell = nn.ModuleList(nn.Linear(4 * cfg.width, width) for width in [*widths, *reversed(widths[:-1])])

    def forward(
        self, x: Tensor, noise_cond: Tensor, condition: Tensor | None = None, *, sample_indices: Tensor | None = None
    ) -> Tensor:
        """One evaluation. There is no condition and no dropout, so `condition` and `sample_indices` are not used."""
        del condition, sample_indices
        shifts: list[Tensor | float] = [0.0] * (len(self.down) + len(self.up))
        if self.noise_embedding is not None:
            embedding = nn.functional.silu(self.noise_embedding(noise_cond))
            shifts = [linear(embedding)[:, :, None, None] for linear in self.tell]
        maps: list[Tensor] = []
        for level, pair in enumerate(self.down):
            x = pair(nn.functional.max_pool2d(x, 2) if level else x, shifts[level])
            maps.append(x)
        maps.pop()
        for level, pair in enumerate(self.up, start=len(self.down)):
            x = pair(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"), maps.pop() + shifts[level])
        out: Tensor = self.out(x)
        return out
