"""Settings of a sweep: the search space, the strategy, the metric, and how much it may cost; the sweep's directory.

They come from `configs/sweep/*.yaml` (`sweep=NAME`), from words `sweep.key=value`, and, for what is varied, from any
other word in Hydra's sweep grammar:

train.global_batch=128,256          train.optim.lr=interval(1e-5,1e-3)     model=unet_tiny,unet_small
train.optim.kind=choice(sgd,adam)   train.optim.lr=tag(log, interval(...)) model.width=range(16,65,16)
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from pydantic import Field, ValidationError, model_validator

from pipeline.config.base import Settings
from pipeline.config.explain import explain
from pipeline.config.load import CONFIG_ROOT, unknown_choice
from pipeline.config.overrides import is_sweep, override_for, parse
from pipeline.config.registry import higher_is_better
from pipeline.config.weights import weights_folder
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import write_text
from slurm.access import check_folder, held

Params = Mapping[str, str | float | int]  # of a configuration: key -> the text of a choice, or a number
MOST_CORNERS = 256  # combinations of ends and choices that are checked of a space with intervals
SETTINGS = "sweep.yaml"
LOCK_SECONDS = 600.0
FREE = ("trials", "at_once", "gpu_hours", "until", "retries", "columns")  # what may change while a sweep exists
_OWN = ("name", "run", "sweep")  # overrides about the sweep itself, not about what is varied


# The search space


@dataclass(frozen=True)
class Dimension:
    """One varied key: finitely many choices (as texts), or the numbers between two ends."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    integer: bool = False
    log: bool = False

    @property
    def finite(self) -> bool:
        """Whether it can stand in a grid."""
        return bool(self.choices)

    @property
    def ends(self) -> tuple[str | float | int, ...]:
        """Values that are checked for all: every choice, or both ends."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


def dimension(key: str, grammar: str) -> Dimension:
    """The dimension that `key=grammar` means; one plain value is a dimension of one choice.

    Raises:
        UserError: what the grammar does not know, or what this kind of sweep cannot do.
    """
    override = _parsed(f"{key}={grammar}")
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(key, value)
    if isinstance(value, ChoiceSweep | RangeSweep):
        choices = tuple(dict.fromkeys(text_of(v) for v in override.sweep_iterator()))
        if not choices:
            raise UserError(f"{key}: found '{grammar}', which has no values.")
        return Dimension(key, choices=choices)
    if override.is_sweep_override():
        raise UserError(f"{key}: found '{grammar}'; expected values (1,2), choice(), range() or interval().")
    return Dimension(key, choices=(text_of(value),))


def _interval(key: str, value: IntervalSweep) -> Dimension:
    low, high = float(value.start or 0), float(value.end or 0)
    whole = isinstance(value.start, int) and isinstance(value.end, int)
    log = "log" in value.tags
    if unknown := value.tags - {"log", "int"}:
        raise UserError(f"{key}: found the tag {', '.join(sorted(unknown))}, expected log or int.")
    if not low < high or (log and low <= 0):
        raise UserError(f"{key}: found interval({low:g}, {high:g}), expected two ends that ascend, and > 0 with log.")
    return Dimension(key, low=low, high=high, integer=whole or "int" in value.tags, log=log)


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _parsed(override: str) -> Override:
    try:
        return _parser().parse_override(override)
    except HydraException as error:
        raise UserError(f"Cannot read '{override}': {str(error).splitlines()[0]}") from error


def text_of(value: Any) -> str:
    """A value as it stands after the `=` of an override, for Hydra and for YAML alike."""
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, str) and value and all(c.isalnum() or c in "._:/+-" for c in value):
        return value
    return json.dumps(value)


def overrides_of(params: Params) -> tuple[str, ...]:
    """The overrides of a configuration."""
    return tuple(f"{key}={_shown(value)}" for key, value in params.items())


def shown(params: Params) -> dict[str, str]:
    """A configuration for people: numbers between ends with four digits."""
    return {k: f"{v:.4g}" if isinstance(v, float) else str(v).strip('"') for k, v in params.items()}


def _shown(value: str | float | int) -> str:
    return value if isinstance(value, str) else repr(value)


def grid(dimensions: Sequence[Dimension], rows: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, str]]:
    """Every configuration of a grid, the last dimension varying fastest; rows vary slowest.

    Raises:
        UserError: an interval, which has no end of values.
    """
    for d in dimensions:
        if not d.finite:
            raise UserError(
                f"{d.key}: an interval cannot stand in a grid. Use range(), a list of values, or "
                "sweep.strategy.kind=random or tpe."
            )
    first = [{key: text_of(value) for key, value in row.items()} for row in rows] or [{}]
    products = itertools.product(*(d.choices for d in dimensions))
    rest = [dict(zip((d.key for d in dimensions), values, strict=True)) for values in products]
    return [row | values for row in first for values in rest]


def corners(dimensions: Sequence[Dimension]) -> list[Params]:
    """Configurations at the ends of intervals and at every choice: where they are valid, what lies between is too.

    All combinations where they are few; else each end and choice once, beside the first ends of the others.
    """
    if math.prod(len(d.ends) for d in dimensions) <= MOST_CORNERS:
        return [
            dict(zip((d.key for d in dimensions), values, strict=True))
            for values in itertools.product(*(d.ends for d in dimensions))
        ]
    base = {d.key: d.ends[0] for d in dimensions}
    return [base, *({**base, d.key: end} for d in dimensions for end in d.ends[1:])]


def row_dimensions(rows: Sequence[Mapping[str, Any]]) -> list[Dimension]:
    """The keys of rows as dimensions, for tables and plots."""
    keys = list(rows[0]) if rows else []
    return [Dimension(key, choices=tuple(dict.fromkeys(text_of(row[key]) for row in rows))) for key in keys]


def number_of(value: object) -> float | None:
    """A value as a number, where it is one: for axes and for order in tables."""
    try:
        return float(str(value))
    except ValueError:
        return None


# The settings


class StrategyConfig(Settings):
    """How configurations are chosen."""

    kind: Literal["grid", "random", "tpe"] = "grid"
    seed: int = Field(0, ge=0)
    startup: int = Field(8, ge=1)  # tpe: this many configurations are drawn at random first


class PruningConfig(Settings):
    """Which trainings end early, by Optuna's pruners, from a number that training records."""

    kind: Literal["none", "median", "halving", "hyperband"] = "none"
    metric: str = "valid/loss"  # or an in-loop metric, such as in_loop/fd-domain
    first_kimg: float = Field(10.0, gt=0)  # no trial ends before it has seen this many thousand images
    eta: int = Field(3, ge=2)  # halving, hyperband: one in eta goes on
    startup: int = Field(4, ge=1)  # median: no trial ends before this many are complete


