"""Settings of the networks."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Settings

Condition = Literal["none", "class", "attributes"]


class UNetConfig(Settings):
    """The ADM / DDPM++ class of U-Net."""

    kind: Literal["unet"]
    condition: Condition = "class"
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (8,)  # resolutions with self-attention; () is none
    head_channels: int = 32
    dropout: float = Field(0.0, ge=0, lt=1)


ModelConfig = Annotated[UNetConfig, Field()]
