"""Sweeps on the test cluster or on this machine, and what kills their processes at random."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import toy
from faults import environment
from launching import HERE, LIMIT, slurm_cli

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory
from pipeline.runtime.files import read_lines, write_json
from slurm.queue import listed
from slurm.sweep.report import Trial, trials_of
from slurm.sweep.runs import Run, make, trial_overrides
from slurm.sweep.settings import Params, SweepDir, SweepSettings, settings_from
from slurm.sweep.submit import states_of
from slurm.workflows import Launch

CALM = 'cluster.options.exclude="node2,node4"'  # where faults.py takes nodes away

REAL = (  # what `toy` is not: a U-Net that is trained, sampled from and judged by a classifier
    "sweep.program=pipeline",
    "model.width=8",
    "model.groups=4",
    "model.head_channels=8",
    "data.source.alphabet=AB",
    "evaluate.domain.max_images=3000",
    "evaluate.kid_subsets=4",
    "evaluate.kid_subset_size=32",
    "train.duration=20 steps",
    "train.validate_every=10 steps",
    "train.validate_images=24",
    "sample.count=64",
    "sample.sampler.steps=3",
    "sample.images_per_shard=64",
)


def base(root: Path) -> list[str]:
    """Overrides of an experiment whose data is there, as far as anyone looks; the program is `toy`."""
    overrides = ["data=glyphs16", "model=unet_tiny", f"data_dir={root / 'data'}", f"runs_dir={root / 'runs'}"]
    data = data_directory(config_from([*overrides, "name=x"]))
    for stage in ("shards", "reference"):
        write_json(data / stage / "receipt.json", {"stage": stage})
    return [*overrides, "sweep.program=toy", f"sweep.folder={root / 'sweeps'}"]


def submitted(root: Path, name: str, *overrides: str) -> SweepDir:
    """Submit a sweep from a shell that then is gone."""
    done = slurm_cli("sweep", "submit", *base(root), f"name={name}", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return SweepDir(root / "sweeps" / name)


def begun_here(root: Path, name: str, *overrides: str) -> tuple[SweepDir, "subprocess.Popen[bytes]"]:
    """A sweep on this machine, and the process in whose foreground it runs."""
    command = [
        sys.executable,
        "-m",
        "slurm",
        "sweep",
        "submit",
        *base(root),
        f"name={name}",
        "cluster=local",
        *overrides,
    ]
    env = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "PYTHONSAFEPATH": "1"}
    with (root / "said.txt").open("w") as log:
        process = subprocess.Popen(command, env=env, cwd=HERE.parents[1], stdout=log, stderr=log)
    return SweepDir(root / "sweeps" / name), process


def finished_sweep(root: Path, *overrides: str) -> SweepDir:
    """A sweep that has ended, without jobs: each task is called here, one after the other."""
    from slurm.sweep.worker import Task

    sweep, settings = written(root, *overrides)
    for trial in range(settings.size):
        for seed in range(settings.seeds):
            run = Run(sweep, trial, seed)
            work(make(settings, settings.combinations[trial], run))  # in this process, which is quicker
            assert Task(run, settings).go() == 0
    return sweep


def work(launch: Launch) -> None:
    """What the stages of a run do."""
    assert toy.train(launch.cfg, launch.run) == 0
    toy.sample(launch.cfg, launch.run, step=toy.STEPS)
    toy.evaluate(launch.cfg, launch.run, step=toy.STEPS)


def written(root: Path, *overrides: str) -> tuple[SweepDir, SweepSettings]:
    """A sweep of which nothing has been submitted."""
    settings = settings_from([*base(root), "cluster=local", *overrides])
    sweep = SweepDir(settings.path)
    sweep.write(settings)
    return sweep, settings


def statuses_now(sweep: SweepDir) -> list[str]:
    """The status of every run."""
    settings = sweep.settings()
    states, _ = states_of(sweep, settings)
    return [states[n].status for n in range(len(states))]


def has_ended(sweep: SweepDir) -> bool:
    """Whether nothing of the sweep is under way or has yet to begin."""
    return not set(statuses_now(sweep)) & {"running", "waiting", "not begun"} and not jobs_of(sweep)


def wait_until(good: Callable[[], bool], sweep: SweepDir, *, seconds: float = LIMIT) -> None:
    """Poll; fail with the sweep's logs."""
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end, said(sweep)
        time.sleep(0.3)


