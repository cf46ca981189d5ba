"""A minute on the partition before the real job: GPUs, network, disks, signals, limits. A table of green and red.

    python -m slurm.preflight FOLDER           the job: what is asked stands in FOLDER/asked.json

In the job, every rank looks around and writes down what it finds. torch is asked for there alone in this package, on
the compute node and while running: GPUs, and an all-reduce.
"""

import contextlib
import importlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config.load import listed
from pipeline.config.paths import data_directory, run_directory, training_shards
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import RetryConfig
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json, write_json, write_text
from pipeline.runtime.run_dir import RunDir
from slurm import snapshot
from slurm.access import who_else_writes
from slurm.executor import SubmitContext, slurm, submit, would_take
from slurm.graph import Job
from slurm.plan import beyond, crowded
from slurm.progress import tail_rows
from slurm.queue import limits, look
from slurm.rank import process_born
from slurm.workflows import RECEIPT, account_missing, graph_of, trained_autoencoder

MINUTES = 5  # the job's limit before the signal; it takes less than one
ASK_SECONDS = 15.0  # how often Slurm is asked whether the job still lasts
NEEDED_GIB = 10.0  # less room than this is red
SAVE_MARGIN = 2.0  # the signal should come this many times a save before the end
WAIT_SECONDS = 30.0  # for other ranks' files and connections
PROBE_SECONDS = 5.0
ASKED = "asked.json"
SIGNAL_ASKED = "signal"  # a file: the submitter is to send the signal
SETUP_FAILED = "setup-failed"  # a file: lines of cluster.setup that failed in the job
REDUCED_MIB, REPEATS = 32, 5
WRITTEN_MIB = 64
NETWORK_DISKS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "fuse.glusterfs", "panfs", "afs")


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    what: str
    good: bool
    found: str
    advice: str = ""


def preflight(cfg: Config, console: Console, *, wait_s: float) -> bool:
    """Submit the job, wait for it, print the table; whether everything is green.

    Raises:
        UserError: where the cluster needs an account that is not given, the job did not start within `wait_s` seconds
            (it is cancelled), or it left nothing.
    """
    if lacking := account_missing(cfg.cluster, graph_of(cfg, RunDir(run_directory(cfg)), ())):
        raise UserError(listed(lacking))
    folder = (cfg.runs_dir / f".preflight-{uuid.uuid4().hex[:8]}").resolve()
    folder.mkdir(parents=True)
    try:
        began = time.monotonic()
        reports = _run(cfg, folder, console, wait_s=wait_s)
        findings = [*judged(cfg, reports), *_at_home(cfg)]
        if cfg.cluster.executor == "slurm":
            findings += [*_setup(cfg, folder), *_each_kind(cfg, folder), *_limits(cfg), _accounting()]
        show(findings, console)
        console.print(f"{time.monotonic() - began:.0f} s, waiting in the queue included")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return all(finding.good for finding in findings)


def show(findings: Sequence[Finding], console: Console) -> None:
    """The table."""
    table = Table()
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.good else "[red]NO[/]"
        table.add_row(mark, finding.what, finding.found, "" if finding.good else finding.advice)
    console.print(table)


