"""Settings -> objective, from the registry."""

from pipeline.config.schema import Config
from pipeline.config.schema_objectives import objective_kind
from pipeline.data.shards import Manifest
from pipeline.objectives.objective import Objective


def build_objective(cfg: Config, manifest: Manifest) -> Objective:
    """The objective that trains the model, its networks freshly initialised from torch's generator.

    Raises:
        UserError: for a model that does not fit the data, or files that it needs and that are not there.
    """
    objective: Objective = objective_kind(cfg).load()(cfg, manifest)
    return objective
