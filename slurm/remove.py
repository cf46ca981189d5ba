"""`python -m slurm rm`: remove runs, scorings, sweeps and prepared data, unless something runs there or needs them."""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config.load import CONFIG_FILE, listed
from pipeline.config.paths import data_directory, is_data_directory
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import temporary_name
from pipeline.runtime.inventory import DATA, not_there, size_in_words, size_of
from pipeline.runtime.run_dir import RunDir
from pipeline.runtime.run_lock import only_trainer
from slurm.ledger import RUNS, as_submitted, launches, states_of
from slurm.score import SCORE, ScoreLaunch
from slurm.sweep.settings import SETTINGS, SweepDir
from slurm.sweep.submit import shared_launches
from slurm.sweep.submit import states_of as trials_of
from slurm.workflows import Launch

SWEEPS = Path("sweeps")


def main(
    arguments: Sequence[str], *, yes: bool = False, unused: bool = False, runs: Sequence[Path] = (), data: Path = DATA
) -> int:
    """Remove runs, scorings, sweeps and directories of data; with `unused`, all data below `data` that no run uses.

    Raises:
        UserError: before anything is removed, with every reason why something has to stay.
    """
    if bool(arguments) == unused:
        raise UserError("rm: give directories of runs, scorings, sweeps or prepared data, or --unused alone for data.")
    paths = [Path(argument) for argument in arguments]
    for path in paths:
        if not path.exists():
            raise not_there(path)
        if not _has_jobs(path) and not _is_sweep(path) and not is_data_directory(path):
            raise UserError(
                f"{path} is neither a run (with {CONFIG_FILE}) nor a scoring ({SCORE}) nor a sweep ({SETTINGS}) nor "
                "prepared data (with shards, or named NAME-HASH with nothing but what preparing makes)."
            )
    known = _known([*runs, *(path.resolve().parent for path in paths)])
    if unused:
        used = {data_directory(launch.cfg).resolve() for launch in known}
        paths = [p for p in sorted(data.glob("*")) if is_data_directory(p) and p.resolve() not in used]
        paths = [p for p in paths if not any(_scores(launch, p.resolve()) for launch in known)]
        looked = ", ".join(sorted({str(launch.run.path.parent) for launch in known})) or "none found"
        print(f"runs were looked for in: {looked}")
    others = [one for one in known if not any(one.run.path.is_relative_to(path.resolve()) for path in paths)]
    if problems := [problem for path in paths for problem in _needed(path.resolve(), known, others)]:
        raise UserError(listed(problems, "reasons to remove nothing"))
    return _remove(paths, yes=yes)


def _has_jobs(path: Path) -> bool:
    return any((path / mark).is_file() for mark in (CONFIG_FILE, SCORE))


def _is_sweep(path: Path) -> bool:
    return (path / SETTINGS).is_file()


def _known(folders: Sequence[Path]) -> list[Launch]:
    """Every run and scoring of these folders, of ./runs and of the sweeps in ./sweeps.

    Raises:
        UserError: where one cannot be read: it may need what is to be removed.
    """
    places = {place.resolve() for place in (*folders, RUNS, *SWEEPS.glob("*/trials"), *SWEEPS.glob("*/shared"))}
    paths = sorted(path for place in places for path in place.glob("*") if _has_jobs(path))
    found, unread = launches(paths) if paths else ([], [])
    if unread:
        raise UserError("A run that cannot be read may need what is to be removed: " + listed(unread, "such runs"))
    return found


def _needed(path: Path, known: Sequence[Launch], others: Sequence[Launch]) -> Iterator[str]:
    """Why a directory has to stay, a sentence each."""
    yield from (f"{path}: {other.run.path} scores it." for other in others if _scores(other, path))
    if _has_jobs(path) or _is_sweep(path):
        yield from _under_way(path)
        sweep = next(filter(_is_sweep, path.parents), None)
        if sweep is not None:
            yield f"{path} is part of the sweep {sweep}, which counts its runs."
        for settings in sorted(SWEEPS.glob(f"*/{SETTINGS}")):
            run = SweepDir(settings.parent).settings().run
            if run is not None and run.resolve().is_relative_to(path):
                yield f"{path}: the sweep {settings.parent} samples its checkpoint."
        for other in others:
            yield from (f"{path}: {other.run.path} needs it as {what}." for what in _uses(other, path))
        return
    for launch in known:
        if data_directory(launch.cfg).resolve() == path and launch in others:
            yield f"{path}: {launch.run.path} uses it."


def _under_way(path: Path) -> Iterator[str]:
    if _is_sweep(path):
        sweep = SweepDir(path)
        settings = sweep.settings()
        trials, shared = trials_of(sweep, settings)[0], states_of(shared_launches(sweep, settings))
        runs = [*trials.values(), *(state for states in shared for state in states.values())]
        if busy := sum(state.active for state in runs):
            yield f"{path}: under way: {busy} of its jobs. Cancel it first: mudi sweep cancel {path}"
        return
    (states,) = states_of([as_submitted(path)])
    if jobs := [f"{job} ({state.status})" for job, state in states.items() if state.active]:
        yield f"{path}: under way: {', '.join(jobs)}. Cancel it first: mudi cancel {path}"


def _uses(launch: Launch, path: Path) -> Iterator[str]:
    """What a run uses another one as."""
    cfg: Config = launch.cfg
    if cfg.latents is not None and cfg.latents.autoencoder.resolve().is_relative_to(path):
        yield "the first stage of its latents (latents.autoencoder)"
    start = cfg.train.start_from
    if start is not None and (launch.cwd / start).resolve().is_relative_to(path) and not launch.run.steps():
        yield "the weights that its training begins with (train.start_from)"
    guide = cfg.sample.sampler.guidance.guide_model
    if guide is not None and (launch.cwd / guide).resolve().is_relative_to(path):
        yield "the guide model of its guidance (sample.sampler.guidance.guide_model)"


def _scores(launch: Launch, path: Path) -> bool:
    """Whether a scoring that is under way reads images there."""
    if not isinstance(launch, ScoreLaunch) or not any(Path(one).is_relative_to(path) for one in launch.sets):
        return False
    (states,) = states_of([launch])
    return any(state.active for state in states.values())


def _remove(paths: Sequence[Path], *, yes: bool) -> int:
    sizes = {path: size_of(path) for path in paths}
    for path, size in sizes.items():
        print(f"{path}\n    {size_in_words(size)}")
    if not paths:
        print("nothing to remove")
        return 0
    if not yes and not _agreed(f"Remove {len(paths)}, {size_in_words(sum(sizes.values()))}? [y/N] "):
        print("nothing was removed")
        return 1
    for path in paths:
        # A killed removal leaves a name that no command takes for a run.
        aside = temporary_name(path.resolve())
        is_run = (path / CONFIG_FILE).is_file()
        with only_trainer(RunDir(path).lock) if is_run else contextlib.nullcontext():
            path.resolve().rename(aside)
        shutil.rmtree(aside)
        print(f"removed {path}")
    return 0


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("rm: nobody can be asked here. Say --yes to remove what is listed above.")
    return input(question).strip().lower() in ("y", "yes")
