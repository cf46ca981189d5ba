"""mudi sweep <command>: grids and searches over experiments, each as one job array.

submit  experiment=... name=NAME key=1,2 key=interval(0,1) [sweep.key=value ...]    or  sweep=NAME [key=value ...]
submit  run=RUN_DIR name=NAME sample.sampler.guidance.scale=0,1,2                   over one run's checkpoint
submit  SWEEP_DIR [cluster.key=value ...]   queue again what is neither complete nor under way, also elsewhere
plan    ...              as submit: what it would run, and what that can cost; nothing is written
status  SWEEP_DIR        every trial: its state, what came of it, why it failed
report  SWEEP_DIR        report.md, trials.csv, trials.json, plots, the TensorBoard page
extend  SWEEP_DIR sweep.trials=40 key=512,1024                                      more trials, more values
cancel  SWEEP_DIR        end what is under way; submit goes on from there
"""

import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.config.load import listed
from pipeline.config.needs import missing
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from slurm import plan as planning
from slurm.access import taken_back
from slurm.costs import estimates
from slurm.progress import duration
from slurm.sweep import submit as submitting
from slurm.sweep.runs import STAGES, own_stages, resources_of
from slurm.sweep.settings import (
    SweepDir,
    SweepSettings,
    dimension,
    extended,
    is_of_cluster,
    moved,
    settings_from,
    shown,
)
from slurm.sweep.submit import Checked, check
from slurm.workflows import account_missing, launch_for

MOST_ROWS = 24
EXAMPLE = "experiment=glyphs16 name=lr train.optim.lr=1e-3,2e-3"


def submit(arguments: list[str]) -> int:
    """Begin a sweep, or go on with one."""
    if not arguments:
        raise UserError(f"submit what? For example: mudi sweep submit {EXAMPLE}")
    if "=" not in arguments[0]:
        sweep = opened(arguments[0])
        settings = moved(sweep.settings(), arguments[1:])
        checked = check(settings)
        sweep.write(settings)
        return _go(sweep, settings, checked)
    settings = settings_from(arguments)
    checked = check(settings)
    _require(settings, checked.first)
    sweep = SweepDir(settings.path.resolve())
    with taken_back([sweep.path], keep=submitting.anything_submitted):
        if sweep.settings_file.is_file():
            _refuse_another(sweep, settings)
        sweep.write(settings)
        return _go(sweep, settings, checked)


def _refuse_another(sweep: SweepDir, settings: SweepSettings) -> None:
    old, new = (
        {**s.model_dump(mode="json"), "base": tuple(w for w in s.base if not is_of_cluster(w))}
        for s in (sweep.settings(), settings)
    )  # jobs may run elsewhere, or ask for more
    differ = [
        f"  - {key}: the sweep has {old[key]!r}, this call has {new[key]!r}" for key in old if old[key] != new[key]
    ]
    if differ:
        raise UserError(
            f"{sweep.path} is a sweep with other settings:\n" + "\n".join(differ) + "\n"
            f"Choose another name, or change it: mudi sweep extend {sweep.path} ..."
        )


def _go(sweep: SweepDir, settings: SweepSettings, checked: Checked) -> int:
    many = f"{settings.size} trials of {settings.seeds} seed(s)"
    if checked.first.cluster.executor == "local":
        print(f"{sweep.path}: {many}, one run after the other")
        code = submitting.here(sweep, settings, checked)
        if code != 130:
            report([str(sweep.path)])
        return code
    print(f"{sweep.path}: {many}, {settings.at_once} runs at once")
    print("\n".join(submitting.submit(sweep, settings, checked)))
    print(f"Nothing needs to stay here. Later: mudi sweep status {sweep.path}")
    return 0


