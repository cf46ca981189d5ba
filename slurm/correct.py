"""Other settings for a run that holds nothing yet. Once there is a checkpoint or a result, they stay as they are."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.config.load import CONFIG_FILE, to_yaml
from pipeline.config.paths import run_directory
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_text
from pipeline.runtime.run_dir import RunDir, differences
from slurm.adopt import locked
from slurm.status import as_submitted, states_of
from slurm.workflows import trained_autoencoder
from slurm.writable import check_folder

EARLIER = "earlier"  # a folder of what a run's starts with other settings left: curves, the settings themselves


def correct(cfg: Config) -> list[str]:
    """Give the run of `cfg`, and the autoencoder that its graph trains, these settings, where they were made with
    others and hold no checkpoint and no result. Returns a line for each that has changed.

    Where one of them does, or where another run is to be trained on that autoencoder's latents, nothing is changed.

    Raises:
        UserError: where jobs of the run are under way with its other settings.
    """
    run, own = RunDir(run_directory(cfg).resolve()), trained_autoencoder(cfg)
    wanted = {run: cfg} if own is None else {RunDir(run_directory(own).resolve()): own, run: cfg}
    changed = {r: found for r, c in wanted.items() if (found := differences(r, c))}
    if not changed or any(_holds_something(r) or (r != run and _trained_on(r, but=run)) for r in changed):
        return []
    for r in changed:
        check_folder(r.path, "runs_dir")
    _refuse_under_way([r for r in wanted if r.config.is_file()])
    return [
        f"{r.path}: nothing is trained yet, so it takes the new settings: {'; '.join(found)} "
        f"(what was there: {_replaced(r, wanted[r])})"
        for r, found in changed.items()
    ]


def _holds_something(run: RunDir) -> bool:
    """Whether a run holds anything that its settings explain."""
    return any(run.checkpoints.glob("step-*")) or any(run.results.glob("*.json"))


def _trained_on(autoencoder: RunDir, *, but: RunDir) -> bool:
    """Whether a run beside these two takes its latents from this autoencoder.

    Raises:
        UserError: naming a config that cannot be read, whose run may be one.
    """
    for path in sorted({p for at in {autoencoder.path.parent, but.path.parent} for p in at.glob(f"*/{CONFIG_FILE}")}):
        latents = _values_of(path).get("latents")
        if path.parent != but.path and latents and Path(latents["autoencoder"]).resolve() == autoencoder.path:
            return True
    return False


def _values_of(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: found '{values}', expected settings. Restore the file, or remove that directory.")
    return values


def _refuse_under_way(runs: list[RunDir]) -> None:
    found = [as_submitted(run.path) for run in runs]
    for launch, states in zip(found, states_of(found), strict=True):
        if busy := [f"{name} ({', '.join(state.ids)})" for name, state in states.items() if state.active]:
            raise UserError(
                f"{launch.run.path} is under way with other settings: {', '.join(busy)}. "
                f"To change them, cancel it first: python -m slurm cancel {launch.run.path}"
            )


def _replaced(run: RunDir, cfg: Config) -> Path:
    """Put everything but the jobs' records aside; where it is now."""
    with locked(run):
        aside = run.path / EARLIER
        place = aside / str(len(list(aside.glob("*"))) + 1)
        place.mkdir(parents=True)
        for path in run.path.iterdir():
            if path not in (run.jobs, aside):
                path.rename(place / path.name)
        write_text(run.config, to_yaml(cfg))
    return place
