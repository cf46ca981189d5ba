"""Settings of a sweep: what is varied, how, by which number it is judged, and how much it may cost.

They come from `configs/sweep/*.yaml` (`sweep=NAME`), from words `sweep.key=value`, and, for what is varied, from any
other word in Hydra's sweep grammar.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Settings


class StrategyConfig(Settings):
    """How configurations are chosen."""

    kind: Literal["grid", "random", "tpe"] = "grid"
    seed: int = Field(0, ge=0)
    startup: int = Field(8, ge=1)  # tpe: this many configurations are drawn at random first


class PruningConfig(Settings):
    """Which trainings end early, by Optuna's rules. A rung is a place in training where a trial is compared."""

    kind: Literal["none", "median", "halving", "hyperband"] = "none"
    metric: str = "valid/loss"  # a number of training's own, or one that evaluation measures ("fd-domain")
    first_kimg: float = Field(10.0, gt=0)  # no trial ends before it has seen this many thousand images
    every_kimg: float = Field(10.0, gt=0)  # between rungs, where evaluation measures; else every validation is one
    images: int = Field(256, ge=1)  # samples at a rung, where evaluation measures
    eta: int = Field(3, ge=2)  # halving, hyperband: one in eta goes on
    startup: int = Field(4, ge=1)  # median: none ends before this many trials are complete


class SweepSettings(Settings):
    """A sweep, complete."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    folder: Path = Path("sweeps")  # the sweep's own directory is <folder>/<name>
    base: tuple[str, ...] = ()  # words of the experiment that every trial shares
    run: Path | None = None  # a trained run: trials sample and evaluate its checkpoint, nothing is trained
    space: dict[str, str] = Field(default_factory=dict)  # key -> Hydra's sweep grammar, as after the "="
    rows: tuple[dict[str, Any], ...] = ()  # configurations that are no product: a value for every key in each
    strategy: StrategyConfig = StrategyConfig()
    metric: str = "fd-domain"  # of results/*.json; with a "/", of metrics.jsonl (its best)
    direction: Literal["minimize", "maximize"] = "minimize"
    trials: int | None = Field(None, ge=1)  # configurations; None: the whole grid
    seeds: int = Field(1, ge=1)  # runs of each configuration, with seed, seed + 1, ...; a trial's value is their mean
    at_once: int = Field(4, ge=1)  # most runs that are under way at the same time
    gpu_hours: float | None = Field(None, gt=0)  # no trial is begun that would probably exceed this
    retries: int = Field(2, ge=0)  # how often a run that the machine failed is submitted again
    pruning: PruningConfig = PruningConfig()
    # Trial k is chosen from the results of trials 0 to k - at_once alone, which must all have ended: then the search
    # does not depend on who finishes first. None: where nothing is pruned.
    reproducible: bool | None = None
    columns: dict[str, str] = Field(default_factory=dict)  # what the report's table calls the varied keys
    program: str = "pipeline"  # the module whose words train, sample and evaluate

    @property
    def path(self) -> Path:
        """The sweep's directory."""
        return self.folder / self.name

    @property
    def in_order(self) -> bool:
        """Whether the search is a function of its seed and the trials' values alone."""
        return self.reproducible if self.reproducible is not None else self.pruning.kind == "none"

    @property
    def known_beforehand(self) -> bool:
        """Whether all runs can be submitted at once: nothing that is measured decides what comes next."""
        return self.strategy.kind != "tpe" and self.pruning.kind == "none" and self.gpu_hours is None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.space and not self.rows:
            raise ValueError("nothing is varied: give a key two values, such as train.global_batch=128,256")
        if self.rows and any(row.keys() != self.rows[0].keys() for row in self.rows):
            raise ValueError("rows: every row needs a value for the same keys")
        if self.rows and self.strategy.kind != "grid":
            raise ValueError(f"rows: found strategy.kind={self.strategy.kind}; rows are run as a grid")
        if self.strategy.kind != "grid" and self.trials is None:
            raise ValueError(f"trials: missing; strategy.kind={self.strategy.kind} goes on until told how many")
        if self.run is not None and self.pruning.kind != "none":
            raise ValueError("pruning.kind: nothing is trained in a sweep over run=..., so nothing can be pruned")
        return self