class SweepSettings(Settings):
    """A sweep, complete."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    folder: Path = Path("sweeps")  # the sweep's own directory is <folder>/<name>
    base: tuple[str, ...] = ()  # overrides of the experiment that all trials share
    run: Path | None = None  # a trained run: trials sample and evaluate its checkpoint, nothing is trained
    space: dict[str, str] = Field(default_factory=dict)  # key -> Hydra's sweep grammar, as after the "="
    earlier: tuple[dict[str, str], ...] = ()  # `space` before each `extend`: trials keep their numbers
    rows: tuple[dict[str, Any], ...] = ()  # configurations that are no product: a value for every key in each
    strategy: StrategyConfig = StrategyConfig()
    metric: str = "fd-domain"  # of results/*.json; with a "/", of metrics.jsonl (its best)
    direction: Literal["minimize", "maximize"] | None = None  # None: as is known of the metric
    trials: int | None = Field(None, ge=1)  # configurations; None: the whole grid
    seeds: int = Field(1, ge=1)  # runs of each configuration, with seed, seed + 1, ...; a trial's value is their mean
    at_once: int = Field(4, ge=1)  # most runs at the same time: the array's throttle
    retries: int = Field(2, ge=0)  # how often a task that failed or was killed is queued again by itself, at least
    gpu_hours: float | None = Field(None, gt=0)  # no run starts that would probably exceed this
    until: datetime | None = None  # no run starts after this time
    pruning: PruningConfig = PruningConfig()
    columns: dict[str, str] = Field(default_factory=dict)  # what the report's table calls the varied keys
    cwd: Path = Field(default_factory=Path.cwd)  # where it was submitted: relative paths start there
    program: str = "pipeline"  # the module whose commands train, sample and evaluate

    @property
    def path(self) -> Path:
        """The sweep's directory."""
        return self.folder / self.name

    @property
    def minimize(self) -> bool:
        """Whether a lower metric is the better one."""
        known = higher_is_better(self.metric)
        return self.direction == "minimize" if self.direction is not None else not known

    @property
    def needs_study(self) -> bool:
        """Whether Optuna decides anything while the sweep runs: which parameters come next, or who is pruned."""
        return self.strategy.kind == "tpe" or self.pruning.kind != "none"

    @cached_property
    def dimensions(self) -> list[Dimension]:
        """Every varied key."""
        return [*row_dimensions(self.rows), *(dimension(key, text) for key, text in self.space.items())]

    @cached_property
    def combinations(self) -> list[dict[str, str]]:
        """The trials of a grid in their order. What `extend` added comes last, so that no trial changes its number."""
        found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        for space in (*self.earlier, self.space):
            for params in grid([dimension(key, text) for key, text in space.items()], self.rows):
                found.setdefault(tuple(params.items()), params)
        return list(found.values())[: self.trials]

    @property
    def size(self) -> int:
        """How many trials there are."""
        return len(self.combinations) if self.strategy.kind == "grid" else self.trials or 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.space and not self.rows:
            raise ValueError("space: nothing is varied. Give a key two values, such as train.global_batch=128,256")
        if self.rows and any(row.keys() != self.rows[0].keys() for row in self.rows):
            raise ValueError("rows: every row needs a value for the same keys")
        if self.rows and self.strategy.kind != "grid":
            raise ValueError(f"rows: found strategy.kind={self.strategy.kind}; rows are run as a grid")
        if self.strategy.kind != "grid" and self.trials is None:
            raise ValueError(f"trials: missing; strategy.kind={self.strategy.kind} goes on until told how many")
        if self.run is not None and self.pruning.kind != "none":
            raise ValueError("pruning.kind: nothing is trained in a sweep over run=..., so nothing can be pruned")
        if self.pruning.kind != "none" and "/" not in self.pruning.metric:
            raise ValueError(
                f"pruning.metric: found '{self.pruning.metric}', expected a number that training records, such as "
                "valid/loss (train.validate_every) or in_loop/fd-domain (train.metric_every)"
            )
        known = higher_is_better(self.metric)
        if self.direction is not None and known is not None and known != (self.direction == "maximize"):
            raise ValueError(
                f"direction: found {self.direction}, but of {self.metric} the {'higher' if known else 'lower'} value "
                "is the better one. Leave direction out"
            )
        return self


