"""A job in its submit context -> a batch script for sbatch, or a process on this machine.

The batch script's lines around the command: which code, which port, how many threads, where caches go; after it, the
job epilogue. Everything that a job needs is on the disk before sbatch is called: where sbatch's answer is lost, or its
caller is killed, what was queued runs all the same.
"""

import contextlib
import functools
import os
import re
import shlex
import signal
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from pipeline.config.schema_cluster import ClusterConfig, Options, Resources
from pipeline.runtime.commit import commit_of
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_text
from slurm.epilogue import AGAIN
from slurm.failures import LOST_STEP, POLICIES, retries_allowed
from slurm.graph import Job
from slurm.payload import Payload
from slurm.queue import LimitReached, NoSlurm, SlurmAway, command, patiently, queued_script
from slurm.rank import CACHE, MAKES, RECEIPT

# What a process inside a job inherits and a job that it submits must not.
_OF_A_JOB = ("SLURM_", "SUBMITIT_", "MASTER_", "MUDI_COMMIT", CACHE, MAKES, RECEIPT)
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
PORTS = (20000, 20000)  # first port and how many: a job's own is found from its id, then the next free one
# sbatch takes variables of the environment before a script's own options. What these say is always the profile's.
_VARIABLES = {"SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SBATCH_MEM_PER_NODE", "SBATCH_JOB_NAME", "SBATCH_SIGNAL"}
_VARIABLES |= {"SBATCH_OPEN_MODE", "SBATCH_WAIT", "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE", "SBATCH_GRES", "SBATCH_GPUS"}
_VARIABLES |= {"SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_CPUS_PER_GPU"}
_VARIABLES |= {"SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"}
_RENDEZVOUS = """\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR=$(scontrol show node -o "$first" | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2)
export MASTER_PORT=$(({first} + (SLURM_JOB_ID * 13 + ${{SLURM_RESTART_COUNT:-0}} * 101) % {count}))
while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done"""


@dataclass(frozen=True)
class SubmitContext:
    """Where and how one job is submitted."""

    cluster: ClusterConfig
    record: Path  # runs/<name>/jobs/<job>: scripts, logs and the records of attempts
    snapshot: Path  # the code
    label: str  # the job's name in the queue
    comment: str  # what it is, for finding it in the queue
    dependency: str | None = None  # Slurm's --dependency
    cwd: Path = field(default_factory=Path.cwd)  # the job's working directory
    chain: Path | None = None  # of several jobs that make the same: where one says that those after it cannot either


def would_take(job: Job, context: SubmitContext, folder: Path) -> str:
    """What Slurm says of a job that is shown to it and not submitted: when and where it could start.

    Raises:
        UserError: with Slurm's complaint, of a partition, an account, an option, or what the job asks for.
    """
    script = folder / f"{job.name}.sh"
    write_text(script, batch_script(job, context))
    return slurm("sbatch", "--test-only", str(script), errors=True)


def submit(job: Job, context: SubmitContext) -> tuple[str, ...]:
    """Submit one job (an array where it has parts); the ids of its parts.

    Raises:
        UserError: with what sbatch said. `SlurmAway` and `LimitReached`: after having tried for a while.
    """
    context.record.mkdir(parents=True, exist_ok=True)
    if context.cluster.executor == "local":
        return tuple(_submit_local(job, context, part) for part in range(job.resources.parts))
    token = uuid.uuid4().hex[:12]
    call = context.record / f"call-{token}.pkl"
    delayed = DelayedSubmission(
        Payload(job.argv, str(context.record), job.resources.parts, requeue=context.cluster.requeue)
    )
    delayed.set_timeout(job.resources.minutes, context.cluster.max_timeouts)
    delayed.dump(call)
    script = context.record / f"call-{token}.sh"
    write_text(script, batch_script(job, context, call=call))
    with outside_of_jobs(context.cluster, set(sbatch_options(job, context))):
        job_id = _sbatch(script, job, context)
    parts = job.resources.parts
    return (job_id,) if parts == 1 else tuple(f"{job_id}_{part}" for part in range(parts))