def _run(cfg: Config, folder: Path, console: Console, *, wait_s: float) -> list[dict[str, Any]]:
    asked = cfg.cluster.train.model_copy(update={"minutes": MINUTES + math.ceil(cfg.cluster.signal_lead_s / 60)})
    write_json(
        folder / ASKED,
        {
            "probe": cfg.cluster.internet_probe,
            "shared": [str(folder.parent), str(cfg.data_dir.resolve() if cfg.data_dir.exists() else folder)],
            "needed": {name: str(path.resolve()) for name, path in needed(cfg).items()},
        },
    )
    job = Job("preflight", ("slurm.preflight", str(folder)), asked)
    code = snapshot.take(folder / "code")
    once: dict[str, Any] = {
        "retry": RetryConfig(error=0, rendezvous=0, killed=0),
        "requeue": False,
    }  # to see what fails
    if cfg.cluster.executor == "slurm" and cfg.cluster.setup:
        note = f"trap 'echo \"$BASH_COMMAND\" >> {shlex.quote(str(folder / SETUP_FAILED))}' ERR"
        once["setup"] = (note, *cfg.cluster.setup, "trap - ERR")
    cluster = cfg.cluster.model_copy(update=once)
    job_id = submit(job, SubmitContext(cluster, folder / "job", code, "mudi.preflight", "mudi preflight"))[0]
    born = process_born(int(job_id)) if cluster.executor == "local" else ""
    console.print(f"preflight: job {job_id} on cluster={cfg.cluster.name}, {_asked(cfg)}", highlight=False)
    ranks = asked.nodes * asked.tasks_per_node
    end, asked_at, said = time.monotonic() + wait_s, time.monotonic(), ""
    while len(found := list(folder.glob("rank-*.json"))) < ranks and time.monotonic() < end:
        if (asking := folder / SIGNAL_ASKED).exists():
            asking.unlink()
            slurm("scancel", "--signal=USR2", job_id)
        if time.monotonic() > asked_at + ASK_SECONDS:
            if _ended(job_id, born):
                break
            said, asked_at = _waits(job_id, born, console, said=said), time.monotonic()
        time.sleep(0.3)
    if cfg.cluster.executor == "slurm":  # whatever of it is left: its folder goes
        slurm("scancel", "--quiet", job_id)
    if not found:
        text = "\n".join(p.read_text()[-1500:] for p in sorted((folder / "job").glob("*_log.out")))
        text = "\n".join(
            filter(None, [*(f"cluster.setup failed: {line}" for line in _failed_lines(folder)), text, said])
        )
        raise UserError(f"preflight: job {job_id} left nothing within {wait_s:.0f} s. Its log:\n{text or '-'}")
    return [read_json(path) for path in sorted(found)]


def needed(cfg: Config) -> dict[str, Path]:
    """Files and folders that jobs of this config read and that none of them makes: weights, images, an autoencoder."""
    own = trained_autoencoder(cfg)
    found = {f"autoencoder: {name}": path for name, path in _paths(own).items()} if own is not None else {}
    found |= _paths(cfg)
    made = ["latents.autoencoder"] if own is not None else []
    made += ["data.source.path", "autoencoder: data.source.path"] if _shards_ready(cfg) else []
    return {name: path for name, path in found.items() if name not in made}


def _paths(cfg: Config) -> dict[str, Path]:
    found: dict[str, Path] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, Path):
            found[prefix] = value

    walk("", cfg.model_dump(exclude={"data_dir", "runs_dir", "cluster"}))
    return found


def _shards_ready(cfg: Config) -> bool:
    return (data_directory(cfg) / "shards" / RECEIPT).is_file()


def _asked(cfg: Config) -> str:
    asked = cfg.cluster.train
    return f"{asked.nodes} node(s) x {asked.tasks_per_node} rank(s), {asked.gpus} GPU(s) a node"


def _ended(job_id: str, born: str) -> bool:
    """Whether the job has ended. `born`: when its process started, where it is one of this machine."""
    if born:
        return process_born(int(job_id)) != born
    seen = look([job_id]).get(job_id)
    return seen is not None and not seen.active


def _waits(job_id: str, born: str, console: Console, *, said: str) -> str:
    """Say why the job waits, where that has changed; what was said last."""
    seen = None if born else look([job_id]).get(job_id)
    why = f"preflight: job {job_id} waits: {seen.why}" if seen is not None and seen.waits else said
    if why != said:
        console.print(why, highlight=False, markup=False, soft_wrap=True)
    return why


