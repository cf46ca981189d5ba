"""The directory of a sweep: the only thing that its jobs share.

sweeps/<name>/
  sweep.yaml              the resolved settings
  study.journal           Optuna's record of the trials: which exist, what came of them
  trials/0007-s0/         a run directory for each trial and seed (of a sweep over one run: what it made of that run)
  jobs/batch-0003/        what was submitted together: its runs, logs and attempts
  jobs/advance/           logs of the tiny jobs that go on with the search
  tensorboard/ report.md trials.csv plots
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.explain import explain
from pipeline.config.load import CONFIG_ROOT
from pipeline.config.overrides import parse
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import write_text
from pipeline.runtime.run_dir import RunDir
from slurm.locks import held
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import dimension, is_sweep, word_of
from slurm.writable import check_folder

SETTINGS = "sweep.yaml"
LOCK_SECONDS = 600.0  # an advance takes seconds; whoever holds the lock and dies gives it back
# Words that say where a sweep's runs stand, not what is varied.
_OWN = ("name", "run", "sweep")


@dataclass(frozen=True)
class SweepDir:
    """Paths of a sweep. Holds nothing and opens nothing."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """The resolved settings."""
        return self.path / SETTINGS

    @property
    def journal(self) -> Path:
        """Optuna's storage."""
        return self.path / "study.journal"

    @property
    def trials(self) -> Path:
        """The folder of the runs."""
        return self.path / "trials"

    @property
    def jobs(self) -> Path:
        """The folder of batches and their records."""
        return self.path / "jobs"

    @property
    def tensorboard(self) -> Path:
        """The sweep's page."""
        return self.path / "tensorboard"

    @property
    def cancelled(self) -> Path:
        """A file that is there while the sweep is cancelled."""
        return self.path / "cancelled.json"

    @property
    def finished(self) -> Path:
        """A file that is there when every trial has ended and the report is written."""
        return self.path / "finished.json"

    @property
    def ledger(self) -> RunDir:
        """Where the advances of the sweep are noted down, in the form of a run's ledger."""
        return RunDir(self.path)

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

    def lock(self, *, seconds: float = LOCK_SECONDS, of: str = "") -> AbstractContextManager[None]:
        """One at a time, of all jobs and people. Raises `UserError` where it cannot be had.

        Args:
            of: what is locked; "": the trials.
        """
        refusal = f"{self.path} is being worked on for {seconds:.0f} s. Try again."
        return held(self.path / f".lock{of}", refusal=refusal, seconds=seconds)


def validated(values: Any) -> SweepSettings:
    """Plain values as settings; all problems at once."""
    try:
        return SweepSettings.model_validate(values)
    except ValidationError as error:
        problems = [f"sweep.{p}" for p in explain(error, SweepSettings)]
        raise UserError(problems[0] if len(problems) == 1 else "\n".join(f"  - {p}" for p in problems)) from error


def settings_from(words: Sequence[str]) -> SweepSettings:
    """The sweep that a command line means: `sweep=NAME`, `sweep.key=value`, the experiment's words, what is varied.

    A word for a key that the file varies takes its place: with one value, the key is not varied any more.
    """
    values = _named([w for w in words if w.startswith("sweep=")])
    space = {k: _grammar(v) for k, v in values.get("space", {}).items()}
    base = {w.partition("=")[0].lstrip("+"): w for w in values.get("base", [])}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not key=value.")
        if key.startswith("sweep."):
            _put(values, key.split(".")[1:], parse(word.removeprefix("sweep."), SweepSettings).value)
        elif key in _OWN:
            values |= {} if key == "sweep" else {key: value}
        elif is_sweep(word):
            space[key.lstrip("+")] = value
            base.pop(key.lstrip("+"), None)
        else:
            space.pop(key.lstrip("+"), None)
            base[key.lstrip("+")] = word
    values |= {"space": space, "base": list(base.values())}
    if any(not dimension(k, v).finite for k, v in space.items()):
        values["strategy"] = {"kind": "tpe"} | values.get("strategy", {})
    return validated(values)


def _named(words: Sequence[str]) -> dict[str, Any]:
    """The file that `sweep=NAME` means, or an empty sweep."""
    known = sorted(p.stem for p in (CONFIG_ROOT / "sweep").glob("*.yaml"))
    for word in words:
        name = word.partition("=")[2]
        if name not in known:
            raise UserError(f"sweep: found '{name}', expected one of {', '.join(known)}.{did_you_mean(name, known)}")
        values = yaml.safe_load((CONFIG_ROOT / "sweep" / f"{name}.yaml").read_text())
        return {"name": name} | dict(values)
    return {}


def _grammar(value: Any) -> str:
    """A value of `space:` in a file: grammar as text, or a YAML list of values."""
    if isinstance(value, list):
        return ",".join(word_of(v) for v in value)
    return value if isinstance(value, str) else word_of(value)


def _put(values: dict[str, Any], place: Sequence[str], value: Any) -> None:
    for part in place[:-1]:
        values = values.setdefault(part, {})
    values[place[-1]] = value