def plan(overrides: list[str]) -> int:
    """Show what submitting would do: configurations, jobs, and the most that they can cost."""
    if not overrides:
        raise UserError(f"plan what? The arguments of submit, such as {EXAMPLE}")
    settings = settings_from(overrides)
    checked, console = check(settings), Console(width=None if sys.stdout.isatty() else 140)
    runs, cfg, launch = settings.size * settings.seeds, checked.first, launch_for(checked.first, make=False)
    _require(settings, cfg)
    queued = cfg.cluster.executor == "slurm"
    at_once = settings.at_once if queued else 1
    lines = [
        f"{settings.path}: {settings.strategy.kind} search, {settings.size} trials x {settings.seeds} seed(s) = {runs} "
        f"runs, {at_once} at once; the {'min' if settings.minimize else 'max'}imum of {settings.metric}"
    ]
    console.print(lines.pop(), highlight=False, soft_wrap=True)
    console.print(_configurations(settings) if settings.strategy.kind == "grid" else _space(settings))
    own = [job.name for job in own_stages(launch, settings)]
    if settings.run is None:
        complete = launch.complete()
        before = [n for n in complete if n not in (*STAGES, "compare", "features")]
        lines += ["once for all: " + ", ".join(f"{n} ({'complete' if complete[n] else 'to do'})" for n in before)]
    asks = resources_of(launch, settings)
    gpus, waves = asks.nodes * asks.gpus, -(-runs // at_once)
    most = f"{runs * gpus * asks.minutes / 60:g} GPU hours, " if gpus else ""
    limit = f"; sweep.gpu_hours={settings.gpu_hours:g} ends it before" if settings.gpu_hours is not None else ""
    lines += [f"each run:     {', '.join(own)} in one job; {planning.asked(asks, limited=queued)}"]
    known = estimates(cfg, tuple(own_stages(launch, settings)), train_images=planning.train_images(cfg))
    lines += [f"estimate:     {name} of each run: {said}" for name, said in known.items()]
    if queued:
        lines += [f"at most:      {most}{duration(60 * asks.minutes * waves)}, if every run took its time limit{limit}"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    return 0


def _configurations(settings: SweepSettings) -> Table:
    rows = settings.combinations
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


def _require(settings: SweepSettings, cfg: Config) -> None:
    """Refuse what the jobs of a trial, and those that trials share, will not find, as far as they are still to do.

    Raises:
        UserError: a sentence each.
    """
    launch = launch_for(cfg, make=False)
    names = [name for name, complete in launch.complete().items() if not complete]
    names = [name for name in names if settings.run is None or name != "train"] + ["sample", "evaluate"]
    asked = [job for job in launch.jobs if job.name in names]
    if problems := [*missing(cfg, names), *account_missing(cfg.cluster, asked)]:
        raise UserError(listed(problems))


def status(arguments: list[str]) -> int:
    """Show every trial."""
    from slurm.sweep.report import show_status

    return show_status(opened(*arguments), Console(width=None if sys.stdout.isatty() else 140))


def report(arguments: list[str]) -> int:
    """Write and print the report."""
    from slurm.sweep.report import write

    sweep = opened(*arguments)
    print(write(sweep).read_text())
    print(f"Report: {sweep.path / 'report.md'}\nPage:   tensorboard --logdir {sweep.tensorboard}")
    return 0


def extend(arguments: list[str]) -> int:
    """More trials or values, or another budget."""
    if len(arguments) < 2:
        raise UserError("extend what by what? For example: mudi sweep extend sweeps/lr sweep.trials=40")
    sweep = opened(arguments[0])
    with sweep.lock("submit"):
        settings = extended(sweep.settings(), arguments[1:])
        checked = check(settings)
        sweep.write(settings)
    if checked.first.cluster.executor == "slurm":
        submitting.throttle(sweep, settings.at_once)
    return _go(sweep, settings, checked)


def cancel(arguments: list[str]) -> int:
    """End what is under way."""
    ended = submitting.cancel(opened(*arguments))
    print("\n".join(f"cancelled {name}" for name in ended) or "nothing was under way")
    return 0


def opened(*arguments: str) -> SweepDir:
    """The sweep that one argument names. From here on relative paths start where the sweep was submitted.

    Raises:
        UserError: more or less than one argument, or no sweep there.
    """
    if len(arguments) != 1:
        raise UserError("which sweep? Give its directory, such as sweeps/lr.")
    sweep = SweepDir(Path(arguments[0]).resolve())
    cwd = sweep.settings().cwd
    if not cwd.is_dir():
        raise UserError(
            f"{sweep.settings_file}: cwd: found {cwd}, which is gone. Relative paths started there: name another."
        )
    os.chdir(cwd)
    return sweep
