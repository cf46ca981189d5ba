"""python -m slurm sweep <command>: grids and searches over experiments.

submit  experiment=... name=NAME key=1,2 key=interval(0,1) [sweep.key=value ...]    or  sweep=NAME [key=value ...]
submit  run=RUN_DIR name=NAME sample.sampler.guidance.scale=0,1,2                   over one run's checkpoint
submit  SWEEP_DIR                                                                   go on with a sweep, repair it
plan    ...              as submit: what it would run, and what that can cost; nothing is written
status  SWEEP_DIR        every trial: where it stands, what came of it
report  SWEEP_DIR        report.md, trials.csv, plots, the TensorBoard page
extend  SWEEP_DIR sweep.trials=40 key=512,1024                                      more trials, more values
cancel  SWEEP_DIR        end what is under way; submit goes on from there
advance SWEEP_DIR        one step, as the jobs take it
"""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.config.needs import require
from pipeline.config.overrides import parse
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError, did_you_mean
from slurm.sweep import ending, here, planning
from slurm.sweep.check import check, size_of
from slurm.sweep.driver import Progress, advance
from slurm.sweep.folder import SweepDir, settings_from, validated
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import dimension, is_sweep
from slurm.sweep.standing import standing, totals
from slurm.workflows import launch_for

FREE = ("trials", "at_once", "gpu_hours", "retries", "columns")  # what may change while a sweep exists


def submit(words: list[str]) -> int:
    """Begin a sweep, or go on with one."""
    if not words:
        raise UserError(
            "submit what? For example: "
            "python -m slurm sweep submit experiment=glyphs16 name=lr train.optim.lr=1e-3,2e-3"
        )
    if "=" not in words[0]:
        if len(words) > 1:
            raise UserError(f"submit {words[0]} takes no more words. To change a sweep: python -m slurm sweep extend")
        sweep = opened(words[0])
        return _go(sweep, check(sweep.settings()))
    settings, cfg = _meant(words)
    require(cfg, *_needed(settings, cfg))
    sweep = SweepDir(settings.path.resolve())
    if sweep.settings_file.is_file():
        _refuse_another(sweep, settings)
    else:
        sweep.write(settings)
    print(f"{sweep.path}: {size_of(settings)} trials of {settings.seeds} seed(s), {settings.at_once} runs at once")
    return _go(sweep, cfg)


def _meant(words: list[str]) -> tuple[SweepSettings, Config]:
    """The sweep that a command line means, checked; on one's own machine, one run at a time unless told otherwise."""
    settings = settings_from(words)
    cfg = check(settings)
    if "at_once" not in settings.model_fields_set and cfg.cluster.executor == "local":
        settings = settings.model_copy(update={"at_once": 1})
    return settings, cfg


def plan(words: list[str]) -> int:
    """Show what submitting would do."""
    if not words:
        raise UserError("plan what? The words of submit, such as experiment=glyphs16 name=lr train.optim.lr=1e-3,2e-3")
    settings, cfg = _meant(words)
    planning.show(settings, cfg, Console(width=None if sys.stdout.isatty() else 140))
    require(cfg, *_needed(settings, cfg))
    return 0


def _needed(settings: SweepSettings, cfg: Config) -> list[str]:
    """The jobs of a trial, and those that trials share, as far as they are still to do."""
    open_jobs = [name for name, complete in launch_for(cfg, make=False).complete().items() if not complete]
    return [name for name in open_jobs if settings.run is None or name != "train"] + ["sample", "evaluate"]


def _refuse_another(sweep: SweepDir, settings: SweepSettings) -> None:
    old, new = sweep.settings().model_dump(mode="json"), settings.model_dump(mode="json")
    differ = [
        f"  - {key}: the sweep has {old[key]!r}, this call has {new[key]!r}" for key in old if old[key] != new[key]
    ]
    if differ:
        raise UserError(
            f"{sweep.path} is a sweep with other settings:\n" + "\n".join(differ) + "\n"
            f"Choose another name, or change it: python -m slurm sweep extend {sweep.path} ..."
        )


def _go(sweep: SweepDir, cfg: Config) -> int:
    sweep.finished.unlink(missing_ok=True)
    if cfg.cluster.executor == "local":
        progress, code = here.run_here(sweep)
        if progress.ended:
            print(ending.write(sweep).read_text())
            print(where(sweep))
        return code
    progress = advance(sweep, by_hand=True)
    print(progress.words())
    if not progress.ended:
        print(f"Nothing needs to stay here. Later: python -m slurm sweep status {sweep.path}")
    return end(sweep, progress)