def _sbatch(script: Path, job: Job, context: SubmitContext) -> str:
    """Queue a script; where Slurm does not answer, look whether it was queued before it is sent again."""
    sent = False

    def once() -> str:
        nonlocal sent
        if sent and (found := queued_script(str(script))):
            print(f"slurm: {job.name} was queued as {found}, though sbatch said otherwise", file=sys.stderr)
            return found
        sent = True
        return command("sbatch", "--parsable", str(script)).strip().partition(";")[0].splitlines()[-1]

    where = f"cluster={context.cluster.name}"
    try:
        return patiently(once, seconds=context.cluster.submit_patience_s)
    except NoSlurm as error:
        raise UserError(f"{where} submits with Slurm, but {error}") from error
    except (SlurmAway, LimitReached) as error:
        later = "Submit again later: what is queued stays"
        raise type(error)(f"Job {job.name} is not queued: {error} ({where}). {later}.") from error
    except UserError as error:
        raise UserError(f"sbatch refused job {job.name}: {error} ({where}).") from error


def python_of(cluster: ClusterConfig) -> str:
    """The command line that starts Python in a job."""
    return cluster.python or shlex.quote(sys.executable)


# The batch script


def batch_script(job: Job, context: SubmitContext, *, call: Path | None = None) -> str:
    """The whole script of a job.

    Args:
        call: the pickled command that submitit's launcher in each rank starts; None: ranks start the command itself,
            in a script that a person reads, changes and submits.
    """
    cluster, record, parts = context.cluster, shlex.quote(str(context.record)), job.resources.parts
    options = [_flag(name, value) for name, value in sorted(sbatch_options(job, context).items())]
    if call is not None:
        name = '${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}_submitted.pkl"'
        start = [f'ln -s {call.name} {record}/"{name} 2>/dev/null  # unless an earlier start left its own']
        start += ["export SUBMITIT_EXECUTOR=slurm"]
        argv = f"-u -m submitit.core._submit {record}"
    else:
        part = f" --part $SLURM_ARRAY_TASK_ID/{parts}" if parts > 1 else ""
        start, argv = [], shlex.join(("-u", "-m", "slurm.rank", *job.argv)) + part
    names = "%A_%a" if parts > 1 else "%j"
    srun: Options = {"unbuffered": True, "output": str(context.record / f"{names}_%t_log.out"), "kill-on-bad-exit": 1}
    # srun of Slurm 22.05 and later does not take the cores of a task from sbatch: a rank would be bound to one.
    srun |= {"cpus-per-task": job.resources.cpus} if job.resources.cpus else {}
    run = ["srun", *_flags({**srun, "export": "ALL", **cluster.srun_options})]  # ALL: also after sbatch --export=NONE
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options if option), "", "# setup"]
    lines += [*setup_lines(job, context), "", "# command", *start]
    lines += [f"{shlex.join(run)} {python_of(cluster)} {argv}", "", "# teardown"]
    return "\n".join([*lines, *_teardown_lines(job, context, by_hand=call is None)]) + "\n"