@dataclass(frozen=True)
class SweepDir:
    """Paths of a sweep, the only thing that its jobs share. Holds nothing and opens nothing.

    sweep.yaml              the resolved settings
    study.journal           Optuna's storage, where a search or a pruner needs one
    params/0007.json        the parameters of trial 7, once they are chosen
    trials/0007-s0/         a run directory for each trial and seed; outcome.json in it says what came of it
    shared/                 runs in whose name data and latents are prepared for all trials
    jobs/array-0003/        one job array: its runs, logs and attempts
    tensorboard/ report.md trials.csv trials.json plots
    """

    path: Path

    @property
    def settings_file(self) -> Path:
        """The resolved settings."""
        return self.path / SETTINGS

    @property
    def trials(self) -> Path:
        """The folder of the runs."""
        return self.path / "trials"

    @property
    def jobs(self) -> Path:
        """The folder of the arrays' records."""
        return self.path / "jobs"

    @property
    def tensorboard(self) -> Path:
        """The sweep's page."""
        return self.path / "tensorboard"

    @property
    def cancelled(self) -> Path:
        """A file that is there while the sweep is cancelled."""
        return self.path / "cancelled"

    def settings(self) -> SweepSettings:
        """What the sweep is.

        Raises:
            UserError: where this is no sweep.
        """
        if not self.settings_file.is_file():
            raise UserError(f"'{self.path}' is no sweep: it has no {SETTINGS}.")
        return validated(yaml.safe_load(self.settings_file.read_text()))

    def write(self, settings: SweepSettings) -> None:
        """Write the settings down."""
        check_folder(self.path, "sweep.folder")
        write_text(self.settings_file, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))

    def lock(self, what: str) -> AbstractContextManager[None]:
        """One process at a time submits, or asks the study. Raises `UserError` where the lock cannot be had."""
        refusal = f"{self.path}: another process has held the lock of '{what}' for {LOCK_SECONDS:.0f} s. Try again."
        return held(self.path / f".lock-{what}", refusal=refusal, seconds=LOCK_SECONDS)


def validated(values: Any) -> SweepSettings:
    """Plain values as settings; all problems at once."""
    try:
        return SweepSettings.model_validate(values)
    except ValidationError as error:
        problems = explain(error, SweepSettings, start="sweep.")
        raise UserError(problems[0] if len(problems) == 1 else "\n".join(f"  - {p}" for p in problems)) from error