def end(sweep: SweepDir, progress: Progress) -> int:
    """After a step: the report where it was the last, what is new on the page where not."""
    if progress.ended and not sweep.finished.is_file():
        ending.write(sweep)
    elif not progress.ended:
        ending.refresh(sweep)
    return int(bool(progress.stalled))


def advance_(words: list[str]) -> int:
    """One step; the tiny jobs' words. Something that is stalled is for a person, not for another try."""
    sweep = opened(*words)
    progress = advance(sweep)
    print(progress.words())
    end(sweep, progress)
    return 0


def status(words: list[str]) -> int:
    """Show every trial."""
    sweep = opened(*words)
    rows, console = standing(sweep), Console(width=None if sys.stdout.isatty() else 140)
    table = Table(title=str(sweep.path), title_justify="left")
    for column in ("trial", "state", "configuration", sweep.settings().metric, "hours", ""):
        table.add_column(column, overflow="fold", justify="right" if column == "hours" else "left")
    for row in rows:
        value = "" if row.value is None else f"{row.value:.4g}"
        table.add_row(row.name, row.word, " ".join(row.words), value, f"{row.hours:.2f}", row.note)
    console.print(table)
    console.print(totals(sweep, rows), highlight=False, soft_wrap=True)
    if sweep.finished.is_file():
        console.print(where(sweep), highlight=False, soft_wrap=True)
    return int(any(row.word == "failed" for row in rows))


def report(words: list[str]) -> int:
    """Write and print the report."""
    sweep = opened(*words)
    print(ending.write(sweep, finished=False).read_text())
    print(where(sweep))
    return 0


def where(sweep: SweepDir) -> str:
    """Where what a sweep came to can be looked at."""
    return f"Report: {sweep.path / 'report.md'}\nPage:   tensorboard --logdir {sweep.tensorboard}"


def extend(words: list[str]) -> int:
    """More trials or values, or another budget."""
    if len(words) < 2:
        raise UserError("extend what by what? For example: python -m slurm sweep extend sweeps/lr sweep.trials=40")
    sweep = opened(words[0])
    with sweep.lock():
        settings = extended(sweep.settings(), words[1:])
        cfg = check(settings)
        sweep.write(settings)
    return _go(sweep, cfg)


def extended(settings: SweepSettings, words: list[str]) -> SweepSettings:
    """The settings with more: other numbers of trials and runs, further values of a key, another interval.

    Raises:
        UserError: a change that the trials so far do not allow.
    """
    values = settings.model_dump(mode="json")
    for word in words:
        key, _, text = word.partition("=")
        name = key.removeprefix("sweep.")
        if key.startswith("sweep.") and name in FREE:
            values[name] = parse(f"{name}={text}", SweepSettings).value
        elif key in values["space"]:
            old, new = dimension(key, values["space"][key]), dimension(key, text)
            both = (*old.choices, *(c for c in new.choices if c not in old.choices))
            values["space"][key] = ",".join(both) if old.finite and new.finite else text
        else:
            known = [*values["space"], *(f"sweep.{name}" for name in FREE)]
            said = "a new key would make the trials so far incomparable" if is_sweep(word) else "it cannot be extended"
            raise UserError(f"{key}: {said}; expected one of {', '.join(known)}.{did_you_mean(key, known)}")
    return validated(values)


def cancel(words: list[str]) -> int:
    """End what is under way."""
    ended = ending.cancel(opened(*words))
    print("\n".join(f"cancelled {name}" for name in ended) or "nothing was under way")
    return 0


def opened(*words: str) -> SweepDir:
    """The sweep that one word names.

    Raises:
        UserError: more or less than one word, or no sweep there.
    """
    if len(words) != 1:
        raise UserError("which sweep? Give its directory, such as sweeps/lr.")
    sweep = SweepDir(Path(words[0]).resolve())
    sweep.settings()
    return sweep


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "submit": submit,
    "plan": plan,
    "status": status,
    "report": report,
    "extend": extend,
    "cancel": cancel,
    "advance": advance_,
}


def main(words: list[str]) -> int:
    """Run a command of sweeps; the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"sweep: no command '{name}'.{did_you_mean(name, COMMANDS)}\n{__doc__}")
    return COMMANDS[name](rest)
