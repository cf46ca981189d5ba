"""The runs of a trial, one for each seed: their configs, their stages, and what they ended with, from disk."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.load import CONFIG_ROOT, config_from, groups
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import Resources
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import read_json, read_lines, write_json
from pipeline.runtime.run_dir import RunDir
from slurm.sweep.folder import SweepDir
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Params, words_of
from slurm.workflows import Launch, launch_for, launch_of_run, result_of, sample_set

STAGES = ("train", "sample", "evaluate")  # of a trial's own; whatever comes before them is shared by all trials
FAILED, PRUNED, OF_RUN = "failed.json", "pruned.json", "of_run.json"


@dataclass(frozen=True)
class Run:
    """One run of a trial."""

    sweep: SweepDir
    trial: int
    seed: int  # counted from 0: added to the experiment's seed

    @property
    def name(self) -> str:
        """0007-s0."""
        return f"{self.trial:04d}-s{self.seed}"

    @property
    def path(self) -> Path:
        """Where it lies: a run directory, or a note of which run's checkpoint it is about."""
        return self.sweep.trials / self.name

    @property
    def records(self) -> RunDir:
        """Where its submissions are noted down."""
        return RunDir(self.path)

    def final(self) -> dict[str, Any] | None:
        """Why it ended without a result: {"word": "pruned" or "failed", "cause": ..., "message": ...}; None: not so."""
        for word, file in (("pruned", PRUNED), ("failed", FAILED)):
            if (self.path / file).is_file():
                return {"word": word, **read_json(self.path / file)}
        return None

    def launch(self) -> Launch:
        """Its graph, as it was made by `make`."""
        if (self.path / OF_RUN).is_file():
            note = read_json(self.path / OF_RUN)
            return launch_of_run(Path(note["run"]), tuple(note["words"]))
        return launch_of_run(self.path)


def run_words(settings: SweepSettings, params: Params) -> list[str]:
    """The words of a configuration: the base's and its own."""
    if settings.run is not None:
        return [str(settings.run), *_said(settings, params)]
    words = [*settings.base, *words_of(params)]
    # Trials are what runs side by side: within one, sampling and evaluation are not cut into jobs of their own.
    parts = ["cluster.sample.parts=1", "cluster.evaluate.parts=1"]
    return [*words, f"name={settings.name}", *parts]


def _said(settings: SweepSettings, params: Params) -> list[str]:
    """What a trial says differently from the run that it is about; a cluster profile setting by setting."""
    words = []
    for word in settings.base:
        key, _, name = word.partition("=")
        words += cluster_words(name) if key == "cluster" else [word]
    return [*words, *words_of(params)]


def cluster_words(name: str) -> list[str]:
    """The settings of a profile of configs/cluster, as words.

    Raises:
        UserError: where there is no such profile.
    """
    known = groups()["cluster"]
    if name not in known:
        raise UserError(f"cluster: found '{name}', expected one of {', '.join(known)}.{did_you_mean(name, known)}")
    values = yaml.safe_load((CONFIG_ROOT / "cluster" / f"{name}.yaml").read_text())
    return [f"cluster.{key}={json.dumps(value)}" for key, value in values.items()]


def config_of(sweep: SweepDir, settings: SweepSettings, params: Params, *, run: Run) -> Config:
    """The config of a run, checked."""
    words = run_words(settings, params)
    if settings.run is not None:
        return config_from(words)
    cfg = config_from([*words, f"name={run.name}", f"runs_dir={sweep.trials.resolve()}"])
    return cfg.model_copy(update={"seed": cfg.seed + run.seed})


def make(sweep: SweepDir, settings: SweepSettings, params: Params, *, run: Run) -> Launch:
    """Make the run's directory, or find it as it was made; its graph. Seeds of a trial follow its experiment's.

    Raises:
        UserError: a configuration that is not valid, or a directory that was made with another.
    """
    if run.records.config.is_file() or (run.path / OF_RUN).is_file():
        return run.launch()
    cfg = config_of(sweep, settings, params, run=run)
    if settings.run is None:
        return launch_for(cfg, make=True)
    write_json(run.path / OF_RUN, {"run": str(settings.run.resolve()), "words": _said(settings, params)})
    return run.launch()


def is_own(job: str) -> bool:
    """Whether a job of a run's graph is the trial's own, not shared with others."""
    return job in STAGES


def shared(launch: Launch) -> Launch:
    """The part of a graph that trials share: data, latents, reference statistics."""
    names = [job.name for job in launch.jobs]
    first = min((names.index(name) for name in STAGES if name in names), default=len(names))
    return dataclasses.replace(launch, jobs=launch.jobs[:first])


def stages(launch: Launch) -> dict[str, bool]:
    """The trial's own jobs in order, and whether what each makes is complete."""
    return {name: done for name, done in launch.complete().items() if is_own(name)}


def resources_of(launch: Launch) -> Resources:
    """What the one job that goes through a trial's stages asks for: of each resource the most of any stage.

    Every rank takes part in each stage, so GPUs that train also sample and evaluate.
    """
    asked = [job.resources for job in launch.jobs if is_own(job.name)]
    first = max(asked, key=lambda r: r.nodes * r.tasks_per_node)
    memory = [r.memory_gb for r in asked if r.memory_gb is not None]
    return first.model_copy(
        update={
            "cpus": max((r.cpus for r in asked if r.cpus), default=None),
            "memory_gb": max(memory, default=None),
            "minutes": max(r.minutes for r in asked),
            "parts": 1,
        }
    )


def value_of(launch: Launch, settings: SweepSettings) -> float | None:
    """The metric that a run ended with; None while its last stage is not complete.

    Raises:
        UserError: the run is complete and has no such metric.
    """
    if not all(stages(launch).values()):
        return None
    if "/" not in settings.metric:
        return float(pick(results_of(launch), settings.metric))
    found = [value for _, value in training_values(launch, settings.metric)]
    if not found:
        raise UserError(
            f"metric: {launch.run.metrics} has no '{settings.metric}'. For valid/loss, set train.validate_every."
        )
    return min(found) if settings.direction == "minimize" else max(found)


def results_of(launch: Launch) -> dict[str, float]:
    """Every metric of a complete run's own samples; {} before."""
    samples = sample_set(launch)
    if samples is None or not result_of(launch, samples).is_file():
        return {}
    return dict(read_json(result_of(launch, samples))["metrics"])


def kept(launch: Launch) -> dict[str, Any]:
    """What the journal keeps of a complete run, metrics and place of samples: later code may look elsewhere."""
    return {"metrics": results_of(launch), "samples": str(sample_set(launch) or "")}


def pick(metrics: Mapping[str, float], name: str) -> float:
    """One metric of a result.

    Raises:
        UserError: naming those that there are.
    """
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise UserError(f"metric: found '{name}', expected one of {known}.{did_you_mean(name, metrics)}")
    return metrics[name]


def training_values(launch: Launch, name: str) -> list[tuple[int, float]]:
    """(images seen, value) of a number of training's own, in order; of steps trained twice the later."""
    rows = {int(row["step"]): float(row[name]) for row in read_lines(launch.run.metrics) if name in row}
    return [(step * launch.cfg.train.global_batch, rows[step]) for step in sorted(rows)]


def runs_of(sweep: SweepDir, trial: int, seeds: int) -> Sequence[Run]:
    """The runs of a trial, by seed."""
    return [Run(sweep, trial, seed) for seed in range(seeds)]