def said(sweep: SweepDir) -> str:
    """What there is to read where a test fails."""
    states = "\n".join(f"{t.number} {t.states} {t.params}" for t in trials_of(sweep, sweep.settings()))
    logs = "\n".join(f"--- {p}\n{p.read_text()[-1500:]}" for p in sorted(sweep.path.rglob("*_log.out")))
    queue = "\n".join(map(str, jobs_of(sweep)))
    return f"{states}\n{queue}\n{logs}"


def jobs_of(sweep: SweepDir) -> list[str]:
    """Ids of the sweep's jobs that are in the queue."""
    if os.environ.get("SLURM_CONF") is None:
        return []
    return [seen.id for seen in listed() if seen.active and f"{sweep.path}/" in seen.comment]


def accounted(sweep: SweepDir) -> list[Trial]:
    """Every trial once: complete, with one directory; each step of its training trained once."""
    settings = sweep.settings()
    found = trials_of(sweep, settings)
    assert {t.status for t in found} == {"complete"}, said(sweep)
    names = sorted(p.name for p in sweep.trials.glob("[!.]*"))
    assert names == [Run(sweep, n, s).name for n in range(settings.size) for s in range(settings.seeds)]
    return found


def toy_value(settings: SweepSettings, params: Params) -> float:
    """What a trial must come to: the toy's own function of its config."""
    return toy.metric(config_from(trial_overrides(settings, params))) + 5.0 * 0.5**toy.STEPS


def steps(sweep: SweepDir, trial: int) -> list[int]:
    """The steps that the toy trained in a trial, in order."""
    path = Run(sweep, trial, 0).path / "steps.txt"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def starts_of(sweep: SweepDir) -> list[dict]:
    """Every start of a task, with its end, by the arrays' records."""
    rows = [row for path in sweep.jobs.glob("array-*/attempts.jsonl") for row in read_lines(path)]
    found = [row | {"ended": None} for row in rows if row["event"] == "start"]
    for start in found:
        same = [r for r in rows if r["id"] == start["id"] and r["restart"] == start["restart"]]
        start["ended"] = max((r["time"] for r in same if r["event"] != "start"), default=None)
    return found


class Killer:
    """Kills processes of a sweep's tasks, each task once: the task's own process, or the stage that it runs."""

    def __init__(self, sweep: SweepDir, *, seed: int, most: int) -> None:
        self._sweep, self._most = sweep, most
        self._random = random.Random(seed)
        self.killed: list[str] = []

    def strike(self) -> None:
        """Kill one process, if there is one that may be."""
        victims = [(pid, what) for pid, what in self._processes() if what not in self.killed]
        if victims and len(self.killed) < self._most:
            pid, what = self._random.choice(victims)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self.killed.append(what)

    def _processes(self) -> list[tuple[int, str]]:
        ours = f"SLURM_CONF={os.environ['SLURM_CONF']}"
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                env = environment(entry)
            except OSError:
                continue
            if ours in env and "SLURM_PROCID=0" in env and str(self._sweep.path) in " ".join(argv):
                values = dict(e.split("=", 1) for e in env if e.startswith("SLURM_ARRAY_"))
                if "SLURM_ARRAY_JOB_ID" in values:  # else it is the shared preparation
                    what = f"{values['SLURM_ARRAY_JOB_ID']}_{values['SLURM_ARRAY_TASK_ID']}"
                    found.append((int(entry.name), what))
        return found
