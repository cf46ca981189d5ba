"""The runs of a trial, one for each seed: their configs, their stages, and what came of them, from disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory, latents_directory
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import Resources
from pipeline.runtime.errors import Incomplete, UserError, did_you_mean
from pipeline.runtime.files import content_hash, read_json, read_lines, write_json
from pipeline.runtime.run_dir import RunDir, overrides_for
from slurm.graph import Job
from slurm.sweep.settings import Params, SweepDir, SweepSettings, is_of_cluster, overrides_of
from slurm.workflows import Launch, launch_for, launch_of_run, result_of, sample_set

STAGES = ("train", "sample", "evaluate")  # of a trial's own; whatever comes before them is shared by all trials
OUTCOME, OF_RUN = "outcome.json", "of_run.json"
# Trials are what runs side by side: within one, sampling and evaluation are not cut into jobs of their own.
WHOLE = ("cluster.sample.parts=1", "cluster.evaluate.parts=1")
FINAL = ("complete", "pruned")  # outcomes after which a run is never started again


@dataclass(frozen=True)
class Run:
    """One run of a trial. Task k of a sweep's array is run k: trial k // seeds with seed k % seeds."""

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
    def made(self) -> bool:
        """Whether it has begun: its parameters are chosen and its directory is there."""
        return (self.path / "config.yaml").is_file() or (self.path / OF_RUN).is_file()

    def outcome(self) -> dict[str, Any]:
        """What came of it: {"status": complete, pruned, failed or "over budget", ...}; {} while it has not ended."""
        try:
            return dict(read_json(self.path / OUTCOME))
        except Incomplete:
            return {}

    def end(self, status: str, **more: Any) -> None:
        """Write the outcome."""
        write_json(self.path / OUTCOME, {"status": status, **more})

    def launch(self) -> Launch:
        """Its graph, as it was made by `make`, on the cluster that the sweep was last submitted with."""
        path, overrides = self.path, []
        if (path / OF_RUN).is_file():
            note = read_json(path / OF_RUN)
            path, overrides = Path(note["run"]), [w for w in note["overrides"] if not is_of_cluster(w)]
        return _now(self.sweep.settings(), path, overrides)


def params_file(sweep: SweepDir, number: int) -> Path:
    """Where a search's choice for a trial is written down."""
    return sweep.path / "params" / f"{number:04d}.json"


def known_params(sweep: SweepDir, settings: SweepSettings, number: int) -> Params | None:
    """The parameters of a trial where they are chosen: of a grid always."""
    if settings.strategy.kind == "grid":
        return settings.combinations[number]
    try:
        return dict(read_json(params_file(sweep, number)))
    except Incomplete:
        return None


def run_at(sweep: SweepDir, settings: SweepSettings, index: int) -> Run:
    """The run of an array's task."""
    return Run(sweep, *divmod(index, settings.seeds))


def trial_overrides(settings: SweepSettings, params: Params) -> list[str]:
    """The overrides of a configuration: the base's and its own."""
    if settings.run is not None:
        return [str(settings.run), *_overrides_of_run(settings, params)]
    return [*settings.base, *overrides_of(params), f"name={settings.name}", *WHOLE]


def _overrides_of_run(settings: SweepSettings, params: Params) -> list[str]:
    """What a trial says differently from the run that it is about."""
    return [*settings.base, *overrides_of(params), *WHOLE]


def _now(settings: SweepSettings, path: Path, others: Sequence[str]) -> Launch:
    """The graph of a run that is there, with the sweep's words about the cluster as they are now."""
    there = [*filter(is_of_cluster, settings.base), *WHOLE]
    differs = overrides_for(RunDir(path), config_from([str(path), *others, *there]))
    return launch_of_run(path, (*others, *filter(is_of_cluster, differs)))


def make(settings: SweepSettings, params: Params, run: Run) -> Launch:
    """Make the run's directory, or find it as it was made; its graph. Seeds of a trial follow its experiment's.

    Raises:
        UserError: a configuration that is not valid.
    """
    if run.made:
        return run.launch()
    overrides = trial_overrides(settings, params)
    if settings.run is not None:
        config_from(overrides)
        note = {"run": str(settings.run.resolve()), "overrides": _overrides_of_run(settings, params)}
        write_json(run.path / OF_RUN, note)
        return run.launch()
    cfg = config_from([*overrides, f"name={run.name}", f"runs_dir={run.sweep.trials.resolve()}"])
    return launch_for(cfg.model_copy(update={"seed": cfg.seed + run.seed}), make=True)


