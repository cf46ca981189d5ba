"""Processes that train together: who we are, where rank 0 listens, and agreement.

Accelerate does not read Slurm's environment, so this does: Slurm's variables, or those of torchrun and accelerate
launch (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or none of them for one process.
"""

import gc
import importlib
import inspect
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import TCPStore
from torch.nn.parallel import DistributedDataParallel

from pipeline.runtime.errors import RendezvousError, UserError
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.parts import TORCHRUN, this_world
from pipeline.runtime.parts import World as World
from pipeline.runtime.parts import world_from as world_from

Result = TypeVar("Result")
_PARAMETERS = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"  # older torch
_DDP: dict[str, Any] = {_SYNC_BUFFERS: False, "gradient_as_bucket_view": True}


def device_for(world: World, *, gpus: int = 0, setting: str = "cluster.*.gpus") -> torch.device:
    """The GPU of this rank, or the CPU where torch sees none and the job asked for none.

    Slurm may show each task its own GPU (then it is number 0) or all GPUs of the node (then it is the local rank).

    Args:
        world: this process.
        gpus: how many GPUs on each node the job asked for, by `setting`.
        setting: its name, for the error.
    Raises:
        UserError: where the job asked for GPUs and none is visible, or fewer are visible than ranks.
    """
    visible = torch.cuda.device_count()
    if visible == 0 and gpus:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UserError(
            f"{setting}: found {gpus}, but rank {world.rank} on {socket.gethostname()} sees no GPU (torch "
            f"{torch.__version__}, {built}; CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}). Run it "
            f"where there are GPUs, install a torch that fits their driver, or set {setting}=0 to compute on the CPU."
        )
    if visible == 0:
        return torch.device("cpu")
    if visible > 1 and world.local_rank >= visible:
        raise UserError(
            f"{socket.gethostname()}: rank {world.rank} is number {world.local_rank} of {world.local_size} on this "
            f"node, but {visible} GPUs are visible (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}). "
            "Ask for as many GPUs as tasks on a node (cluster.train.gpus, cluster.train.tasks)."
        )
    return torch.device("cuda", 0 if visible == 1 else world.local_rank)


def own_device(*, gpus: int = 0, setting: str = "cluster.*.gpus") -> torch.device:
    """The device of this process among the tasks of its job; arguments and errors as for `device_for`."""
    return device_for(this_world(), gpus=gpus, setting=setting)


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
    if world.size == 1:
        # Under torchrun Accelerate would make a group of NCCL alone for it, which cannot reduce what lies on the CPU.
        for name in TORCHRUN:
            os.environ.pop(name, None)
        return
    # Its functions keep the group of the moment of this import as their default: it is to be none, see `leave`.
    importlib.import_module("torch.distributed.nn")
    if dist.is_initialized():
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
    """Sum over ranks, in place. The same on every rank, to the bit. A collective: call it on all ranks.

    The group that trains does it: NCCL for a tensor on a GPU, without waiting for it, gloo for one on the CPU.
    """
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def average(values: list[torch.Tensor]) -> None:
    """Mean over ranks of tensors on one device, in place. A collective, one for all tensors of a type."""
    if ranks()[1] == 1:
        return
    for dtype in sorted({value.dtype for value in values}, key=str):
        some = [value for value in values if value.dtype == dtype]
        joint, start, parts = some[0].new_empty(sum(value.numel() for value in some)), 0, []
        for value in some:  # dense, in whatever order of dimensions
            parts.append(joint.as_strided(value.shape, value.stride(), start))
            start += value.numel()
        torch._foreach_copy_(parts, some)
        total(joint)
        joint /= dist.get_world_size()
        torch._foreach_copy_(some, parts)


def ranks() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(values: torch.Tensor) -> torch.Tensor:
    """The `values` of all ranks [n, ...], of one shape everywhere, in the order of ranks: [ranks * n, ...]."""
    if not dist.is_initialized():
        return values
    out = values.new_empty(dist.get_world_size() * len(values), *values.shape[1:])
    dist.all_gather_into_tensor(out, values.contiguous())
    return out


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, its gradients averaged over ranks by each backward pass; itself in a single process.

    Our networks' buffers are equal on every rank, from the start and after every step: no forward pass needs to
    broadcast them.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, devices, **_DDP)


def barrier() -> None:
    """Wait for all ranks."""
    total(torch.zeros(1))


def decided(decide: Callable[[], Result]) -> Result:
    """What rank 0 decides, on every rank: only rank 0 calls `decide`. Where it fails, all raise. A collective.

    Ranks that each looked at the disk for themselves could see different states of it.
    """
    if not dist.is_initialized():
        return decide()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = decide()
        except Exception as error:
            told[1] = error if isinstance(error, UserError | OSError) else RuntimeError(f"rank 0 failed: {error!r}")
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    decision: Result = told[0]
    return decision


def together(work: Callable[[], Result]) -> Result:
    """`work`, done by every rank. It returns when all are done; where one fails, all raise. A collective.

    Without it the others would wait in the next collective for a rank that has left.
    """
    if not dist.is_initialized():
        return work()
    result, mine = None, None
    try:
        result = work()
    except Exception as error:
        mine = error
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, None if mine is None else str(mine) or repr(mine))
    if mine is not None:
        raise mine
    failed = [rank for rank, failure in enumerate(failures) if failure is not None]
    if failed:
        raise UserError(f"rank {failed[0]} of {len(failures)}: {failures[failed[0]]}")
    return result  # type: ignore[return-value]  # None only where `work` returned it


def leave() -> None:
    """Take the process group apart, and end its threads. Call it when nothing refers to a `parallel` network any more.

    A thread of gloo may have to release a tensor of Python after the collective that it belonged to has returned. If
    the interpreter is ending by then, the process aborts ("terminate called without an active exception"). The threads
    end with the last reference to the group, which networks and their cycles of references hold too.
    """
    if dist.is_initialized():
        gc.collect()
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
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return
    os.environ.pop("OMP_NUM_THREADS", None)  # empty, or no number: accelerate would read it as one
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    cpus = int(given) if given else len(os.sched_getaffinity(0)) // world.local_size
    torch.set_num_threads(max(min(cpus, len(os.sched_getaffinity(0))), 1))
