"""Settings of a cluster: everything that is particular to a machine stands here and in configs/cluster, not in code."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.config.base import Settings

Options = dict[str, bool | str | int | float | None]  # names without dashes; true or null: without a value


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


# A variable whose name says that it is a secret, with a value that is no path and no other variable.
_SECRET = re.compile(
    r"\b(\w*(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)\w*)=(?![\"']?(?:[$/~`]|\s|$))", re.IGNORECASE
)
Minutes = Annotated[int, BeforeValidator(_as_minutes), Field(ge=1)]
"""A time limit: minutes, or as Slurm writes it."""


# Options of sbatch and srun that follow from elsewhere, and what decides them.
_FROM_ELSEWHERE = {
    **dict.fromkeys(("job-name", "output", "error", "open-mode", "chdir", "kill-on-invalid-dep"), "the launcher"),
    **dict.fromkeys(("wait", "parsable", "wrap", "test-only", "quiet", "input"), "the launcher"),
    "array": "cluster.<job>.parts and at_once",
    "signal": "cluster.signal_lead_s",
    **dict.fromkeys(("requeue", "no-requeue"), "cluster.requeue"),
    **{name: f"cluster.<job>.{name}" for name in ("nodes", "partition")},
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "cluster.<job>.tasks"),
    "cpus-per-task": "cluster.<job>.cpus",
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "cluster.<job>.memory_gb"),
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-task"), "cluster.<job>.gpus and cluster.gpu_type"),
    "time": "cluster.<job>.minutes",
    **{name: f"cluster.{name}" for name in ("account", "qos", "constraint")},
}
_OF_SRUN = ("job-name", "output", "error", "open-mode", "chdir", "input", "quiet", "nodes", "ntasks", "ntasks-per-node")
_FROM_ELSEWHERE_OF_SRUN = {
    **{name: _FROM_ELSEWHERE[name] for name in (*_OF_SRUN, "cpus-per-task")},
    **dict.fromkeys(("unbuffered", "kill-on-bad-exit", "jobid"), "the launcher"),
}


def _checked(options: Options, reserved: dict[str, str]) -> Options:
    """The options with dashes in their names. Refuses what is decided elsewhere, and short names."""
    found = {name.lstrip("-").replace("_", "-"): value for name, value in options.items()}
    if problems := [f"{name} (decided by {reserved[name]})" for name in found if name in reserved]:
        raise ValueError(f"found {', '.join(problems)}, expected other options. Leave them out")
    if short := [name for name in found if len(name) < 2]:
        raise ValueError(f"found {', '.join(short)}, expected long names, such as exclude")
    return found


class Placement(Settings):
    """Where and when Slurm starts jobs: for a whole cluster, or for one kind of job, where None is the cluster's."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None  # nodes that are not to be used, such as node[7-9]
    begin: str | None = None  # the earliest start, such as 20:00 or now+2hours
    nice: int | None = None  # above 0: others go first
    mail_type: str | None = None  # such as END,FAIL
    mail_user: str | None = None  # the address; None: the user's

    def sbatch(self) -> dict[str, str | int | None]:
        """As options of sbatch."""
        return {
            "account": self.account,
            "partition": self.partition,
            "qos": self.qos,
            "constraint": self.constraint,
            "reservation": self.reservation,
            "exclude": self.exclude,
            "begin": self.begin,
            "nice": self.nice,
            "mail-type": self.mail_type,
            "mail-user": self.mail_user,
        }


class Resources(Placement):
    """What one kind of job asks for."""

    nodes: int = Field(1, ge=1)
    tasks: int | None = Field(None, ge=1)  # processes on each node; None: one for each GPU, or one
    gpus: int = Field(0, ge=0)  # on each node
    cpus: int | None = Field(None, ge=1)  # cores of each task; None: the cluster's default, locally an even share
    memory_gb: float | None = Field(None, gt=0)  # on each node; None: the cluster's default
    # Time limit of one start; a job that is cut continues in the next one. Minutes, or as Slurm has it: 24:00:00, 1-12.
    minutes: Minutes = 60
    parts: int = Field(1, ge=1)  # an array of this many jobs, each with its share of the images
    # Where cluster.requeue=false: as many jobs are queued one after the other, each going on where the last was cut.
    starts: int = Field(1, ge=1)
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


class ClusterConfig(Placement):
    """Where and how jobs run. `data_dir` and `runs_dir` stand in for the experiment's own where those are not said."""

    name: str
    data_dir: Path | None = None  # such as /scratch/<project>/mudi/data: seen by all nodes, room for the shards
    runs_dir: Path | None = None  # such as /project/<project>/mudi/runs: seen by all nodes, kept
    weights: Path | None = None  # folder of the weights of evaluation's networks; None: the one of MUDI_WEIGHTS
    executor: Literal["local", "slurm"] = "local"
    account_required: bool = False  # whether each job needs an account, here or from SBATCH_ACCOUNT
    inside: bool = False  # local jobs are steps of the allocation around us, as salloc makes it, started by srun
    gpu_option: Literal["gres", "gpus-per-node"] = "gres"
    gpu_type: str | None = None  # such as a100, where the cluster names its GPUs' types
    options: Options = Field(default_factory=dict)  # more of sbatch, such as {licenses: "a:1", exclusive: true}
    srun_options: Options = Field(default_factory=dict)  # of srun, such as {container-image: /x.sqsh} for pyxis
    requeue: bool = True  # whether jobs that are preempted, cut or lose a node are queued again
    signal_lead_s: int = Field(120, ge=1)  # SIGUSR2 comes this long before the time limit: longer than a save takes
    submit_patience_s: float = Field(300, ge=0)  # how long to try again where Slurm is away or a limit refuses a job
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

    @field_validator("setup")
    @classmethod
    def _without_secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """What stands here is copied into the run's config and into job scripts."""
        if found := [match[1] for line in value if (match := _SECRET.search(line))]:
            raise ValueError(
                f"found a value for {', '.join(found)}, expected no secrets: setup is copied into files of the run, "
                "which others may read. Write the line into a file that you alone may read (chmod 600) and read that: "
                "setup=['. ~/.my_secrets']"
            )
        return value

    @field_validator("options")
    @classmethod
    def _options_of_sbatch(cls, value: Options) -> Options:
        return _checked(value, _FROM_ELSEWHERE)

    @field_validator("srun_options")
    @classmethod
    def _options_of_srun(cls, value: Options) -> Options:
        return _checked(value, _FROM_ELSEWHERE_OF_SRUN)

    @model_validator(mode="after")
    def _signal_within_limit(self) -> Self:
        """A signal that comes as a job starts would end each start at once, and queue it again for ever."""
        if self.executor == "local":
            return self
        kinds = {name: asked for name in type(self).model_fields if isinstance(asked := getattr(self, name), Resources)}
        chains = [f"{name}.starts={asked.starts}" for name, asked in kinds.items() if asked.starts > 1 and self.requeue]
        if chains:
            raise ValueError(
                f"found {', '.join(chains)} with requeue=true, expected starts=1: jobs that are cut are queued again "
                "by themselves. Set requeue=false where the site does not allow it"
            )
        short = [f"{name}.minutes={asked.minutes}" for name, asked in kinds.items() if self._cut(asked)]
        if short:
            raise ValueError(
                f"found {', '.join(short)} with signal_lead_s={self.signal_lead_s}, expected time limits "
                "that are longer than the lead of the signal before them"
            )
        return self

    def _cut(self, asked: Resources) -> bool:
        return 60 * asked.minutes <= self.signal_lead_s