def judged(cfg: Config, reports: list[dict[str, Any]]) -> Iterator[Finding]:
    """What the ranks' reports mean, for the resources that the config asks for."""
    asked = cfg.cluster.train
    ranks, hosts = asked.nodes * asked.tasks_per_node, sorted({str(r["host"]) for r in reports})
    yield Finding(
        "ranks",
        len(reports) == ranks and len(hosts) == asked.nodes,
        f"{len(reports)} of {ranks} on {', '.join(hosts)}",
        "read the job's log: a node that did not start is named there (cluster.options={exclude: NODE})",
    )
    yield _gpus(asked.gpus, reports)
    if asked.cpus:
        yield _cores(asked.cpus, reports)
    seen = [r for r in reports if _failed(r["met"]) or len(r["met"]) < len(reports)]
    yield Finding(
        "shared directory",
        not seen,
        "every rank sees every rank's file" if not seen else f"not on {', '.join(sorted({r['host'] for r in seen}))}",
        f"runs_dir={cfg.runs_dir} must be on a file system that all nodes mount",
    )
    yield from _files(cfg, reports)
    if ranks > 1:
        yield _network(cfg, reports)
    yield _room(reports)
    yield _rights(cfg, reports)
    local = [r for r in reports if not _failed(r["cache"]) and r["cache"]["local"]]
    kinds = sorted({str(r["cache"].get("type", r["cache"])) for r in reports})
    advice = "set cluster.node_local to a folder on the node's own disk"
    yield Finding("compile cache local", len(local) == len(reports), ", ".join(kinds), advice)
    yield _internet(cfg, reports)
    yield from _signals(cfg, reports)


def _failed_lines(folder: Path) -> list[str]:
    path = folder / SETUP_FAILED
    return path.read_text().splitlines() if path.is_file() else []


def _setup(cfg: Config, folder: Path) -> Iterator[Finding]:
    """Lines of the profile that failed: the job goes on without them."""
    if cfg.cluster.setup:
        failed = _failed_lines(folder)
        found = f"failed: {'; '.join(failed)}" if failed else "every line ended well"
        yield Finding("setup lines", not failed, found, "correct cluster.setup: jobs go on without what failed")


def _each_kind(cfg: Config, folder: Path) -> Iterator[Finding]:
    """Whether Slurm would take each kind of job: what it asks for, partition, account, QOS, constraint."""
    for job in graph_of(cfg, RunDir(run_directory(cfg)), ()):
        record = folder / job.name
        context = SubmitContext(cfg.cluster, record, folder / "code", "mudi.preflight", "mudi preflight")
        try:
            said = would_take(job, context, folder)
            found = re.search(r"to start at (\S+)(?:.* on (?:nodes )?(\S+))?", said)
            yield Finding(
                f"job {job.name}", True, f"could start {found[1].replace('T', ' ')}" if found else said.strip()
            )
        except UserError as error:
            advice = f"correct cluster.{job.name}, or cluster.account, qos, partition"
            yield Finding(f"job {job.name}", False, str(error).partition(": ")[2], advice)


def _accounting() -> Finding:
    """Whether Slurm can tell what became of jobs that left nothing. Without it, their logs and files have to do."""
    try:
        slurm("sacct", "-n", "-X", "-S", "now")
    except UserError as error:
        return Finding("accounting", True, f"none ({error}): how a job ended is read from its files alone")
    return Finding("accounting", True, "kept")


def _files(cfg: Config, reports: list[dict[str, Any]]) -> Iterator[Finding]:
    """Weights and whatever else is named by its path: there, and to be read, on every node."""
    names = needed(cfg)
    if not names:
        return
    bad = {
        name: r["host"] for r in reports for name in names if _failed(r["needed"]) or r["needed"].get(name) is not True
    }
    lacking = ", ".join(f"{name}={names[name]} (on {host})" for name, host in bad.items())
    advice = "correct the path, put it on a file system that all nodes mount, or fetch it: mudi prepare fetch weights"
    yield Finding("weights and files", not bad, f"missing: {lacking}" if bad else f"{len(names)} are there", advice)


def _failed(value: Any) -> bool:
    return isinstance(value, dict) and "failed" in value


def _gpus(asked: int, reports: list[dict[str, Any]]) -> Finding:
    found = [r["gpus"] for r in reports]
    bad = [f"{r['host']}: {r['gpus']['failed']}" for r in reports if _failed(r["gpus"])]
    if bad:
        return Finding("GPUs", False, bad[0], "install torch in the job's Python (cluster.python, cluster.setup)")
    counts = sorted({g["count"] for g in found})
    per_host = [(r["host"], r["gpus"]["mine"]) for r in reports]
    clash = asked > 0 and len(set(per_host)) < len(per_host)
    enough = asked == 0 or (min(counts) in (1, asked) and max(counts) in (1, asked) and not clash)
    names = sorted({name for g in found for name in g["names"]}) or ["none"]
    text = f"each rank sees {'/'.join(map(str, counts))} ({', '.join(names)})" + (", two share one" if clash else "")
    return Finding("GPUs", enough, text, f"cluster.train.gpus={asked}: ask for what a node has; check cluster.setup")


