"""What submitting a sweep would do: its configurations, its jobs, and the most that it can cost. Nothing is written."""

from rich.console import Console
from rich.table import Table

from pipeline.config.schema import Config
from slurm import plan
from slurm.sweep.check import configurations, size_of
from slurm.sweep.runs import STAGES, resources_of
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import dimension, shown
from slurm.watching import duration
from slurm.workflows import launch_for

MOST_ROWS = 24


def show(settings: SweepSettings, cfg: Config, console: Console) -> None:
    """Print it.

    Args:
        cfg: of the first configuration.
    """
    trials = size_of(settings)
    runs = trials * settings.seeds
    console.print(
        f"{settings.path}: {settings.strategy.kind} search, {trials} trials x {settings.seeds} seed(s) = {runs} runs, "
        f"{settings.at_once} at once; the {settings.direction.removesuffix('imize')}imum of {settings.metric}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_configurations(settings) if settings.strategy.kind == "grid" else _space(settings))
    launch = launch_for(cfg, make=False)
    shared, own = ([j.name for j in launch.jobs if (j.name in STAGES) == mine] for mine in (False, True))
    shared = [name for name in shared if name not in ("compare", "features")]
    if settings.run is None:
        complete = launch.complete()
        words = [f"{name} ({'complete' if complete[name] else 'to do'})" for name in shared]
        console.print(f"once for all: {', '.join(words)}", highlight=False)
    asks = resources_of(launch)
    console.print(f"each run:     {', '.join(own)} in one job; {plan.asked(asks)}", highlight=False, soft_wrap=True)
    gpus, waves = asks.nodes * asks.gpus, -(-runs // settings.at_once)
    most = f"{runs * gpus * asks.minutes / 60:g} GPU hours, " if gpus else ""
    limit = f"; sweep.gpu_hours={settings.gpu_hours:g} ends it before" if settings.gpu_hours is not None else ""
    console.print(
        f"at most:      {most}{duration(60 * asks.minutes * waves)}, if every run took its time limit{limit}",
        highlight=False,
        soft_wrap=True,
    )


def _configurations(settings: SweepSettings) -> Table:
    rows = configurations(settings)
    table = Table("trial", *(settings.columns.get(key, key) for key in rows[0]))
    for number, params in enumerate(rows[:MOST_ROWS]):
        table.add_row(f"{number:04d}", *shown(params).values())
    if len(rows) > MOST_ROWS:
        table.add_row("...", *("..." for _ in rows[0]))
    return table


def _space(settings: SweepSettings) -> Table:
    table = Table("varied", "from")
    for key, text in settings.space.items():
        d = dimension(key, text)
        ends = ", ".join(d.choices) if d.finite else f"{d.low:g} to {d.high:g}{', logarithmic' * d.log}"
        table.add_row(settings.columns.get(key, key), ends)
    return table
