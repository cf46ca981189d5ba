"""Settings of training on latents: whose they are, and how they are stored."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config.base import Settings


class LatentsConfig(Settings):
    """A diffusion model of an autoencoder's latents, which `data_prep encode` stores once."""

    autoencoder: Path  # a run directory, a folder written by `pipeline export`, or an AutoencoderKL of diffusers
    experiment: str | None = None  # trains the autoencoder at that path, where a submission shall do so
    overrides: tuple[str, ...] = ()  # words for that experiment, such as train.duration=200 kimg
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
    )  # of what is stored; None: the path's last part
    weights: Literal["average", "network"] = "average"  # of an autoencoder's run
    step: int | None = Field(None, ge=0)  # of its checkpoint; None: the last one of a finished run
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"  # as stored
    batch: int = Field(32, ge=1)  # images encoded at once: part of the protocol, as sums round differently in others
    images_per_shard: int = Field(1024, ge=1)
    decode_batch: int = Field(16, ge=1)  # images decoded at once
    tile: int | None = Field(None, ge=4)  # decode larger latents in tiles of this side, a quarter overlapping

    @property
    def stored_name(self) -> str:
        """First part of the name of the directory of latents."""
        return self.name or self.autoencoder.name

    def identity(self) -> dict[str, Any]:
        """What decides the stored values, given the autoencoder's weights and the images."""
        return self.model_dump(mode="json", include={"weights", "step", "dtype", "batch", "images_per_shard"})
