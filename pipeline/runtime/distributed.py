"""Processes that train together: who we are, where rank 0 listens, and agreement.

Accelerate does not read Slurm's environment, so this does: Slurm's variables, or those of torchrun and accelerate
launch (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or none of them for one process.
"""

import os
import socket
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from pipeline.runtime.errors import RendezvousError, UserError
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.parts import World as World
from pipeline.runtime.parts import this_world
from pipeline.runtime.parts import world_from as world_from


def device_for(world: World) -> torch.device:
    """The GPU of this rank, or the CPU where torch sees none.

    Slurm may show each task its own GPU (then it is number 0) or all GPUs of the node (then it is the local rank).
    """
    visible = torch.cuda.device_count()
    if visible == 0:
        return torch.device("cpu")
    if visible > 1 and world.local_rank >= visible:
        raise UserError(
            f"{socket.gethostname()}: rank {world.rank} is number {world.local_rank} of {world.local_size} on this "
            f"node, but {visible} GPUs are visible (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}). "
            "Ask for as many GPUs as tasks on a node (cluster.train.gpus, cluster.train.tasks)."
        )
    return torch.device("cuda", 0 if visible == 1 else world.local_rank)


def own_device() -> torch.device:
    """The device of this process among the tasks of its job."""
    return device_for(this_world())


def join(world: World, rendezvous: Path, *, timeout_seconds: float = 300.0) -> None:
    """Make the process group: NCCL for GPU tensors, gloo for CPU tensors. Nothing happens for one process.

    Args:
        world: from `world_from`.
        rendezvous: a shared folder in which rank 0 leaves its address where the launcher set none. The file's name
            holds job and restart, so that no attempt meets the address of the one before.
        timeout_seconds: how long to wait for every rank.
    Raises:
        RendezvousError: naming the ranks that never arrived, or the address that could not be reached.
    """
    if world.size == 1 or dist.is_initialized():
        return
    limit = timedelta(seconds=timeout_seconds)
    host, port = _address(world, rendezvous, timeout_seconds)
    try:
        store = TCPStore(host, port, world.size, world.main, limit, wait_for_workers=False)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise RendezvousError(
            f"{socket.gethostname()}: rank {world.rank} cannot {'listen on' if world.main else 'reach'} {host}:{port} "
            f"({str(error).splitlines()[0]}). Set MASTER_PORT to a free port, or check the network between the nodes."
        ) from error
    _roll_call(store, world, limit)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # Accelerate reads these to see that it is one of several processes.
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port), LOCAL_WORLD_SIZE=str(world.local_size))
    wait = timedelta(minutes=30)
    try:
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=wait)
    except RuntimeError as error:  # the store was reached, but the ranks cannot reach each other
        raise RendezvousError(
            f"{socket.gethostname()}: rank {world.rank} of {world.size} cannot connect to the others through {backend} "
            f"({str(error).splitlines()[0]}). Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the nodes' network."
        ) from error


def _roll_call(store: TCPStore, world: World, limit: timedelta) -> None:
    """Everybody says its name; rank 0 names those it never heard."""
    store.set(f"host/{world.rank}", socket.gethostname())
    try:
        store.wait([f"host/{rank}" for rank in range(world.size)], limit)
    except dist.DistStoreError as error:
        here = [rank for rank in range(world.size) if store.check([f"host/{rank}"])]
        missing = sorted(set(range(world.size)) - set(here))
        hosts = ", ".join(f"{rank} on {store.get(f'host/{rank}').decode()}" for rank in here)
        raise RendezvousError(
            f"After {limit.total_seconds():.0f} s, ranks {missing} of {world.size} have not arrived (here: {hosts}; "
            f"nodes: {os.environ.get('SLURM_STEP_NODELIST', 'this host')}). Look at their logs, or at those nodes."
        ) from error


def _address(world: World, rendezvous: Path, timeout_seconds: float) -> tuple[str, int]:
    """Where rank 0 listens: the launcher's choice, else a free port that rank 0 writes into the shared folder."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = "-".join(os.environ.get(f"SLURM_{n}", "0") for n in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    path = rendezvous / f"rendezvous-{attempt}.json"
    if world.main:
        write_json(path, {"host": _own_address(), "port": _free_port()})
    start = time.monotonic()
    while not path.exists():
        if time.monotonic() - start > timeout_seconds:
            raise RendezvousError(
                f"{socket.gethostname()}: {path} did not appear: rank 0 never started, or no shared disk."
            )
        time.sleep(0.05)
    found = read_json(path)
    return str(found["host"]), int(found["port"])


def _own_address() -> str:
    """An address of this host that other nodes reach: what its name resolves to."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks of a CPU tensor (gloo). The same on every rank, to the bit. A collective: call it on all ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    total(torch.zeros(1))


def leave() -> None:
    """Take the process group apart after a clean end: left to the interpreter's exit, gloo may abort."""
    if dist.is_initialized():
        dist.destroy_process_group()


def describe(world: World, device: torch.device) -> str:
    """One line: hosts, ranks, devices, backend, rendezvous."""
    hosts = [socket.gethostname()]
    if dist.is_initialized():
        gathered: list[str | None] = [None] * world.size
        dist.all_gather_object(gathered, hosts[0])
        hosts = sorted({h for h in gathered if h})
    backend = dist.get_backend_config() if dist.is_initialized() else "none"
    where = f"{os.environ.get('MASTER_ADDR', '-')}:{os.environ.get('MASTER_PORT', '-')}" if world.size > 1 else "-"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x {torch.get_num_threads()} threads"
    return f"{world.size} rank(s) on {', '.join(hosts)}; {name}; backend {backend}; rendezvous {where}"


def use_cpus(world: World) -> None:
    """As many threads as this rank was given CPUs, so that ranks of one node do not fight over them."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    cpus = int(given) if given else len(os.sched_getaffinity(0)) // world.local_size
    torch.set_num_threads(max(min(cpus, len(os.sched_getaffinity(0))), 1))


def commit_of(directory: Path) -> str:
    """The git commit of a checkout, with "+" where files differ from it; "unknown" outside of one."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", directory, *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
