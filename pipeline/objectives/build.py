"""Settings -> objective."""

from pipeline.config.schema import Config
from pipeline.data.shards import Manifest
from pipeline.objectives.adversarial import Adversarial
from pipeline.objectives.denoising import Denoising
from pipeline.objectives.objective import Objective
from pipeline.runtime.errors import UserError


def build_objective(cfg: Config, manifest: Manifest) -> Objective:
    """The objective that fits the model's kind, its networks freshly initialised from torch's generator.

    Raises:
        UserError: for a model that has no objective yet, or does not fit the data.
    """
    match cfg.model.kind:
        case "unet" | "simple_unet" | "dit":
            return Denoising(cfg, manifest)
        case "stylegan":
            return Adversarial(cfg, manifest)
        case kind:
            raise UserError(
                f"model.kind: found {kind}, which cannot be trained yet. Expected unet, simple_unet, dit or stylegan."
            )
