"""What every trial of a sweep came to: values by seed, other metrics, losses, cost, pictures."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student

from slurm.sweep.batches import Held, held, total
from slurm.sweep.driver import trials_of
from slurm.sweep.folder import SweepDir
from slurm.sweep.runs import Run, runs_of, training_values
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Params, words_of
from slurm.sweep.trials import WORDS
from slurm.workflows import Launch

VALIDATION = "valid/loss"


@dataclass(frozen=True)
class RunMeasured:
    """One run."""

    run: Run
    launch: Launch
    value: float | None
    metrics: dict[str, float]
    losses: tuple[tuple[int, float], ...]  # of validation, by images seen; of training where nothing was validated
    picture: Path | None

    @property
    def last_loss(self) -> float | None:
        """At the end of training."""
        return self.losses[-1][1] if self.losses else None

    @property
    def best_loss(self) -> float | None:
        """The lowest."""
        return min((loss for _, loss in self.losses), default=None)


@dataclass(frozen=True)
class Measured:
    """One trial. Numbers are means over its seeds."""

    number: int
    word: str  # complete, pruned, failed, running
    params: Params
    runs: tuple[RunMeasured, ...]
    hours: float
    gpu_hours: float
    cause: str = ""
    message: str = ""
    intermediate: dict[int, float] = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        """The metric, by seed."""
        return [r.value for r in self.runs if r.value is not None] if self.word == "complete" else []

    @property
    def value(self) -> float | None:
        """The mean of the metric."""
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds (Student's t); None for one seed."""
        n = len(self.values)
        return float(student.ppf(0.975, n - 1)) * stdev(self.values) / math.sqrt(n) if n > 1 else None

    def metric(self, name: str) -> float | None:
        """Another metric of the results."""
        return mean(lambda r: r.metrics.get(name), self.runs)

    @property
    def last_loss(self) -> float | None:
        """Of validation at the end."""
        return mean(lambda r: r.last_loss, self.runs)

    @property
    def best_loss(self) -> float | None:
        """Of validation, the lowest."""
        return mean(lambda r: r.best_loss, self.runs)

    @property
    def pictures(self) -> list[Path]:
        """Sample grids."""
        return [r.picture for r in self.runs if r.picture is not None]


def mean(get: Callable[[RunMeasured], float | None], runs: Sequence[RunMeasured]) -> float | None:
    """Of what `get` finds in runs; None where it finds nothing."""
    found = [value for r in runs if (value := get(r)) is not None]
    return fmean(found) if found else None


def measured(sweep: SweepDir) -> list[Measured]:
    """Every trial, in order."""
    settings, cost = sweep.settings(), held(sweep)
    return [_trial(sweep, settings, trial, cost=cost) for trial in trials_of(sweep)]


def _trial(sweep: SweepDir, settings: SweepSettings, trial: FrozenTrial, *, cost: Mapping[str, Held]) -> Measured:
    runs = [run for run in runs_of(sweep, trial.number, settings.seeds) if run.path.is_dir()]
    names, notes = [run.name for run in runs], trial.user_attrs
    values = [*notes.get("values", []), *[None] * len(runs)]
    spent = total(cost, names)
    return Measured(
        number=trial.number,
        word=WORDS.get(trial.state, "running"),
        params=trial.params,
        runs=tuple(_run(run, notes, value) for run, value in zip(runs, values, strict=False)),
        hours=spent.hours,
        gpu_hours=spent.gpu_hours,
        cause=str(notes.get("cause", "")),
        message=str(notes.get("message", "")),
        intermediate=dict(trial.intermediate_values) if trial.state != TrialState.RUNNING else {},
    )


def _run(run: Run, notes: Mapping[str, Any], value: float | None) -> RunMeasured:
    launch = run.launch()
    note = notes.get("runs", {}).get(run.name, {"metrics": {}, "samples": ""})
    grid = Path(note["samples"]) / "grid.png"
    losses: list[tuple[int, float]] = []
    if launch.run.path == run.path.resolve():  # a sweep over one run's checkpoint trains nothing
        losses = training_values(launch, VALIDATION) or training_values(launch, "loss")
    return RunMeasured(run, launch, value, note["metrics"], tuple(losses), grid if grid.is_file() else None)


def ranked(found: Sequence[Measured], settings: SweepSettings) -> list[Measured]:
    """Complete trials, the best first."""
    sign = 1.0 if settings.direction == "minimize" else -1.0
    done = [m for m in found if m.value is not None]
    return sorted(done, key=lambda m: (sign * (m.value or 0.0), m.number))


def metric_names(found: Sequence[Measured], settings: SweepSettings) -> list[str]:
    """Every metric of the results: the sweep's own first, then those that reports show, then the others."""
    known = {name for m in found for r in m.runs for name in r.metrics}
    first = [settings.metric, "fid", "fd-domain", "is", "is-domain", "kid", "kid-domain"]
    return [n for n in dict.fromkeys(first) if n in known] + sorted(known - set(first))


def table_csv(found: Sequence[Measured], settings: SweepSettings) -> str:
    """All numbers in full, one line for each trial."""
    keys = list(dict.fromkeys(key for m in found for key in m.params))
    names = [n for n in metric_names(found, settings) if n != settings.metric]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = [f"{settings.metric} seed {n}" for n in range(settings.seeds)]
    losses = ["validation loss (last)", "validation loss (best)"]
    writer.writerow(
        [
            "trial",
            "state",
            *keys,
            settings.metric,
            "plus or minus",
            *seeds,
            *losses,
            *names,
            "hours",
            "GPU hours",
            "cause",
        ]
    )
    for m in found:
        shown = dict(word.split("=", 1) for word in words_of(m.params))
        values = [*m.values, *[""] * settings.seeds][: settings.seeds]
        numbers = [m.value, m.spread, *values, m.last_loss, m.best_loss, *(m.metric(n) for n in names)]
        cells = ["" if x is None else x for x in numbers]
        where = [f"{m.number:04d}", m.word, *(shown.get(k, "") for k in keys)]
        writer.writerow([*where, *cells, f"{m.hours:.4f}", f"{m.gpu_hours:.4f}", m.cause])
    return text.getvalue()