def _cores(asked: int, reports: list[dict[str, Any]]) -> Finding:
    """A rank that is bound to fewer cores than it was given reads its images with those alone."""
    found = {r["host"]: 0 if _failed(r["threads"]) else int(r["threads"]["cores"]) for r in reports}
    least = min(found.values())
    advice = f"cluster.train.cpus={asked} is more than Slurm lets a rank use: ask for less, or ask the site about srun"
    return Finding("cores", least >= asked, f"each rank may use {least}, cluster.train.cpus={asked}", advice)


def _room(reports: list[dict[str, Any]]) -> Finding:
    if bad := [f"{r['host']}: {r['disks']['failed']}" for r in reports if _failed(r["disks"])]:
        advice = "runs_dir and data_dir must be on a file system that all nodes mount"
        return Finding("room on disks", False, bad[0], advice)
    free = min(d["free_gib"] for r in reports for d in r["disks"])
    return Finding("room on disks", free > NEEDED_GIB, f"{free} GiB free", "free space, or point runs_dir elsewhere")


def _rights(cfg: Config, reports: list[dict[str, Any]]) -> Finding:
    """Whether nodes know the groups of the shared folders that this machine knows, and who else may write there."""
    advice = "ask the site why this node does not know your groups, or give folders that you own"
    if bad := [f"{r['host']}: {r['rights']['failed']}" for r in reports if _failed(r["rights"])]:
        return Finding("group rights", False, bad[0], advice)
    folders = [path for path in (cfg.runs_dir, cfg.data_dir) if path.is_dir()]
    mine = {path.stat().st_gid for path in folders} & set(os.getgroups())
    lacking = sorted({r["host"] for r in reports if mine - set(r["rights"]["groups"]) or not r["rights"]["written"]})
    if lacking:
        return Finding("group rights", False, f"shared folders cannot be written from {', '.join(lacking)}", advice)
    others = [f"{path} also by {who}" for path in folders if (who := who_else_writes(path))]
    more = "; who writes there can change what your jobs do" if others else ""
    return Finding("group rights", True, f"every rank may write{'; '.join(['', *others])}{more}")


def _network(cfg: Config, reports: list[dict[str, Any]]) -> Finding:
    bad = [f"rank {r['rank']} on {r['host']}: {r['reduce']['failed']}" for r in reports if _failed(r["reduce"])]
    if bad:
        advice = "check the network between the nodes (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME in cluster.setup)"
        return Finding("all-reduce", False, bad[0][:200], advice)
    slowest, least = min(r["reduce"]["gb_per_s"] for r in reports), cfg.cluster.least_all_reduce_gb_s
    found = f"{slowest} GB/s of bus bandwidth ({reports[0]['reduce']['backend']}), least_all_reduce_gb_s={least}"
    advice = "NCCL took a slow network: export NCCL_DEBUG=INFO in cluster.setup tells which, NCCL_SOCKET_IFNAME chooses"
    return Finding("all-reduce", slowest >= least, found, advice)


def _internet(cfg: Config, reports: list[dict[str, Any]]) -> Finding:
    reached = all(r["internet"] is True for r in reports)
    good = reached or not cfg.cluster.internet
    advice = "set cluster.internet=false and download on the login node (mudi prepare fetch ...)"
    return Finding(
        "internet", good, f"{'reached' if reached else 'none'}, cluster.internet={cfg.cluster.internet}", advice
    )


