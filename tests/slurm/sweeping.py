"""Sweeps on the test cluster, and what kills their processes at random."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import toy
from faults import environment
from launching import LIMIT, slurm_words
from optuna.trial import FrozenTrial, TrialState

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory
from pipeline.runtime.errors import NonFiniteError
from pipeline.runtime.files import write_json
from slurm.queue import mine
from slurm.sweep import trials
from slurm.sweep.driver import advance, dimensions_of, trials_of
from slurm.sweep.folder import SweepDir, settings_from
from slurm.sweep.runs import Run, make, run_words, runs_of
from slurm.sweep.settings import SweepSettings
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
    """Words of an experiment whose data is there, as far as anyone looks; the program is `toy`."""
    words = ["data=glyphs16", "model=unet_tiny", f"data_dir={root / 'data'}", f"runs_dir={root / 'runs'}"]
    data = data_directory(config_from([*words, "name=x"]))
    for stage in ("shards", "reference"):
        write_json(data / stage / "receipt.json", {"stage": stage})
    return [*words, "sweep.program=toy", f"sweep.folder={root / 'sweeps'}"]


def submitted(root: Path, name: str, *words: str) -> SweepDir:
    """Submit a sweep from a shell that then is gone."""
    done = slurm_words("sweep", "submit", *base(root), f"name={name}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return SweepDir(root / "sweeps" / name)


def wait_until(good: Callable[[], bool], sweep: SweepDir, *, seconds: float = LIMIT) -> None:
    """Poll; fail with the sweep's logs."""
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end, said(sweep)
        time.sleep(0.5)


def has_ended(sweep: SweepDir) -> bool:
    """Whether the last step has written the report."""
    return sweep.finished.is_file()


def said(sweep: SweepDir) -> str:
    """What there is to read where a test fails."""
    states = "\n".join(f"{t.number} {t.state.name} {t.params} {t.user_attrs}" for t in trials_of(sweep))
    logs = "\n".join(f"--- {p}\n{p.read_text()[-1500:]}" for p in sorted(sweep.jobs.glob("*/*_log.out")))
    queue = "\n".join(map(str, jobs_of(sweep)))
    return f"{states}\n{queue}\n{logs}"


def finished_sweep(root: Path, *words: str) -> SweepDir:
    """A sweep that has ended, without jobs: the toy's words are called here."""
    settings = settings_from([*base(root), "cluster=local", *words])
    sweep, space = SweepDir(settings.path), dimensions_of(settings)
    sweep.write(settings)
    study = trials.open_study(sweep.journal, settings)
    while params := trials.next_params(study.get_trials(deepcopy=False), settings, space):
        trial = trials.add(study, params, space)
        for run in runs_of(sweep, trial.number, settings.seeds):
            work(make(sweep, settings, params, run=run))
    assert advance(sweep, local=True).ended
    return sweep


def work(launch: Launch) -> None:
    """What a run's job does."""
    if not launch.run.finished():
        with contextlib.suppress(NonFiniteError):
            toy.train(launch.cfg, launch.run)
    if launch.run.finished():
        toy.sample(launch.cfg, launch.run, step=toy.STEPS)
        toy.evaluate(launch.cfg, launch.run, step=toy.STEPS)


def jobs_of(sweep: SweepDir) -> list[str]:
    """Ids of the sweep's jobs that are in the queue."""
    return [seen.id for seen in mine() if seen.active and str(sweep.path) in seen.comment]


def accounted(sweep: SweepDir, *, count: int) -> list[FrozenTrial]:
    """Every trial once: in the journal, complete, with one directory; and nothing of the sweep left in the queue."""
    found = trials_of(sweep)
    assert [t.number for t in found] == list(range(count)), said(sweep)
    assert {t.state for t in found} == {TrialState.COMPLETE}, said(sweep)
    assert sorted(p.name for p in sweep.trials.glob("[!.]*")) == [Run(sweep, n, 0).name for n in range(count)]
    wait_until(lambda: not jobs_of(sweep), sweep)  # the last tiny job finds nothing to do
    return found


def toy_value(settings: SweepSettings, trial: FrozenTrial) -> float:
    """What a trial must come to: the toy's own function of its config."""
    return toy.metric(config_from(run_words(settings, trial.params))) + 5.0 * 0.5**toy.STEPS


class Killer:
    """Kills processes of a sweep's jobs: each run once, the shared preparation twice, which is as often as it is tried
    again, and three of the tiny jobs, so that enough is left for the runs."""

    _LIMITS: ClassVar = {"prepare": 2, "advance": 3}

    def __init__(self, sweep: SweepDir, *, seed: int, most: int = 8) -> None:
        self._sweep, self._most = sweep, most
        self._random = random.Random(seed)
        self.killed: list[str] = []

    def strike(self) -> None:
        """Kill one process, if there is one that may be."""
        found = self._processes()
        victims = [(pid, what) for pid, what in found if self.killed.count(what) < self._LIMITS.get(what, 1)]
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
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                env = environment(entry)
            except OSError:
                continue
            if ours not in env or "SLURM_PROCID=0" not in env or str(self._sweep.path) not in " ".join(words):
                continue
            # A stage names its run, the process above it the record of its batch: an array's part by its place.
            place = next((e.partition("=")[2] for e in env if e.startswith("SLURM_ARRAY_TASK_ID=")), "")
            job = next((e.partition("=")[2] for e in env if e.startswith("SLURM_ARRAY_JOB_ID=")), "")
            alone = next((e.partition("=")[2] for e in env if e.startswith("SLURM_JOB_ID=")), "")
            kind = next((k for k in self._LIMITS if f"/jobs/{k}" in " ".join(words)), None)
            found.append((int(entry.name), kind or f"{job or alone}_{place}"))
        return found


def expected_search(settings: SweepSettings, value: Callable[[FrozenTrial], float], *, path: Path) -> list[FrozenTrial]:
    """The same search without any job: trial after trial, each told at once."""
    study, space = trials.open_study(path, settings), dimensions_of(settings)
    while (known := study.get_trials(deepcopy=False)) is not None and len(known) < (settings.trials or 0):
        trial = trials.add(study, trials.next_params(known, settings, space) or {}, space)
        trials.tell(study, trial, "complete", value=value(trial), notes={})
    return list(study.get_trials(deepcopy=False))