def sbatch_options(job: Job, context: SubmitContext) -> Options:
    """Everything that sbatch is told, by the long names of its options."""
    cluster, asked = context.cluster, job.resources
    options: Options = dict(cluster.options)
    waits = [context.dependency, options.pop("dependency", None)]
    if "?" in str(waits[1]) and waits[0]:
        raise UserError(
            f"cluster.options.dependency: found '{waits[1]}', expected no '?' (any of them), as it stands beside "
            f"{waits[0]}."
        )
    comments = [options.pop("comment", None), context.comment]
    gpus = f"{cluster.gpu_type}:{asked.gpus}" if cluster.gpu_type else str(asked.gpus)
    gpu_option = {"gres": f"gpu:{gpus}"} if cluster.gpu_option == "gres" else {"gpus-per-node": gpus}
    parts = asked.parts
    ours: Options = {
        "job-name": context.label,
        "chdir": str(context.cwd),
        "output": str(context.record / ("%A_%a_0_log.out" if parts > 1 else "%j_0_log.out")),
        "open-mode": "append",
        "nodes": asked.nodes,
        "ntasks-per-node": asked.tasks_per_node,
        "time": asked.minutes,
        "signal": f"USR2@{cluster.signal_lead_s}",
        "requeue" if cluster.requeue else "no-requeue": True,
        "kill-on-invalid-dep": "yes",
        "comment": " ".join(str(c) for c in comments if c),
    }
    ours |= {"cpus-per-task": asked.cpus} if asked.cpus else {}
    ours |= {"mem": f"{round(asked.memory_gb * 1024)}M"} if asked.memory_gb is not None else {}
    ours |= gpu_option if asked.gpus else {}
    ours |= {"array": f"0-{parts - 1}%{min(parts, asked.at_once)}"} if parts > 1 else {}
    ours |= {"dependency": ",".join(str(w) for w in waits if w)} if any(waits) else {}
    mine = {name: value for name, value in asked.sbatch().items() if value is not None}
    of_profile = {name: value for name, value in cluster.sbatch().items() if value is not None}
    return {**options, **of_profile, **mine, **ours}


def _flag(name: str, value: bool | str | int | float | None) -> str:
    flag = "".join(_flags({name: value}))
    option, equals, text = flag.partition("=")
    return option + equals + (shlex.quote(text) if equals else "")


def _flags(options: Options) -> list[str]:
    """Options as a command line has them. True, None and "" are flags without a value; False leaves one out."""
    flags = [(name, value is True or value is None or value == "") for name, value in options.items()]
    return [f"--{name}" if flag else f"--{name}={options[name]}" for name, flag in flags if options[name] is not False]


def setup_lines(job: Job, context: SubmitContext) -> list[str]:
    """What a batch script does before `srun`: the profile's own lines, then ours.

    The batch script runs on the first node of the allocation, where rank 0 will listen: so it is here that a port is
    derived from the job's id and restart, and that it is seen to be free. CUDA_VISIBLE_DEVICES is left alone.
    """
    cluster, receipts = context.cluster, shlex.quote(str(context.record / "ended"))
    code = shlex.quote(str(context.snapshot))
    gave_up = 'echo "slurm: the job before this one failed for a reason that comes again: see its log"; exit 1'
    lines = [
        *([f"if [ -e {shlex.quote(str(context.chain))} ]; then {gave_up}; fi"] if context.chain else []),
        *cluster.setup,
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}  # the code as it was submitted",
        "export PYTHONSAFEPATH=1  # and not what lies in the working directory",
        f"export MUDI_COMMIT={commit_of(context.snapshot)}",
        f"mkdir -p {receipts}; export {RECEIPT}={receipts}/$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}",
        *_makes_lines(job, context),
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
        f"export {CACHE}={shlex.quote(cluster.node_local)}/mudi-$(id -u)-$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}",
        "export TORCHINDUCTOR_CACHE_DIR=$MUDI_NODE_CACHE/inductor TRITON_CACHE_DIR=$MUDI_NODE_CACHE/triton",
        "export CUDA_CACHE_PATH=$MUDI_NODE_CACHE/cuda",
    ]
    if job.resources.nodes * job.resources.tasks_per_node > 1:
        lines += _RENDEZVOUS.format(first=PORTS[0], count=PORTS[1]).splitlines()
    return lines


def _makes_lines(job: Job, context: SubmitContext) -> list[str]:
    """Where this job's work can be seen to grow. The parts of an array that each have a place find it in a file."""
    if len(job.makes) < 2:
        return [f"export {MAKES}={shlex.quote(str(path))}" for path in job.makes]
    listed = context.record / "makes"
    write_text(listed, "".join(f"{path}\n" for path in job.makes))
    return [f'export {MAKES}=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(listed))})']


