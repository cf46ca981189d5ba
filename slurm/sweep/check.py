"""Everything that can be wrong with a sweep, found on the login node before anything is submitted."""

import math
from collections.abc import Iterator, Sequence

from pipeline.config.check_training import metric_problems
from pipeline.config.load import config_from
from pipeline.config.paths import run_directory
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir
from slurm import plan
from slurm.sweep.runs import run_words
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Params, corners, dimension, grid, words_of
from slurm.workflows import graph_of

MOST_SHOWN = 12  # problems in a message


def configurations(settings: SweepSettings) -> Sequence[Params]:
    """Every configuration of a grid; of a search, those at the ends of its space."""
    dimensions = [dimension(key, text) for key, text in settings.space.items()]
    if settings.strategy.kind != "grid":
        return corners(dimensions)
    return grid(dimensions, settings.rows)[: settings.trials]


def size_of(settings: SweepSettings) -> int:
    """How many trials there will be at most."""
    if settings.strategy.kind != "grid":
        return settings.trials or 0
    sizes = [len(dimension(key, text).choices) for key, text in settings.space.items()]
    return min(math.prod(sizes) * max(len(settings.rows), 1), settings.trials or 10**9)


def check(settings: SweepSettings) -> Config:
    """Validate every configuration; the config of the first.

    Raises:
        UserError: all problems of all configurations together, each with the configurations that have it.
    """
    if settings.run is not None and not RunDir(settings.run).finished():
        raise UserError(f"run: {settings.run} has no finished training. Submit it first, or wait for it.")
    tried = configurations(settings)
    found: dict[str, list[Params]] = {}
    valid: list[Config] = []
    for params in tried:
        try:
            cfg = config_from(run_words(settings, params))
            plan.derived(cfg)
        except UserError as error:
            found.setdefault(str(error), []).append(params)
            continue
        valid.append(cfg)
        for problem in _rules(settings, cfg):
            found.setdefault(problem, []).append(params)
    if found:
        raise UserError("\n".join(_said(problem, who, of=len(tried)) for problem, who in [*found.items()][:MOST_SHOWN]))
    plan.check_gpus(valid[0], graph_of(valid[0], RunDir(run_directory(valid[0])), ()))
    return valid[0]


def _said(problem: str, who: Sequence[Params], *, of: int) -> str:
    if len(who) == of:
        return problem
    shown = "; ".join(" ".join(words_of(params)) for params in who[:3])
    more = f" and {len(who) - 3} more" if len(who) > 3 else ""
    return f"With {shown}{more}:\n  {problem}"


def _rules(settings: SweepSettings, cfg: Config) -> Iterator[str]:
    names = {settings.metric}
    if settings.pruning.kind != "none":
        names.add(settings.pruning.metric)
    for name in sorted(names):
        yield from (f"metric: {problem}" for problem in metric_problems(cfg, name))
    asked = cfg.cluster.train
    if (
        settings.pruning.kind != "none"
        and "/" not in settings.pruning.metric
        and asked.nodes * asked.tasks_per_node > 1
    ):
        yield (
            f"pruning.metric: found {settings.pruning.metric} with {asked.nodes * asked.tasks_per_node} training "
            "processes; rungs that evaluation measures need one. Use valid/loss, or one GPU for each trial."
        )
    if settings.gpu_hours is not None and not asked.gpus:
        yield "gpu_hours: set, but cluster.train.gpus is 0, so nothing would ever be counted."
