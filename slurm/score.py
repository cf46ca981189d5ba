"""The scoring of two sets of images as a job: in the queue of a cluster, or here.

    mudi submit score A B cluster=NAME evaluate.inception.weights=FILE

The job is `python -m pipeline score A B`, with the resources of `cluster.evaluate`: its tasks share the features, and a
start that was cut leaves them to the next. It has a folder of its own beside the runs, with `score.json`, the ledger,
logs and the result, so that `status`, `logs`, `cancel` and `retry` know it as they know a run.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.load import listed
from pipeline.config.needs import missing
from pipeline.config.overrides import key_of
from pipeline.config.paths import run_directory
from pipeline.config.schema import Config
from pipeline.runtime.commit import ROOT
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import content_hash, read_json, write_json
from pipeline.runtime.parts import without_launcher
from pipeline.runtime.run_dir import RunDir
from slurm.access import check_folder
from slurm.graph import Job
from slurm.workflows import Launch, meant

SCORE = "score.json"  # what makes a folder that of a scoring
RESULT = "result.json"
FEATURES = ".features"  # beside the runs: of all scorings, so that a reference is computed once
_SETTINGS = ("evaluate", "cluster", "runs_dir", "name")
_DECIDES = ("samples", "data", "size", "settings")  # of a result: what it is of


WEIGHTS = "evaluate.inception.weights"


@dataclass(frozen=True)
class ScoreLaunch(Launch):
    """The job of a scoring. `result`: where it is written. `asked`: what the result is to be of."""

    result: Path = Path(RESULT)
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def sets(self) -> tuple[str, ...]:
        """Where the two sets of images lie."""
        return self.jobs[0].argv[2:4]

    def complete(self) -> dict[str, bool]:
        """Whether the result is there, of these images and settings."""
        try:
            found = read_json(self.result)
        except Incomplete:
            found = {}
        return dict.fromkeys((job.name for job in self.jobs), {k: found.get(k) for k in _DECIDES} == self.asked)


def launch_for_score(
    arguments: Sequence[str],
    *,
    size: int | None = None,
    result: Path | None = None,
    table: Path | None = None,
    cache: Path | None = None,
) -> ScoreLaunch:
    """The launch of `A B [key=value ...]`, whose folder is made.

    Args:
        size, result, table, cache: `--size`, `--json`, `--csv` and `--cache` of `mudi score`.
    Raises:
        UserError: for sets that are not there or cannot be read, unknown settings, weights that are not there.
    """
    if len(arguments) < 2 or any("=" in argument and not Path(argument).exists() for argument in arguments[:2]):
        raise UserError(f"submit score: found {' '.join(arguments)}, expected A B, two sets of images, then key=value.")
    a, b, said = *(str(Path(argument).resolve()) for argument in arguments[:2]), list(arguments[2:])
    if wrong := [argument for argument in said if key_of(argument).split(".")[0] not in _SETTINGS]:
        raise UserError(f"submit score: found {', '.join(wrong)}, expected settings of {', '.join(_SETTINGS)} alone.")
    cfg = _config("score", said)
    if problems := missing(cfg, ["evaluate"]):  # mistakes in settings come before a look at images
        raise UserError(listed(problems))
    metrics = [argument for argument in said if key_of(argument).startswith("evaluate.")]
    if (weights := cfg.evaluate.inception.weights) is not None:  # also of the profile, or of this environment
        metrics = [w for w in metrics if key_of(w) != WEIGHTS] + [f"{WEIGHTS}={weights.resolve()}"]
    sized = [] if size is None else [f"--size={size}"]
    given = {"--json": result, "--csv": table}
    outputs = [f"{option}={path.resolve()}" for option, path in given.items() if path is not None]
    asked = _checked(a, b, [*metrics, *sized, *outputs])
    name = f"score-{_short(a)}-{_short(b)}-{content_hash([asked, a, b])[:6]}"
    folder = run_directory(_config(name, said)).resolve()
    result = (result or folder / RESULT).resolve()
    options = [*sized, f"--json={result}", f"--cache={(cache or folder.parent / FEATURES).resolve()}"]
    options += [] if table is None else [f"--csv={table.resolve()}"]
    note = {"a": a, "b": b, "metrics": metrics, "options": options, "result": str(result), "asked": asked}
    if (folder / SCORE).is_file() and (known := read_json(folder / SCORE))["asked"] != asked:
        raise UserError(f"{folder} holds the scoring of {known['a']} and {known['b']}. Give another name: name=...")
    for place, setting in ((folder, "runs_dir"), (result.parent, "--json")):
        check_folder(place, setting)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SCORE, {**note, "overrides": said, "cwd": str(Path.cwd())})
    return launch_of_score(folder)


def launch_of_score(folder: Path) -> ScoreLaunch:
    """The launch of a folder that `launch_for_score` made."""
    folder = folder.resolve()
    note = read_json(folder / SCORE)
    overrides = [override for override in note["overrides"] if key_of(override) != "name"]
    cfg = _config(folder.name, [*overrides, f"runs_dir={folder.parent}"])
    cache = next(override.partition("=")[2] for override in note["options"] if override.startswith("--cache="))
    argv = ("pipeline", "score", note["a"], note["b"], *note["metrics"], *note["options"])
    # The job is called as the settings of its resources are.
    job = Job("evaluate", argv, cfg.cluster.evaluate, makes=(Path(cache),))
    jobs = [job]
    if job.resources.parts > 1:  # parts compute features; one more job puts them together
        one = job.resources.model_copy(update={"parts": 1})
        jobs = [Job("features", argv, job.resources, makes=job.makes)]
        jobs += [Job("evaluate", argv, one, after=("features",), makes=job.makes)]
    return ScoreLaunch(
        cfg,
        RunDir(folder),
        tuple(jobs),
        tuple(note["overrides"]),
        Path(note["cwd"]),
        result=Path(note["result"]),
        asked=note["asked"],
    )


def _config(name: str, overrides: Sequence[str]) -> Config:
    """The settings of a scoring, as those of a run whose data and model do not matter. `overrides` may say the name."""
    cfg = meant(["data=glyphs16", "model=unet_tiny", "evaluate.domain.enabled=false", f"name={name}", *overrides])
    return cfg.model_copy(update={"data_dir": cfg.runs_dir})


def _checked(a: str, b: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What the result is to be of: `mudi score --check` opens both sets. It has torch, and we have not.

    Raises:
        UserError: what it says.
    """
    argv = [sys.executable, "-m", "pipeline", "score", a, b, *overrides, "--check"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = without_launcher(os.environ) | {"PYTHONPATH": path}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        said = done.stderr.strip()
        raise UserError(said.rpartition("error: ")[2] if "Traceback" not in said else f"{' '.join(argv)}\n{said}")
    found = json.loads(done.stdout)
    return {name: found[name] for name in _DECIDES}


def _short(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "_", Path(path).name)[:24].strip("._") or "set"