def _receipt_lines(resources: Resources) -> list[str]:
    """What a batch script does directly after `srun`: keep its code, unless the ranks' receipts tell otherwise.

    srun leaves with 0 where the manager of the step was killed, and with a signal where a rank aborts after its end.
    Each receipt is looked for by its name, as a network file system may show a folder as it was a minute ago.
    """
    last = resources.nodes * resources.tasks_per_node - 1
    well = "slurm: srun says $code, but every rank had ended well before: that is what counts"
    return [
        "code=$? missing=",
        f'for rank in {{0..{last}}}; do [ -e "${RECEIPT}.$rank" ] || missing="$missing $rank"; done',
        f'rm -f "${RECEIPT}".*',
        f'if [ $code = 0 ] && [ "$missing" ]; then code=137; echo "{LOST_STEP}$missing"; fi',
        f'if [ $code != 0 ] && [ -z "$missing" ]; then echo "{well}"; code=0; fi',
    ]


def _teardown_lines(job: Job, context: SubmitContext, *, by_hand: bool) -> list[str]:
    """What a batch script does after `srun`: the job epilogue says why it failed, and whether it is queued again.

    Dependencies look at the batch script's exit code, so it must stay the job's.
    """
    cluster, retry = context.cluster, context.cluster.retry
    allowed = ",".join(f"{name}={retries_allowed(name, retry)}" for name in POLICIES if retries_allowed(name, retry))
    limits = f"--retries '{allowed}' --backoff {retry.backoff_s}" + " --by-hand" * (by_hand and cluster.requeue)
    limits += f" --chain {shlex.quote(str(context.chain))}" if context.chain else ""
    # Where srun starts a container, Python may be in there alone.
    inside = "".join(f"{flag} " for flag in _flags(cluster.srun_options)) if cluster.srun_options else ""
    run = f"srun --quiet --overlap --nodes=1 --ntasks=1 --export=ALL {inside}" if "--container" in inside else ""
    epilogue = f"{run}{python_of(cluster)} -m slurm.epilogue {shlex.quote(str(context.record))} $code {limits}"
    return [
        *_receipt_lines(job.resources),
        f"if [ $code != 0 ]; then {epilogue}; [ $? = {AGAIN} ] && code={AGAIN}; fi",
        'rm -rf "$MUDI_NODE_CACHE"',
        f'if [ $code = {AGAIN} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        "exit $code",
    ]


# On this machine


