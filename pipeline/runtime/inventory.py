"""What there is: `mudi list runs|checkpoints|data|experiments|models|settings`. Torch-free.

A path stands alone at the start of a line, so that it can be copied; what there is to say of it stands below.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import listing
from pipeline.config.load import CONFIG_FILE, config_from
from pipeline.config.paths import data_directory, is_data_directory
from pipeline.runtime.errors import Incomplete, UserError, did_you_mean, meant, nearest
from pipeline.runtime.files import lines_backwards, read_json, read_lines
from pipeline.runtime.run_dir import RunDir

RUNS, DATA = Path("runs"), Path("data")  # where they lie unless a config says otherwise


def not_there(path: Path) -> UserError:
    """That a path does not exist, with the one that is probably meant."""
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = [str(path.parent / name) for name in filter(None, [nearest(path.name, beside)])]
    near = [str(RUNS / path)] if (RUNS / path).exists() else near
    return UserError(f"{path} does not exist.{meant(near) if near else ''}")


def main(arguments: list[str]) -> None:
    """List what the first argument names."""
    kinds = {
        "runs": _runs,
        "checkpoints": _checkpoints,
        "data": _data,
        "experiments": listing.experiments,
        "models": listing.models,
        "settings": listing.settings,
    }
    if arguments[0] not in kinds:
        raise UserError(
            f"list: found '{arguments[0]}', expected {', '.join(kinds)}.{did_you_mean(arguments[0], kinds)}"
        )
    kinds[arguments[0]](arguments[1:])


def _runs(arguments: list[str]) -> None:
    """Every run of some folders: how far, how large, when it changed."""
    for folder in _folders(arguments, RUNS):
        found = (
            [folder] if (folder / CONFIG_FILE).is_file() else sorted(p.parent for p in folder.glob(f"*/{CONFIG_FILE}"))
        )
        for path in found:
            run = RunDir(path)
            starts, step = read_lines(run.starts), run.latest_step()
            total = starts[-1].get("plan", {}).get("total_steps") if starts else None
            how_far = "not trained" if step is None else f"step {step}" + (f" of {total}" if total else "")
            sets = len(list(path.glob("samples/step-*/*/manifest.json")))
            facts = [how_far, *(["finished"] if run.finished() else []), f"{len(run.steps())} checkpoints"]
            facts += [f"{sets} sample sets"] if sets else []
            _say(path, [*facts, size_in_words(size_of(path)), _date(path / "checkpoints", path)])
        if not found:
            print(f"{folder} has no run")


def _checkpoints(arguments: list[str]) -> None:
    """The checkpoints of a run, oldest first, with the validation loss at that step or the last one before it."""
    if len(arguments) != 1:
        raise UserError("list checkpoints: expected one run directory, such as runs/glyphs16.")
    run = RunDir(Path(arguments[0]))
    if not run.config.is_file():
        raise UserError(f"{run.path} is no run: it has no {CONFIG_FILE}.")
    losses = dict(_losses(run))
    best = run.best_step()
    for step in run.steps():
        path = run.checkpoint(step)
        measured = max((s for s in losses if s <= step), default=None)
        at = "" if measured in (None, step) else f" (at step {measured})"
        loss = "no validation loss" if measured is None else f"validation loss {losses[measured]:.4g}{at}"
        marks = [word for word, which in (("best", best), ("newest", run.latest_step())) if which == step]
        _say(path, [loss, size_in_words(size_of(path)), _date(path), *marks])
    if not run.steps():
        print(f"{run.path} has no checkpoint")


def _losses(run: RunDir) -> Iterator[tuple[int, float]]:
    for _, line in lines_backwards(run.metrics):
        if b'"valid/loss"' in line:
            row = json.loads(line)
            yield int(row["step"]), float(row["valid/loss"])


def _data(arguments: list[str]) -> None:
    """Prepared data: images of each split, size, and the runs in ./runs that use it."""
    users = data_users(RUNS)
    for folder in _folders(arguments, DATA):
        found = sorted(filter(is_data_directory, folder.glob("*")))
        for path in found:
            counts = []
            for split in sorted(path.glob("shards/*/manifest.json")):
                counts.append(f"{split.parent.name} {read_json(split)['count']}")
            used = [run.name for run in users.get(path.resolve(), [])]
            said = f"used by {', '.join(used)}" if used else f"no run in {RUNS} uses it"
            _say(path, [", ".join(counts) or "unfinished", size_in_words(size_of(path)), said])
        if not found:
            print(f"{folder} has no prepared data")


def data_users(folder: Path) -> dict[Path, list[Path]]:
    """The runs of a folder by the directory of data that they use. A run that cannot be read counts for none."""
    found: dict[Path, list[Path]] = {}
    for config in sorted(folder.glob(f"*/{CONFIG_FILE}")):
        try:
            found.setdefault(data_directory(config_from([str(config.parent)])).resolve(), []).append(config.parent)
        except (UserError, Incomplete):
            continue
    return found


def _folders(arguments: list[str], otherwise: Path) -> list[Path]:
    folders = [Path(argument) for argument in arguments] or [otherwise]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a directory. Give the folder that they lie in.")
    return folders


def _say(path: Path, facts: list[str]) -> None:
    print(path)
    print(listing.wrapped("    ", "; ".join(facts)))


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a directory. Links count for nothing."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(p.lstat().st_size for p in files if p.is_file() and not p.is_symlink())


def size_in_words(size: float) -> str:
    """1.5 GiB, 20.0 MiB, 3.2 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _date(*paths: Path) -> str:
    place = next(p for p in paths if p.exists())
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(place.stat().st_mtime))
