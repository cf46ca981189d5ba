"""The shell lines around a job's words: which code, which port, how many threads, where caches go."""

import shlex
from pathlib import Path

from pipeline.config.schema_cluster import ClusterConfig, Resources
from pipeline.runtime.commit import commit_of
from slurm.after import AGAIN
from slurm.failures import LOST_STEP, POLICIES, retries_allowed
from slurm.rank import RECEIPT

PORTS = (20000, 20000)  # first port and how many: a job's own is found from its id, then the next free one

_RENDEZVOUS = """\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR=$(scontrol show node -o "$first" | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2)
export MASTER_PORT=$(({first} + (SLURM_JOB_ID * 13 + ${{SLURM_RESTART_COUNT:-0}} * 101) % {count}))
while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done"""


def setup_lines(cluster: ClusterConfig, resources: Resources, snapshot: Path, *, record: Path) -> list[str]:
    """What a batch script does before `srun`: the profile's own lines, then ours.

    The batch script runs on the first node of the allocation, where rank 0 will listen: so it is here that a port is
    derived from the job's id and restart, and that it is seen to be free. CUDA_VISIBLE_DEVICES is left alone.
    """
    commit, receipts = commit_of(snapshot), shlex.quote(str(record / "ended"))
    lines = [
        *cluster.setup,
        f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}}  # the code as it was submitted",
        "export PYTHONSAFEPATH=1  # and not what lies in the working directory",
        f"export MUDI_COMMIT={commit}",
        f"mkdir -p {receipts}; export {RECEIPT}={receipts}/$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}",
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}",
        f"export MUDI_NODE_CACHE={shlex.quote(cluster.node_local)}/mudi-$(id -un)-$SLURM_JOB_ID",
        "export TORCHINDUCTOR_CACHE_DIR=$MUDI_NODE_CACHE/inductor TRITON_CACHE_DIR=$MUDI_NODE_CACHE/triton",
        "export CUDA_CACHE_PATH=$MUDI_NODE_CACHE/cuda",
    ]
    if resources.nodes * resources.tasks_per_node > 1:
        lines += _RENDEZVOUS.format(first=PORTS[0], count=PORTS[1]).splitlines()
    return lines


def receipt_lines(resources: Resources) -> list[str]:
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


def teardown_lines(cluster: ClusterConfig, resources: Resources, python: str, *, record: Path) -> list[str]:
    """What a batch script does after `srun`: say why it failed, queue it again where the policy allows, keep the code.

    Dependencies look at the batch script's exit code, so it must stay the job's.
    """
    retry = cluster.retry
    allowed = ",".join(f"{name}={retries_allowed(name, retry)}" for name in POLICIES if retries_allowed(name, retry))
    limits = f"--retries '{allowed}' --backoff {retry.backoff_s}"
    after = f"{python} -m slurm.after {shlex.quote(str(record))} $code {limits}"
    again = f'if [ $code = {AGAIN} ]; then scontrol requeue "$SLURM_JOB_ID"; fi  # Python is in a container'
    return [
        *receipt_lines(resources),
        f"if [ $code != 0 ]; then {after}; code=$?; fi",
        'rm -rf "$MUDI_NODE_CACHE"',
        again,
        "exit $code",
    ]