def settings_from(overrides: Sequence[str]) -> SweepSettings:
    """The sweep that a command line means: `sweep=NAME`, `sweep.key=value`, the experiment's overrides, what is varied.

    An override of a key that the file varies takes its place: with one value, the key is not varied any more.
    """
    values = _named([w for w in overrides if w.startswith("sweep=")])
    space = {k: _grammar(v) for k, v in values.get("space", {}).items()}
    base = {w.partition("=")[0].lstrip("+"): w for w in values.get("base", [])}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"'{override}' is not key=value.")
        if key.startswith("sweep."):
            _put(values, key.split(".")[1:], parse(override.removeprefix("sweep."), SweepSettings).value)
        elif key in _OWN:
            values |= {} if key == "sweep" else {key: value}
        elif is_sweep(override):
            space[key.lstrip("+")] = value
            base.pop(key.lstrip("+"), None)
        else:
            space.pop(key.lstrip("+"), None)
            base[key.lstrip("+")] = override
    if "run" not in values and "cluster.weights" not in base and (named := weights_folder()):
        base["cluster.weights"] = override_for(
            "cluster.weights", str(named.resolve())
        )  # tasks may see another environment
    values |= {"space": space, "base": list(base.values())}
    if any(not dimension(k, v).finite for k, v in space.items()):
        values["strategy"] = {"kind": "tpe"} | values.get("strategy", {})
    return validated(values)


def is_of_cluster(override: str) -> bool:
    """Whether an override says where jobs run and what they ask for, which decides no number."""
    return override.lstrip("+").startswith(("cluster=", "cluster."))


def moved(settings: SweepSettings, overrides: Sequence[str]) -> SweepSettings:
    """The settings with other words about the cluster. A profile takes the place of all that was said before.

    Raises:
        UserError: a word that is about something else.
    """
    if others := [override for override in overrides if not is_of_cluster(override)]:
        raise UserError(
            f"{' '.join(others)}: of a sweep that is there, submit takes settings of cluster alone, such as "
            "cluster.train.minutes=120. More trials or values: mudi sweep extend."
        )
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    before = [w for w in settings.base if w.lstrip("+").partition("=")[0] not in keys]
    if "cluster" in keys:
        before = [w for w in before if not is_of_cluster(w)]
    return validated(settings.model_dump(mode="json") | {"base": [*before, *overrides]})


def _named(overrides: Sequence[str]) -> dict[str, Any]:
    """The file that `sweep=NAME` means, or an empty sweep."""
    known = sorted(p.stem for p in (CONFIG_ROOT / "sweep").glob("*.yaml"))
    for override in overrides:
        name = override.partition("=")[2]
        if name not in known:
            raise UserError(unknown_choice("sweep", name, known))
        values = yaml.safe_load((CONFIG_ROOT / "sweep" / f"{name}.yaml").read_text())
        return {"name": name} | dict(values)
    return {}


def _grammar(value: Any) -> str:
    """A value of `space:` in a file: grammar as text, or a YAML list of values."""
    if isinstance(value, list):
        return ",".join(text_of(v) for v in value)
    return value if isinstance(value, str) else text_of(value)


def _put(values: dict[str, Any], place: Sequence[str], value: Any) -> None:
    for part in place[:-1]:
        values = values.setdefault(part, {})
    values[place[-1]] = value


def extended(settings: SweepSettings, overrides: Sequence[str]) -> SweepSettings:
    """The settings with more: other numbers of trials and runs, further values of a key, another interval.

    Raises:
        UserError: a change that the trials so far do not allow.
    """
    values = settings.model_dump(mode="json")
    for override in overrides:
        key, _, text = override.partition("=")
        name = key.removeprefix("sweep.")
        if key.startswith("sweep.") and name in FREE:
            values[name] = parse(f"{name}={text}", SweepSettings).value
        elif key in values["space"]:
            old, new = dimension(key, values["space"][key]), dimension(key, text)
            both = (*old.choices, *(c for c in new.choices if c not in old.choices))
            values["space"][key] = ",".join(both) if old.finite and new.finite else text
        else:
            known = [*values["space"], *(f"sweep.{name}" for name in FREE)]
            said = (
                "a new key would make the trials so far incomparable" if is_sweep(override) else "it cannot be extended"
            )
            raise UserError(f"{key}: {said}; expected one of {', '.join(known)}.{did_you_mean(key, known)}")
    if values["space"] != settings.space:
        values["earlier"] = [*values["earlier"], settings.space]
    return validated(values)
