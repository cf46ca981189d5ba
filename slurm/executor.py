"""A cluster profile -> a submitit executor -> one submitted job."""

import contextlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import CommandFunction, FailedJobError, FailedSubmissionError

from pipeline.config.schema_cluster import ClusterConfig
from pipeline.runtime.commit import commit_of
from pipeline.runtime.errors import UserError
from slurm.environment import setup_lines, teardown_lines
from slurm.job import Job
from slurm.payload import Words
from slurm.rank import RECEIPT

# What a process inside a job inherits and a job that it submits must not.
_OF_A_JOB = ("SLURM_", "SUBMITIT_", "MASTER_", "MUDI_NODE_CACHE", "MUDI_COMMIT", RECEIPT)
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """Where and how one job is submitted."""

    cluster: ClusterConfig
    record: Path  # runs/<name>/jobs/<job>: submitit's files, logs and the records of attempts
    snapshot: Path  # the code
    label: str  # the job's name in the queue
    comment: str  # what it is, for adopting it later
    dependency: str | None = None  # Slurm's --dependency
    cwd: Path = field(default_factory=Path.cwd)  # the job's working directory


def submit(job: Job, place: Place) -> list[Any]:
    """Submit one job (an array where it has parts); submitit's jobs, one for each part.

    Raises:
        UserError: with what sbatch said.
    """
    local = place.cluster.executor == "local"
    # submitit's local executor sets CUDA_VISIBLE_DEVICES; the job gets the submitter's own instead.
    env = (("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")),) if local else ()
    again = place.cluster.requeue
    words = [Words(job.part_argv(part), str(place.record), env, again) for part in range(job.resources.parts)]
    place.record.mkdir(parents=True, exist_ok=True)
    try:
        if local:
            return [_submit_local(job, place, word) for word in words]
        executor = submitit.SlurmExecutor(
            place.record, max_num_timeout=place.cluster.max_timeouts, python=python_of(place.cluster)
        )
        executor.update_parameters(**slurm_parameters(job, place))
        with _outside_of_jobs():
            return list(executor.submit_array(words))
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(
            f"sbatch refused job {job.name}: {str(error).strip()} (cluster={place.cluster.name})."
        ) from error
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        raise UserError(
            f"cluster={place.cluster.name} submits with Slurm, but srun is not on {socket.gethostname()}. "
            "Submit on the cluster's login node, or use cluster=local."
        ) from error


def python_of(cluster: ClusterConfig) -> str:
    """The shell words that start Python in a job."""
    return cluster.python or shlex.quote(sys.executable)


def slurm_parameters(job: Job, place: Place) -> dict[str, Any]:
    """submitit's parameters of a job. All of them, each time: submitit's executors keep what they were told before."""
    cluster, asked = place.cluster, job.resources
    gpus = f"{cluster.gpu_type}:{asked.gpus}" if cluster.gpu_type else str(asked.gpus)
    more: dict[str, Any] = {"requeue" if cluster.requeue else "no-requeue": True, "kill-on-invalid-dep": "yes"}
    more["chdir"] = str(place.cwd)
    if asked.gpus:
        more |= {"gres": f"gpu:{gpus}"} if cluster.gpu_option == "gres" else {"gpus-per-node": gpus}
    return {
        "job_name": place.label,
        "comment": place.comment,
        "partition": asked.partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": asked.minutes,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks_per_node,
        "cpus_per_task": asked.cpus,
        "mem": None if asked.memory_gb is None else f"{round(asked.memory_gb * 1024)}M",
        "dependency": place.dependency,
        "signal_delay_s": cluster.signal_lead_s,
        "array_parallelism": asked.at_once,
        "wckey": None,
        "stderr_to_stdout": True,
        # srun of Slurm 22.05 and later does not take the cores of a task from sbatch: a rank would be bound to one.
        "srun_args": ["--kill-on-bad-exit=1", *([f"--cpus-per-task={asked.cpus}"] if asked.cpus else [])],
        "setup": setup_lines(cluster, asked, place.snapshot, record=place.record),
        "teardown": teardown_lines(cluster, asked, python_of(cluster), record=place.record),
        "additional_parameters": more | dict(cluster.options),
    }


def _submit_local(job: Job, place: Place, words: Words) -> Any:
    asked = job.resources
    if asked.nodes > 1:
        raise UserError(f"cluster.{job.name}.nodes: found {asked.nodes}, expected 1 with the local executor.")
    python = f"env -C {shlex.quote(str(place.cwd))} {python_of(place.cluster)}"
    executor = submitit.LocalExecutor(place.record, max_num_timeout=place.cluster.max_timeouts, python=python)
    executor.update_parameters(
        timeout_min=asked.minutes,
        tasks_per_node=asked.tasks_per_node,
        gpus_per_node=asked.gpus,
        signal_delay_s=place.cluster.signal_lead_s,
        stderr_to_stdout=True,
        setup=list(place.cluster.setup),
    )
    threads = asked.cpus or max((os.cpu_count() or 1) // asked.tasks_per_node, 1)
    env = {
        "PYTHONPATH": os.pathsep.join([str(place.snapshot), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONSAFEPATH": "1",
        "MUDI_COMMIT": commit_of(place.snapshot),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    # A child that starts with SIGINT ignored keeps it so: Ctrl-C reaches the submitter alone, which ends jobs in order.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _outside_of_jobs(), _variables(env):
            return executor.submit(words)
    finally:
        signal.signal(signal.SIGINT, before)


def sbatch(words: list[str]) -> str:
    """Run a Slurm command as from outside any job; what it printed. Its complaints are a `UserError`."""
    try:
        with _outside_of_jobs():
            return str(CommandFunction(words, verbose=False)())
    except (FailedJobError, OSError) as error:
        raise UserError(f"{' '.join(words)}: {str(error).strip()}") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide a surrounding job's variables: sbatch would take them for options. SLURM_CONF, which cluster, stays."""
    inside = "SLURM_JOB_ID" in os.environ or "SUBMITIT_EXECUTOR" in os.environ
    names = [n for n in os.environ if n.startswith(_OF_A_JOB) or n in _RANKS] if inside else []
    with _variables({name: None for name in names if name != "SLURM_CONF"}):
        yield


@contextlib.contextmanager
def _variables(values: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
