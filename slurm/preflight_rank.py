"""The part of preflight that runs as a job: every rank looks around and writes down what it finds.

    python -m slurm.preflight_rank FOLDER           what is asked stands in FOLDER/asked.json

torch is asked for here alone in this package, on the compute node and while running: GPUs, and an all-reduce.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.runtime.files import read_json, write_json, write_text

WAIT_SECONDS = 30.0  # for other ranks' files and connections
PROBE_SECONDS = 5.0
ASKED = "asked.json"
SIGNAL_ASKED = "signal"  # a file: the submitter is to send the signal
REDUCED_MIB, REPEATS = 32, 5
WRITTEN_MIB = 64
NETWORK_DISKS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "fuse.glusterfs", "panfs", "afs")


def main(words: list[str]) -> int:
    """Write `FOLDER/rank-<n>.json`; 0 also where something is wrong: the submitter reads and judges."""
    folder = Path(words[0])
    asked = read_json(folder / ASKED)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    report: dict[str, Any] = {"rank": rank, "size": size, "host": node_name(), "pid": os.getpid()}
    checks: dict[str, Callable[[], Any]] = {
        "gpus": gpus,
        "threads": lambda: {"omp": os.environ.get("OMP_NUM_THREADS"), "cores": len(os.sched_getaffinity(0))},
        "cache": cache,
        "disks": lambda: [disk(Path(path)) for path in asked["shared"]],
        "needed": lambda: {name: readable(Path(path)) for name, path in asked["needed"].items()},
        "met": lambda: meet(folder, rank, size),
        "written_mib_per_s": lambda: write_speed(folder, rank),
        "internet": lambda: reaches(asked["probe"]),
        "reduce": lambda: all_reduce(rank, size),
        "signal_s": lambda: signal_seconds(folder, rank, size),
    }
    for name, check in checks.items():
        began = time.monotonic()
        try:
            report[name] = check()
        except Exception as error:  # the check's finding is that it failed, with these words
            report[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"rank {rank}: {name} {json.dumps(report[name])} ({time.monotonic() - began:.1f} s)", flush=True)
    write_json(folder / f"rank-{rank}.json", report)
    return 0


def node_name() -> str:
    """The node as Slurm calls it, or the host."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())


def gpus() -> dict[str, Any]:
    """What torch sees, and which device this rank would use."""
    torch = importlib.import_module("torch")
    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    used = 0 if count == 1 else local
    names = [torch.cuda.get_device_name(n) for n in range(count)]
    bus = [torch.cuda.get_device_properties(n).uuid for n in range(count)] if count else []
    mine = str(bus[used]) if used < len(bus) else None
    return {"count": count, "names": names, "mine": mine, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


def mount_type(path: Path) -> str:
    """The file system's type below a path, from the longest mount point that holds it."""
    place = path.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(point), kind) for point, kind in mounts if place.is_relative_to(point)]
    return max(inside, default=(0, "unknown"))[1]


def cache() -> dict[str, Any]:
    """Whether compile caches lie on a disk of the node's own."""
    path = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "/tmp"))
    path.mkdir(parents=True, exist_ok=True)
    kind = mount_type(path)
    return {"path": str(path), "type": kind, "local": kind not in NETWORK_DISKS}


def disk(path: Path) -> dict[str, Any]:
    """Room and type of the disk of a shared directory."""
    usage = shutil.disk_usage(path)
    return {"path": str(path), "free_gib": round(usage.free / 2**30, 1), "type": mount_type(path)}


def meet(folder: Path, rank: int, size: int) -> list[int]:
    """Every rank leaves a file in the shared directory and looks for the others'; the ranks that it saw."""
    write_text(folder / f"here-{rank}", node_name())
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and not all((folder / f"here-{r}").exists() for r in range(size)):
        time.sleep(0.1)
    return [r for r in range(size) if (folder / f"here-{r}").exists()]


def write_speed(folder: Path, rank: int) -> float | None:
    """MiB/s of rank 0's writing to the shared directory, flushed to the disk, as a checkpoint is."""
    if rank:
        return None
    path, data = folder / "speed.bin", os.urandom(2**20)
    began = time.monotonic()
    with path.open("wb") as file:
        for _ in range(WRITTEN_MIB):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return round(WRITTEN_MIB / seconds, 1)


def readable(path: Path) -> bool:
    """Whether a file can be read, or a folder listed, from here."""
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)


def reaches(probe: str) -> bool:
    """Whether this node can find host:port and open a connection, within seconds."""
    host, _, port = probe.rpartition(":")
    reached: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port)), timeout=2.0).close()
            reached.append(True)

    # Where there is no name server, asking one for a name takes as long as it likes.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(reached)


def all_reduce(rank: int, size: int) -> dict[str, Any] | None:
    """Bus bandwidth of an all-reduce between all ranks, GB/s, as NCCL's own tests count it: 2 (n-1)/n bytes/time."""
    if size == 1:
        return None
    torch = importlib.import_module("torch")
    dist = torch.distributed
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(0 if torch.cuda.device_count() == 1 else int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=WAIT_SECONDS))
    values = torch.ones(REDUCED_MIB * 2**18, device=device)
    dist.all_reduce(values)  # the first one connects
    began = time.monotonic()
    for _ in range(REPEATS):
        dist.all_reduce(values)
    float(values[0])  # syncs the GPU
    seconds = (time.monotonic() - began) / REPEATS
    dist.destroy_process_group()
    return {"backend": backend, "gb_per_s": round(2 * (size - 1) / size * REDUCED_MIB * 2**20 / seconds / 1e9, 2)}


def signal_seconds(folder: Path, rank: int, size: int) -> float | None:
    """How long Slurm's SIGUSR2 takes to reach this rank; None outside of Slurm."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    arrived: list[float] = []

    def note(_: int, __: FrameType | None) -> None:
        arrived.append(time.monotonic())

    before = signal.signal(signal.SIGUSR2, note)
    write_text(folder / f"ready-{rank}", "")
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and not all((folder / f"ready-{r}").exists() for r in range(size)):
        time.sleep(0.05)
    sent = time.monotonic()
    if rank == 0 and shutil.which("scancel"):
        subprocess.run(["scancel", "--signal=USR2", os.environ["SLURM_JOB_ID"]], check=True, timeout=10)
    elif rank == 0:  # Python is in a container
        write_text(folder / SIGNAL_ASKED, "")
    while time.monotonic() < sent + 10 and not arrived:
        time.sleep(0.05)
    time.sleep(0.5)  # so that nobody restores the launcher's handler before everybody has heard
    signal.signal(signal.SIGUSR2, before)
    return round(arrived[0] - sent, 2) if arrived else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