def shared_key(cfg: Config) -> str:
    """Equal for configurations that are trained on the same data and latents, which are prepared once for all."""
    places = [data_directory(cfg)] if cfg.latents is None else [latents_directory(cfg), cfg.latents.autoencoder]
    return content_hash([str(p) for p in places])[:12]


def shared(settings: SweepSettings, cfg: Config, *, sweep: SweepDir, do_make: bool) -> Launch:
    """The jobs before a trial's own: data, latents, reference statistics. Their run only records their submission."""
    if settings.run is not None:
        launch = _now(settings, settings.run, [w for w in settings.base if not is_of_cluster(w)])
    else:
        place = {"name": shared_key(cfg), "runs_dir": (sweep.path / "shared").resolve()}
        launch = launch_for(cfg.model_copy(update=place), make=do_make)
    names = [job.name for job in launch.jobs]
    first = min((names.index(name) for name in STAGES if name in names), default=len(names))
    return dataclasses.replace(launch, jobs=launch.jobs[:first])


def stages(launch: Launch) -> dict[str, bool]:
    """The trial's own jobs in order, and whether what each makes is complete."""
    return {name: done for name, done in launch.complete().items() if name in STAGES}


def own_stages(launch: Launch, settings: SweepSettings) -> list[Job]:
    """The jobs that a trial goes through. One that is about a run's checkpoint trains nothing."""
    return [j for j in launch.jobs if j.name in STAGES and (settings.run is None or j.name != "train")]


def resources_of(launch: Launch, settings: SweepSettings) -> Resources:
    """What the one job that goes through a trial's stages asks for: of each resource the most of any stage.

    Every rank takes part in each stage, so GPUs that train also sample and evaluate.
    """
    asked = [job.resources for job in own_stages(launch, settings)]
    first = max(asked, key=lambda r: r.nodes * r.tasks_per_node)
    most = {
        "cpus": max((r.cpus for r in asked if r.cpus), default=None),
        "memory_gb": max((r.memory_gb for r in asked if r.memory_gb is not None), default=None),
        "minutes": max(r.minutes for r in asked),
        "parts": 1,
    }
    return first.model_copy(update=most)


def measured(launch: Launch, settings: SweepSettings) -> dict[str, Any]:
    """What a run whose stages are complete came to: its value, other metrics, losses, and where its samples are.

    Raises:
        UserError: the run has no such metric, or the metric is not a number.
    """
    samples = sample_set(launch)
    results: dict[str, float] = {}
    if samples is not None and result_of(launch, samples).is_file():
        results = dict(read_json(result_of(launch, samples))["metrics"])
    losses: list[float] = []
    if settings.run is None:  # a sweep over one run's checkpoint trains nothing
        losses = [v for _, v in training_values(launch, "valid/loss") or training_values(launch, "loss")]
    if "/" in settings.metric:
        values = [value for _, value in training_values(launch, settings.metric)]
        best = min(values, default=None) if settings.minimize else max(values, default=None)
        value = pick({settings.metric: best} if best is not None else {}, settings.metric)
    else:
        value = pick(results, settings.metric)
    if value != value:
        raise UserError(f"metric: {settings.metric} of {launch.run.path} is not a number.")
    loss = {"last": losses[-1], "best": min(losses)} if losses else {}
    count = launch.cfg.sample.count
    return {"value": value, "metrics": results, "loss": loss, "samples": str(samples or ""), "count": count}


def pick(metrics: Mapping[str, float], name: str) -> float:
    """One metric of a result.

    Raises:
        UserError: naming those that there are.
    """
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise UserError(f"metric: found '{name}', expected one of {known}.{did_you_mean(name, metrics)}")
    return float(metrics[name])


def training_values(
    launch: Launch, name: str, rows: Sequence[Mapping[str, Any]] | None = None
) -> list[tuple[int, float]]:
    """(images seen, value) of a number that training records, in order; of steps trained twice the later.

    Args:
        rows: of metrics.jsonl; None: all of them.
    """
    rows = read_lines(launch.run.metrics) if rows is None else rows
    found = {int(row["step"]): float(row[name]) for row in rows if name in row}
    return [(step * launch.cfg.train.global_batch, found[step]) for step in sorted(found)]
