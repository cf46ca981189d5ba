"""Settings of a cluster: everything that is particular to a machine stands here and in configs/cluster, not in code."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Settings


def _as_minutes(value: object) -> object:
    """Slurm's ways to write a time limit, as minutes rounded up: M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    if not isinstance(value, str) or value.isdecimal():
        return value
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value)
    if match is None:
        raise ValueError(f"found '{value}', expected minutes, or a time as Slurm has it: 24:00:00, or 1-12:00:00")
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    if days is None and third is None:  # M:S
        return -(-(60 * (first or 0) + (second or 0)) // 60)
    seconds = 86400 * (days or 0) + 3600 * (first or 0) + 60 * (second or 0) + (third or 0)
    return -(-seconds // 60)


Minutes = Annotated[int, BeforeValidator(_as_minutes), Field(ge=1)]
"""A time limit: minutes, or as Slurm writes it."""


class Resources(Settings):
    """What one kind of job asks for."""

    nodes: int = Field(1, ge=1)
    tasks: int | None = Field(None, ge=1)  # processes on each node; None: one for each GPU, or one
    gpus: int = Field(0, ge=0)  # on each node
    cpus: int | None = Field(None, ge=1)  # cores of each task; None: the cluster's default, locally an even share
    memory_gb: float | None = Field(None, gt=0)  # on each node; None: the cluster's default
    # Time limit of one start; a job that is cut continues in the next one. Minutes, or as Slurm has it: 24:00:00, 1-12.
    minutes: Minutes = 60
    partition: str | None = None  # None: the cluster's
    parts: int = Field(1, ge=1)  # an array of this many jobs, each with its share of the images
    at_once: int = Field(64, ge=1)  # most jobs of an array that run at the same time

    @property
    def tasks_per_node(self) -> int:
        """Processes on each node."""
        return self.tasks or max(self.gpus, 1)

    @model_validator(mode="after")
    def _one_task_per_gpu(self) -> Self:
        if self.gpus and self.tasks_per_node != self.gpus:
            raise ValueError(
                f"found tasks={self.tasks} and gpus={self.gpus}, expected one task for each GPU. Leave tasks out"
            )
        return self


class RetryConfig(Settings):
    """How often a failed job is queued again by itself. Classes that are not named here stop at once."""

    error: int = Field(1, ge=0)  # an unknown error: a file system or network that failed for a moment
    rendezvous: int = Field(3, ge=0)  # ranks that did not find each other: a taken port, a slow node
    killed: int = Field(0, ge=0)  # a process that was killed from outside
    backoff_s: int = Field(60, ge=0)  # before the first; doubled for each one after it


class ClusterConfig(Settings):
    """Where and how jobs run. `data_dir` and `runs_dir` stand in for the experiment's own where those are not said."""

    name: str
    data_dir: Path | None = None  # such as /scratch/<project>/mudi/data: seen by all nodes, room for the shards
    runs_dir: Path | None = None  # such as /project/<project>/mudi/runs: seen by all nodes, kept
    weights: Path | None = None  # folder of the weights of evaluation's networks; None: the one of MUDI_WEIGHTS
    executor: Literal["local", "slurm"] = "local"
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_option: Literal["gres", "gpus-per-node"] = "gres"
    gpu_type: str | None = None  # such as a100, where the cluster names its GPUs' types
    options: dict[str, str | int] = Field(default_factory=dict)  # more sbatch options, such as {"mail-type": "FAIL"}
    requeue: bool = True  # whether jobs that are preempted, cut or lose a node are queued again
    signal_lead_s: int = Field(120, ge=1)  # SIGUSR2 comes this long before the time limit: longer than a save takes
    rendezvous_s: float = Field(300, gt=0)  # how long ranks wait for each other before a start counts as failed
    max_timeouts: int = Field(1000, ge=0)  # time limits that one job may reach and be queued again
    retry: RetryConfig = RetryConfig()
    setup: tuple[str, ...] = ()  # shell lines before the job: modules, containers, environments
    python: str | None = None  # the command that starts Python in a job; None: the Python that submits
    node_local: str = "/tmp"  # a folder that is each node's own, for compile caches
    internet: bool = False  # whether jobs may reach the internet; preflight tells when the answer is another one
    least_all_reduce_gb_s: float = Field(0.2, ge=0)  # preflight is red below: gigabit Ethernet has 0.1, InfiniBand 10
    internet_probe: str = "huggingface.co:443"  # the host:port that preflight tries to reach: where weights come from
    prepare: Resources = Resources()
    train: Resources = Resources()
    autoencoder: Resources | None = None  # training one; None: as `train`
    encode: Resources = Resources()  # images to latents
    sample: Resources = Resources()
    evaluate: Resources = Resources()
    compare: Resources = Resources()

    @model_validator(mode="after")
    def _signal_within_limit(self) -> Self:
        """A signal that comes as a job starts would end each start at once, and queue it again for ever."""
        if self.executor == "local":
            return self
        kinds = {name: asked for name in type(self).model_fields if isinstance(asked := getattr(self, name), Resources)}
        short = [f"{name}.minutes={asked.minutes}" for name, asked in kinds.items() if self._cut(asked)]
        if short:
            raise ValueError(
                f"found {', '.join(short)} with signal_lead_s={self.signal_lead_s}, expected time limits "
                "that are longer than the lead of the signal before them"
            )
        return self

    def _cut(self, asked: Resources) -> bool:
        return 60 * asked.minutes <= self.signal_lead_s
