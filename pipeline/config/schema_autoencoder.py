"""Settings of training autoencoders and the VAE baseline: what a restored image is judged by."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.config.base import Settings
from pipeline.config.durations import Duration
from pipeline.config.schema_model import PatchDiscriminatorConfig


class PerceptualConfig(Settings):
    """A distance in a network's features (LPIPS: Zhang et al. 2018).

    Without `weights`, the network is the domain classifier of the prepared data; every result says which it was.
    """

    weight: float = Field(0.0, ge=0)  # in the loss; 0: not part of it
    weights: Path | None = None  # SqueezeNet 1.0 or 1.1 on ImageNet as .npz: conv1/w, fire2/conv1x1_1/w, ...
    sha256: str | None = None  # expected hash of that file; null: recorded but not checked
    scale: Literal["imagenet", "caffe"] = "imagenet"  # pixels as torchvision's weights expect them, or as Caffe's do
    heads: Path | None = None  # LPIPS's weights of single channels (lpips_v0.1_squeeze.pth); null: all count alike
    heads_sha256: str | None = None


class DegradationConfig(Settings):
    """What is done to an image that is to be restored, per visit; amounts are uniform from 0 to these."""

    noise: float = Field(0.0, ge=0)  # deviation of normal noise; pixels are in [-1, 1]
    blur: float = Field(0.0, ge=0)  # deviation of a Gaussian, in pixels
    mask: float = Field(0.0, ge=0, le=1)  # side of a grey square, as a share of the image's
    share: float = Field(1.0, ge=0, le=1)  # of visits that are degraded at all

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return bool(self.share and (self.noise or self.blur or self.mask))


class AutoencoderConfig(Settings):
    """The loss of model.kind kl_autoencoder, bottleneck_autoencoder and vae.

    Errors are means over an image's values, and the divergence of its latent is divided by their number, so weights
    mean what they do where both are summed (Rombach et al. 2022). A VAE's loss is then its negative ELBO for a Gaussian
    decoder of variance kl_weight / 2, where reconstruction=l2 (beta is part of that variance).
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = Field(1e-6, ge=0)  # beta; a bottleneck autoencoder has none
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial_weight: float = Field(0.0, ge=0)  # 0: one player
    adversarial_start: Duration = "0 steps"  # the critic plays from here on
    adaptive: bool = True  # multiply by |gradient of the error| / |gradient of the score| (Esser et al. 2021, eq. 7)
    discriminator: PatchDiscriminatorConfig = PatchDiscriminatorConfig()
    degradation: DegradationConfig = DegradationConfig()
