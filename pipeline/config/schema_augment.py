"""Settings of what is done to a training image besides mirroring it. The defaults leave it as it is."""

from pydantic import Field

from pipeline.config.base import Settings


class AugmentConfig(Settings):
    """Colour jitter and sharpness, drawn per visit. The meanings are torchvision's; see `pipeline.data.augment`.

    brightness, contrast, saturation: their factor is uniform in [max(0, 1 - v), 1 + v]. hue: the turn is uniform in
    [-v, v], where 0.5 is half a turn. sharpness: the factor that a share `sharpness_share` of visits gets; 1 changes
    nothing, 0 blurs, 2 sharpens.
    """

    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)
    saturation: float = Field(0.0, ge=0)
    hue: float = Field(0.0, ge=0, le=0.5)
    sharpness: float = Field(1.0, ge=0)
    sharpness_share: float = Field(0.5, ge=0, le=1)

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        jitter = self.brightness or self.contrast or self.saturation or self.hue
        return bool(jitter or (self.sharpness != 1 and self.sharpness_share))
