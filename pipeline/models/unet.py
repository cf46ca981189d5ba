"""The U-Net of DDPM++ and ADM.

Ho et al. 2020; Song et al. 2021 (DDPM++); Dhariwal & Nichol 2021 (ADM): residual blocks with adaptive group norm,
self-attention at chosen resolutions, up and down inside residual blocks. Arranged so that diffusers' `UNet2DModel`
computes the same from the same weights (`pipeline.diffusers_io`).
"""

from collections.abc import Callable

from torch import Tensor, cat, nn

from pipeline.config.schema_model import UNetConfig
from pipeline.models.conditioning import NoiseEmbedding, build_condition
from pipeline.models.dropout import number_layers
from pipeline.models.layers import Attention, Downsample, Resample, ResidualBlock, Upsample, convolution, zeroed
from pipeline.models.norm import GroupNorm, joined

Block = Callable[..., ResidualBlock]


class Level(nn.Module):
    """The blocks of one resolution on one side of the U, each with its attention or none, then a resampling."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)  # as many as blocks, or none
        self.resample = resample


class DownLevel(Level):
    """One resolution of the way down."""

    def forward(self, x: Tensor, embedding: Tensor, sample_indices: Tensor | None) -> list[Tensor]:
        """All maps that the way up will need, the last of which goes on."""
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x, embedding, sample_indices)
            x = self.attentions[number](x) if len(self.attentions) else x
            maps.append(x)
        if self.resample is not None:
            maps.append(self.resample(x, embedding, sample_indices))
        return maps


class UpLevel(Level):
    """One resolution of the way up."""

    def forward(self, x: Tensor, embedding: Tensor, *, sample_indices: Tensor | None, maps: list[Tensor]) -> Tensor:
        """Takes from the end of `maps`, one a block, and removes what it took."""
        for number, block in enumerate(self.blocks):
            x = block(joined(x, maps.pop()), embedding, sample_indices)
            x = self.attentions[number](x) if len(self.attentions) else x
        out: Tensor = x if self.resample is None else self.resample(x, embedding, sample_indices)
        return out


class UNet(nn.Module):
    """x [B, C, H, W], noise level [B], condition -> [B, C, H, W]. H and W are multiples of 2^(levels - 1)."""

    def __init__(
        self,
        cfg: UNetConfig,
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
        embedding_width = cfg.condition_width or 4 * cfg.width
        self.noise_embedding = NoiseEmbedding(
            embedding_width,
            features=cfg.embedding_width or cfg.width,
            kind=cfg.embedding,
            scale=cfg.embedding_scale,
            shift=cfg.embedding_shift,
            order=cfg.embedding_order,
        )
        condition_width = cfg.condition_channels or embedding_width
        self.condition = build_condition(cfg.condition, condition_width, classes=classes, attributes=attributes)
        tiled = cfg.condition_channels or 0 if self.conditional else 0
        self.conv_in = convolution(shape[0] + tiled, widths[0])
        self.down, skip_widths = self._way_down(widths, shape[1])
        narrow = widths[-1]
        self.middle = DownLevel([self._block(narrow, narrow)], self._attentions(narrow, int(cfg.attends_middle)), None)
        self.middle_last = self._block(narrow, narrow)
        self.up = self._way_up(widths, skip_widths, shape[1])
        self.norm_out = GroupNorm(cfg.groups, widths[0], eps=cfg.norm_eps)
        self.conv_out = zeroed(convolution(widths[0], outputs or shape[0]))
        self.augmentation: nn.Linear | None = None
        number_layers(self)

    def condition_on_augmentation(self, numbers: int) -> None:
        """Take what was done to training images as an input, [B, numbers]; without a bias, so that 0 is nothing."""
        self.augmentation = zeroed(nn.Linear(numbers, self.cfg.condition_width or 4 * self.cfg.width, bias=False))

    def forward(
        self,
        x: Tensor,
        noise_cond: Tensor,
        condition: Tensor | None = None,
        *,
        sample_indices: Tensor | None = None,
        augmented: Tensor | None = None,
    ) -> Tensor:
        """One evaluation. Dropout masks belong to `sample_indices` [B]; `augmented` [B, n]: what was done to the
        images, None for nothing."""
        embedding = self.noise_embedding(noise_cond)
        if self.augmentation is not None and augmented is not None:
            embedding = embedding + self.augmentation(augmented.to(embedding.dtype))
        if self.condition is not None:
            if condition is None:
                raise ValueError("a conditional network was called without a condition: pass labels, or 'unknown'")
            embedded = self.condition(condition)
            if self.cfg.condition_channels:
                x = cat([x, embedded[:, :, None, None].to(x.dtype).expand(-1, -1, *x.shape[2:])], dim=1)
            else:
                embedding = embedding + embedded
        embedding = nn.functional.silu(embedding)
        maps = [self.conv_in(x)]
        for level in self.down:
            maps += level(maps[-1], embedding, sample_indices)
        hidden = self.middle(maps[-1], embedding, sample_indices)[-1]
        hidden = self.middle_last(hidden, embedding, sample_indices)
        for level in self.up:
            hidden = level(hidden, embedding, sample_indices=sample_indices, maps=maps)
        out: Tensor = self.conv_out(self.norm_out(hidden, silu=True))
        return out

    def _block(self, inputs: int, outputs: int, resample: Resample = "none") -> ResidualBlock:
        cfg = self.cfg
        return ResidualBlock(
            inputs,
            outputs,
            embedding_width=cfg.condition_width or 4 * cfg.width,
            groups=cfg.groups,
            dropout=cfg.dropout,
            scale_shift=cfg.scale_shift,
            concat_channels=cfg.concat_channels,
            resample=resample,
            eps=cfg.norm_eps,
        )

    def _attentions(self, channels: int, number: int) -> list[nn.Module]:
        cfg = self.cfg
        return [
            Attention(channels, head_channels=cfg.head_channels, groups=cfg.groups, eps=cfg.norm_eps)
            for _ in range(number)
        ]

    def _resample(self, channels: int, direction: Resample) -> nn.Module:
        if self.cfg.resample == "block":
            return self._block(channels, channels, direction)
        return Upsample(channels) if direction == "up" else Downsample(channels, padding=self.cfg.downsample_padding)

    def _way_down(self, widths: list[int], size: int) -> tuple[nn.ModuleList, list[int]]:
        """The levels from the largest maps to the smallest, and the widths of every map on the way."""
        levels, skips = nn.ModuleList(), [widths[0]]
        for number, width in enumerate(widths):
            last = number == len(widths) - 1
            blocks = [self._block(skips[-1] if k == 0 else width, width) for k in range(self.cfg.blocks)]
            attended = self.cfg.blocks if size >> number in self.cfg.attention else 0
            resample = None if last else self._resample(width, "down")
            levels.append(DownLevel(list(blocks), self._attentions(width, attended), resample))
            skips += [width] * (self.cfg.blocks + (not last))
        return levels, skips

    def _way_up(self, widths: list[int], skips: list[int], size: int) -> nn.ModuleList:
        """The levels from the smallest maps to the largest; each block takes one map of the way down beside its own."""
        levels, skips, before = nn.ModuleList(), list(skips), widths[-1]
        for number in reversed(range(len(widths))):
            width, blocks = widths[number], []
            for _ in range(self.cfg.blocks + 1):
                blocks.append(self._block(before + skips.pop(), width))
                before = width
            attended = self.cfg.blocks + 1 if size >> number in self.cfg.attends_up else 0
            resample = self._resample(width, "up") if number else None
            levels.append(UpLevel(list(blocks), self._attentions(width, attended), resample))
        return levels
