"""Graphs whose commands are the small stand-ins, on this machine or on the test cluster, and waiting for them."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny
import tiny_latents
import yaml

from pipeline.config.load import CONFIG_ROOT
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import ClusterConfig
from slurm import ledger
from slurm.ledger import State
from slurm.queue import listed
from slurm.workflows import Launch, launch_for

HERE = Path(__file__).resolve().parent
LIMIT = 1500.0  # seconds to wait for an event that has to come, on however slow a machine
PROFILE = {"internet_probe": "127.0.0.1:9", "internet": False}  # nothing of a test reaches outside

SMALL = (  # the autoencoder of `latent`
    "model=kl_autoencoder_tiny",
    "model.condition=none",
    "sample.sampler.guidance.scale=1",
    "train.global_batch=8",
    "train.duration=20 steps",
)


def profile(name: str, **settings: Any) -> ClusterConfig:
    """A profile of configs/cluster with other settings; those of `train` are merged."""
    values = yaml.safe_load((CONFIG_ROOT / "cluster" / f"{name}.yaml").read_text()) | PROFILE
    train = {**values.get("train", {}), **settings.pop("train", {})}
    return ClusterConfig.model_validate(values | {"train": train} | settings)


def real(root: Path, cluster: ClusterConfig, *, name: str = "run", **train: Any) -> Launch:
    """A launch of the tiny experiment with the pipeline's own commands."""
    cfg: Config = tiny.config(root, name=name, **train).model_copy(update={"cluster": cluster})
    return launch_for(cfg, make=True)


def latent(root: Path, *, name: str = "latent", autoencoder: str = "squares", overrides=SMALL, **cluster):
    """A launch on latents of an autoencoder which the graph trains."""
    asked = {"experiment": "glyphs16", "overrides": list(overrides)}
    cfg = tiny_latents.config(root, root / "runs" / autoencoder, name=name, latents=asked, model=tiny.UNET)
    settings = profile(cluster.pop("site", "local"), **cluster)
    return launch_for(cfg.model_copy(update={"cluster": settings}), make=True)


def stand_in(
    root: Path,
    cluster: ClusterConfig,
    *,
    name: str = "run",
    only: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Launch:
    """A launch whose jobs are stand-ins; `options` are more arguments of jobs. Parents that are left out are cut."""
    return with_stand_ins(real(root, cluster, name=name), only=only, options=options)


def with_stand_ins(
    launch: Launch, *, only: Sequence[str] | None = None, options: Mapping[str, str] | None = None
) -> Launch:
    """The same graph, of stand-ins."""
    only = only or [job.name for job in launch.jobs]
    jobs = [
        dataclasses.replace(
            job,
            argv=("stand_in", job.name, str(launch.run.path), *(options or {}).get(job.name, "").split()),
            after=tuple(parent for parent in job.after if parent in only),
        )
        for job in launch.jobs
        if job.name in only
    ]
    return dataclasses.replace(launch, jobs=tuple(jobs))


def states(launch: Launch) -> dict[str, State]:
    """How every job of a launch stands now."""
    known = ledger.submissions(launch.run)
    queue = listed() if ledger.open_ids([(launch.run, launch.complete())]) else []
    return ledger.states_of_all([(launch.run, launch.complete)], [known], queue)[0]


def wait_for(launch: Launch, good: Callable[[dict[str, State]], bool]) -> dict[str, State]:
    """Ask again and again until `good(states)`; fail with the states after LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while True:
        now = states(launch)
        if good(now):
            return now
        assert time.monotonic() < end, (now, logs(launch))
        time.sleep(0.5)


def ended(now: Mapping[str, State]) -> bool:
    """Nothing is under way any more."""
    return not any(state.active for state in now.values())


def logs(launch: Launch) -> str:
    """The ends of all logs of a run, for a test that fails."""
    return "\n".join(f"--- {p}\n{p.read_text()[-2000:]}" for p in launch.run.jobs.glob("*/*_log.out"))


def kept_steps(launch: Launch) -> list[int]:
    """The steps that the stand-in of training trained, in order."""
    return [int(line) for line in (launch.run.path / "steps.txt").read_text().split()]


def result(launch: Launch) -> dict[str, object]:
    """What the stand-in of training ended with."""
    return dict(json.loads((launch.run.path / "state.json").read_text()))


def uninterrupted(steps: int) -> dict[str, object]:
    """What it ends with when nobody cuts it."""
    chain = ""
    for step in range(steps):
        chain = hashlib.sha256(f"{chain} {step}".encode()).hexdigest()
    return {"step": steps, "chain": chain}


def slurm_cli(*argv: str, cwd: Path | None = None, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m slurm ...` as a person types it, with the code of `root` (default: this checkout)."""
    code = root or HERE.parents[1]
    env = os.environ | {"PYTHONPATH": f"{code}:{HERE}", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "slurm", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or code, env=env, check=False)