def _signals(cfg: Config, reports: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether signals arrive, and whether they come early enough for the slowest save that is known."""
    if cfg.cluster.executor == "slurm":
        silent = [str(r["rank"]) for r in reports if not isinstance(r["signal_s"], float)]
        found = f"not on ranks {', '.join(silent)}" if silent else f"{max(r['signal_s'] for r in reports)} s to arrive"
        yield Finding("SIGUSR2 reaches ranks", not silent, found, "jobs must run through srun: see cluster.python")
    speed = next((r["written_mib_per_s"] for r in reports if r["rank"] == 0), None)
    run = RunDir(run_directory(cfg))
    rows = tail_rows(run.metrics)
    saves = [row[k] for row in rows for k in ("save/seconds_from_signal", "save/stall_seconds") if k in row]
    lead = cfg.cluster.signal_lead_s
    if saves:
        good, found = lead >= SAVE_MARGIN * max(saves), f"lead {lead} s, slowest save of {run.path} {max(saves):.1f} s"
    elif isinstance(speed, float):
        gib = speed * lead / SAVE_MARGIN / 1024
        good, found = lead >= 10, f"lead {lead} s: enough for {gib:.1f} GiB at {speed} MiB/s"
    else:
        good, found = False, f"rank 0 could not write to {cfg.runs_dir}: {speed['failed'] if speed else 'no report'}"
    yield Finding(
        "signal lead", good, found, f"cluster.signal_lead_s={max(30, round(SAVE_MARGIN * max(saves, default=30)))}"
    )


def _at_home(cfg: Config) -> Iterator[Finding]:
    """What is asked on the login node: the data, or what makes them."""
    shards = data_directory(cfg) / "shards"
    ready = _shards_ready(cfg)
    found = f"{shards} {'is complete' if ready else 'is not there yet: the job prepare makes it'}"
    missing_is_bad = not ready and not cfg.cluster.internet and not shards.exists() and _downloads(cfg)
    advice = "jobs cannot download it: mudi prepare fetch ... on the login node"
    yield Finding("shards", not missing_is_bad, found, advice)
    if ready and (latents := training_shards(cfg)) != shards:
        there = "is complete" if (latents / RECEIPT).is_file() else "is not there yet: the job encode makes it"
        yield Finding("latents", True, f"{latents} {there}")


def _limits(cfg: Config) -> Iterator[Finding]:
    """Whether the site grants what jobs ask for."""
    if cfg.cluster.executor == "slurm":
        site = limits()
        jobs = graph_of(cfg, RunDir(run_directory(cfg)), ())
        problems = list(beyond(cfg, jobs, site))
        found = "; ".join(filter(None, [str(site), crowded(jobs, site)]))
        yield Finding("limits of the site", not problems, found, "; ".join(problems))


def _downloads(cfg: Config) -> bool:
    """Whether preparing this data needs the internet."""
    return cfg.data.source.needs_internet


# In the job


def look_around(folder: Path) -> None:
    """Write `FOLDER/rank-<n>.json`. Whether something is wrong, the submitter judges."""
    asked = read_json(folder / ASKED)
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    report: dict[str, Any] = {"rank": rank, "size": size, "host": node_name(), "pid": os.getpid()}
    checks: dict[str, Callable[[], Any]] = {
        "gpus": gpus,
        "threads": lambda: {"omp": os.environ.get("OMP_NUM_THREADS"), "cores": len(os.sched_getaffinity(0))},
        "cache": cache,
        "disks": lambda: [disk(Path(path)) for path in asked["shared"]],
        "rights": lambda: rights([Path(path) for path in asked["shared"]], rank),
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


def rights(folders: Sequence[Path], rank: int) -> dict[str, Any]:
    """The groups that this process has, and whether it may write to the shared folders."""
    written = True
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder, prefix=f".rank-{rank}-"):
                pass
        except OSError:
            written = False
    return {"groups": sorted({os.getegid(), *os.getgroups()}), "written": written}


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
        subprocess.run(["scancel", "--signal=USR2", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
    elif rank == 0:  # Python is in a container
        write_text(folder / SIGNAL_ASKED, "")
    while time.monotonic() < sent + 60 and not arrived:
        time.sleep(0.05)
    time.sleep(0.5)  # so that nobody restores the launcher's handler before everybody has heard
    signal.signal(signal.SIGUSR2, before)
    return round(arrived[0] - sent, 2) if arrived else None


if __name__ == "__main__":
    look_around(Path(sys.argv[1]))
