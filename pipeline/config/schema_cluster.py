"""Settings of a cluster: everything that is particular to a machine stands here and in configs/cluster, not in code."""

from typing import Literal

from pipeline.config.base import Settings


class ClusterConfig(Settings):
    """Where jobs run."""

    name: str
    executor: Literal["local", "slurm"] = "local"
