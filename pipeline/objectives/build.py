"""Settings -> objective."""

from pipeline.config.schema import Config
from pipeline.data.shards import Manifest
from pipeline.objectives.adversarial import Adversarial
from pipeline.objectives.autoencoder import Autoencoding
from pipeline.objectives.denoising import Denoising
from pipeline.objectives.objective import Objective
from pipeline.objectives.variational import Variational


def build_objective(cfg: Config, manifest: Manifest) -> Objective:
    """The objective that fits the model's kind, its networks freshly initialised from torch's generator.

    Raises:
        UserError: for a model that does not fit the data, or files that it needs and that are not there.
    """
    match cfg.model.kind:
        case "unet" | "simple_unet" | "dit" | "diffusers":
            return Denoising(cfg, manifest)
        case "stylegan":
            return Adversarial(cfg, manifest)
        case "kl_autoencoder" | "bottleneck_autoencoder":
            return Autoencoding(cfg, manifest)
        case "vae":
            return Variational(cfg, manifest)
