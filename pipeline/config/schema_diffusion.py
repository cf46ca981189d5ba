"""Settings of the diffusion process and of sampling from it."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Settings


class DiffusionConfig(Settings):
    """The process that training learns to reverse."""

    parametrisation: Literal["eps", "x0", "v", "flow", "edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    label_dropout: float = Field(0.1, ge=0, le=1)


class GuidanceConfig(Settings):
    """Guidance at sampling. scale 1 is the conditional model itself."""

    scale: float = 1.0


class SamplerConfig(Settings):
    """How a denoiser becomes images."""

    kind: Literal["heun"] = "heun"
    steps: int = Field(18, ge=1)
    guidance: GuidanceConfig = GuidanceConfig()
