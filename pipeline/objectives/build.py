"""Settings -> objective."""

from pipeline.config.schema import Config
from pipeline.data.shards import Manifest
from pipeline.objectives.denoising import Denoising
from pipeline.objectives.objective import Objective


def build_objective(cfg: Config, manifest: Manifest) -> Objective:
    """The objective of `cfg` for data of `manifest`, its networks freshly initialised from torch's generator."""
    return Denoising(cfg, manifest)