def _submit_local(job: Job, context: SubmitContext, part: int) -> str:
    """Start one part as a process; its pid, which is its id."""
    asked, cluster = job.resources, context.cluster
    if asked.nodes > 1 and not cluster.inside:
        raise UserError(f"cluster.{job.name}.nodes: found {asked.nodes}, expected 1 with the local executor.")
    python = f"env -C {shlex.quote(str(context.cwd))} {python_of(cluster)}"
    python = f"{_srun(job, cluster)} {python}" if cluster.inside else python
    executor = submitit.LocalExecutor(context.record, max_num_timeout=cluster.max_timeouts, python=python)
    executor.update_parameters(
        timeout_min=asked.minutes,
        tasks_per_node=1 if cluster.inside else asked.tasks_per_node,
        gpus_per_node=asked.gpus,
        signal_delay_s=cluster.signal_lead_s,
        stderr_to_stdout=True,
        setup=list(cluster.setup),
    )
    threads = asked.cpus or max((os.cpu_count() or 1) // asked.tasks_per_node, 1)
    env = {
        "PYTHONPATH": os.pathsep.join([str(context.snapshot), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONSAFEPATH": "1",
        "MUDI_COMMIT": commit_of(context.snapshot),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads),
        "MASTER_ADDR": first_node() if cluster.inside else "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    # submitit's local executor sets CUDA_VISIBLE_DEVICES; the job gets the submitter's own instead.
    own = (("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")),)
    payload = Payload(job.part_argv(part), str(context.record), env=own, requeue=cluster.requeue)
    # A child that starts with SIGINT ignored keeps it so: Ctrl-C reaches the submitter alone, which ends jobs in order.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with contextlib.nullcontext() if cluster.inside else outside_of_jobs(), _variables(env):
            return str(executor.submit(payload).job_id)
    finally:
        signal.signal(signal.SIGINT, before)


def allocation() -> str:
    """The id of the allocation around us.

    Raises:
        UserError: there is none.
    """
    if found := os.environ.get("SLURM_JOB_ID"):
        return found
    raise UserError(
        "cluster.inside=true runs jobs in the allocation that you hold: found none (SLURM_JOB_ID is not set). "
        "Take one first, such as salloc --nodes=1 --gres=gpu:4 --time=8:00:00, or name another cluster."
    )


def first_node() -> str:
    """The address of the first node of the allocation around us."""
    nodes = re.search(r" NodeList=(\S+)", command("scontrol", "show", "job", "-o", allocation()))
    first = command("scontrol", "show", "hostnames", nodes[1] if nodes else "").split()[0]
    found = re.search(r" NodeAddr=(\S+)", command("scontrol", "show", "node", "-o", first))
    return found[1] if found else first


def _srun(job: Job, cluster: ClusterConfig) -> str:
    """The command line that starts a job's processes in the allocation around us.

    To submitit each is a process of this machine: it gets its place from srun. Of the job around them, which is not
    theirs to queue again, they know nothing.
    """
    asked = job.resources
    options: Options = {"nodes": asked.nodes, "ntasks-per-node": asked.tasks_per_node, "jobid": allocation()}
    options |= {"unbuffered": True, "kill-on-bad-exit": 1, "export": "ALL", "overlap": True}
    options |= {"cpus-per-task": asked.cpus} if asked.cpus else {}
    options |= {"gres": f"gpu:{asked.gpus}"} if asked.gpus else {}
    places = {"NTASKS": "NTASKS", "GLOBALID": "PROCID", "LOCALID": "LOCALID", "JOB_NUM_NODES": "NNODES"}
    lines = [f"export SUBMITIT_LOCAL_{local}=$SLURM_{name}" for local, name in places.items()]
    lines += ["export SUBMITIT_EXECUTOR=local", "unset SLURM_JOB_ID SLURM_JOBID", 'exec "$@"']
    return f"srun {shlex.join(_flags(options | cluster.srun_options))} bash -c {shlex.quote('; '.join(lines))} step"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The environment


def slurm(*argv: str, errors: bool = False) -> str:
    """Run a command of Slurm as from outside any job; what it printed. Its complaints are a `UserError`."""
    with outside_of_jobs():
        return command(*argv, errors=errors)


@contextlib.contextmanager
def outside_of_jobs(cluster: ClusterConfig | None = None, options: set[str] | None = None) -> Iterator[None]:
    """Hide a surrounding job's variables: sbatch would take them for options. SLURM_CONF, which cluster, stays.

    Hide too, and say so, what overrides one of these options of the profile.
    """
    inside = "SLURM_JOB_ID" in os.environ or "SUBMITIT_EXECUTOR" in os.environ
    names = [n for n in os.environ if n.startswith(_OF_A_JOB) or n in _RANKS] if inside else []
    overriding = sorted(variables_over(options or set()) & os.environ.keys()) if cluster is not None else []
    if cluster is not None and overriding:
        notice(notice_of(overriding, cluster))
    with _variables({name: None for name in [*names, *overriding] if name != "SLURM_CONF"}):
        yield


@functools.cache
def notice(line: str) -> None:
    """Say it once, not once for each job."""
    print(f"slurm: {line}", file=sys.stderr, flush=True)


def notice_of(variables: Sequence[str], cluster: ClusterConfig) -> str:
    """The notice of variables that are not used."""
    return f"not used, because cluster={cluster.name} says what jobs ask for: {', '.join(variables)} of the environment"


def variables_over(options: set[str]) -> set[str]:
    """The variables by which sbatch would override one of these options, or one that is always the profile's."""
    return _VARIABLES | {f"SBATCH_{name.upper().replace('-', '_')}" for name in options}


@contextlib.contextmanager
def _variables(values: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
