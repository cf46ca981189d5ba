"""The run directory: the interface between jobs. `train` writes it; sampling, evaluation, export and sweeps read it.

runs/<name>/
  config.yaml                   the resolved config, written once; of it train.duration alone may change later
  starts.jsonl                  one line for each start: commit, argv, hosts, world size, train.duration, speed
  metrics.jsonl                 every scalar, each step once; the source of truth
  tensorboard/                  a view of it
  checkpoints/step-000012000/   complete when it has a commit record
  samples/step-000012000/<protocol>/
  results/<step>-<protocol>.json
  profile/trace.json.gz         a timeline of some steps, where train.profile asked for one
  jobs/                         logs and records of jobs
  training.lock                 who trains it at the moment; empty where nobody does
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config.base import Settings
from pipeline.config.durations import needs_images, to_steps
from pipeline.config.load import CONFIG_FILE, config_from, run_named, to_yaml
from pipeline.config.load import FINISHED as FINISHED
from pipeline.config.overrides import override_for
from pipeline.config.paths import run_directory, training_shards
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json, read_lines, write_text
from pipeline.runtime.run_lock import trainer_of

COMMIT = "commit.json"  # written last into a checkpoint: without it there is no checkpoint
STATE = "state.json"  # in a checkpoint: its numbers
Step = int | Literal["best"] | None  # of a checkpoint; None: the newest
_STEP = re.compile(r"^step-(\d{9})$")
# What may differ between the config of a run and a later call on it: where jobs run, what memory and threads they have,
# what is recorded of how they run, and what is done with the result.
_MEMORY = (
    "train.micro_batch",
    "train.sharding",
    "train.activation_checkpointing",
    "latents.decode_batch",
    "latents.tile",
)
_HOST = ("train.async_save", "train.profile", "train.trackers", "train.workers")
_FREE = ("plugins", "cluster", "sample", "evaluate", "runs_dir", "data_dir", *_MEMORY, *_HOST)
DURATION = "train.duration"  # of a run it may change: `_go_on`
_PLACE = ("name", "runs_dir")  # a run's directory says them, and may have been copied or moved


def step_name(step: int) -> str:
    """`step-000012000`."""
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step that a directory name stands for; None where it is another name."""
    match = _STEP.match(name)
    return int(match[1]) if match else None


def parse_step(text: str | None) -> Step:
    """What stands after `--step`: a number, or "best"; None where the option is not given."""
    if text is None:
        return None
    if text != "best" and not text.isdecimal():
        raise UserError(f"--step: found '{text}', expected the number of a checkpoint's step, or best.")
    return "best" if text == "best" else int(text)


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Holds nothing and opens nothing."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / CONFIG_FILE

    @property
    def starts(self) -> Path:
        """One line for each start of training."""
        return self.path / "starts.jsonl"

    @property
    def metrics(self) -> Path:
        """Every scalar of training."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """The folder of evaluation results."""
        return self.path / "results"

    @property
    def jobs(self) -> Path:
        """The folder of job records and logs."""
        return self.path / "jobs"

    @property
    def profile(self) -> Path:
        """The newest timeline of training steps."""
        return self.path / "profile" / "trace.json.gz"

    @property
    def lock(self) -> Path:
        """Held by the one process that trains."""
        return self.path / "training.lock"

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint of `step`."""
        return self.checkpoints / step_name(step)

    def samples(self, step: int) -> Path:
        """The folder of the sample sets drawn from the checkpoint of `step`."""
        return self.path / "samples" / step_name(step)

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending. Whether each is undamaged is `pipeline.checkpoint`'s to say."""
        found = [(step_of(p.name), p) for p in self.checkpoints.glob("step-*")]
        return sorted(step for step, p in found if step is not None and (p / COMMIT).is_file())

    def is_used(self, step: int) -> bool:
        """Whether a finished sample set or a result is of the checkpoint of `step`."""
        return any(self.samples(step).glob("*/manifest.json")) or any(self.results.glob(f"{step:09d}-*.json"))

    def latest_step(self) -> int | None:
        """The newest of `steps()`."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step that was the best by the metric of `train.early_stop`, as the newest checkpoint has it."""
        latest = self.latest_step()
        state = {} if latest is None else read_json(self.checkpoint(latest) / STATE)
        return int(state["best_step"]) if state.get("best") is not None else None

    def chosen_step(self, step: Step) -> int | None:
        """The step that `sample.step` means; None where there is none yet."""
        return self.best_step() if step == "best" else self.latest_step() if step is None else step

    def finished(self) -> bool:
        """Whether training reached its last step and its checkpoint is committed."""
        return (self.checkpoints / FINISHED).is_file()


def create_run(cfg: Config, *, goes_on: bool = True) -> RunDir:
    """The run directory of a config, made if need be. Where the run has trained with another `train.duration`, it goes
    on to the new one; not so with goes_on=False, for a run that others share.

    Raises:
        UserError: where the directory was made with other settings; it lists every difference and touches nothing. A
            duration shorter than what is trained, or the run's training is under way, or ended by itself.
    """
    run = RunDir(run_directory(cfg))
    if run.config.is_file():
        goes_on = goes_on and run.latest_step() is not None
        _refuse_others(run, cfg, goes_on=goes_on)
        if goes_on:
            _go_on(run, cfg)
        return run
    if run.path.exists() and any(run.checkpoints.glob("step-*")):
        raise UserError(f"{run.path} has checkpoints but no {CONFIG_FILE}. Restore that file, or choose another name.")
    write_text(run.config, to_yaml(cfg))
    return run


def refuse_others(cfg: Config) -> None:
    """What `create_run` would refuse of a run that has trained, without touching it.

    Raises:
        UserError: where the run was made with other settings; it lists every difference.
    """
    run = RunDir(run_directory(cfg))
    if run.config.is_file() and run.latest_step() is not None:
        _refuse_others(run, cfg, goes_on=True)


def _refuse_others(run: RunDir, cfg: Config, *, goes_on: bool) -> None:
    found = [line for line in differences(run, cfg) if not (goes_on and line.startswith(f"{DURATION}: "))]
    named = f"Add name={cfg.name}-2 to the overrides that made it, for a run of its own"
    _refuse(run, found, named)


def grows(run: RunDir, cfg: Config) -> bool:
    """Whether a call gives a run that is there another `train.duration` than its config has."""
    return run.config.is_file() and config_from([str(run.path)]).train.duration != cfg.train.duration


def _go_on(run: RunDir, cfg: Config) -> None:
    """Take over another `train.duration` into the run's config, so that training goes on to it.

    All ranks of a job do so, and write the same. The mark of a finished training goes first: killed in between, the
    run still has its old duration, and is marked again by its next start. Each line of `starts.jsonl` says with which
    duration that start trained.
    """
    own = config_from([str(run.path)])
    if own.train.duration == cfg.train.duration:
        return
    wanted = f"{DURATION}: found {cfg.train.duration}, and {run.path} has {own.train.duration}"
    if (trainer := trainer_of(run.lock)) is not None:
        raise UserError(f"{wanted}, but {trainer} is training it. Wait until that has ended, or cancel it first.")
    done = run.latest_step() or 0
    if (total := _steps_of(cfg)) is not None and total < done:
        raise UserError(f"{wanted}, but it has trained {done} steps already: expected at least as many.")
    starts = read_lines(run.starts)
    if run.finished() and starts and done < starts[-1]["plan"]["total_steps"]:
        raise UserError(f"{wanted}, but train.early_stop ended it at step {done}: it would train no further.")
    (run.checkpoints / FINISHED).unlink(missing_ok=True)
    longer = own.train.model_copy(update={"duration": cfg.train.duration})
    write_text(run.config, to_yaml(own.model_copy(update={"train": longer})))


def _steps_of(cfg: Config) -> int | None:
    """`train.duration` in steps; None where it is in epochs of data that are not here."""
    manifest, images = training_shards(cfg) / "train" / "manifest.json", None
    if needs_images(cfg.train.duration):
        if not manifest.is_file():
            return None
        images = int(read_json(manifest)["count"])
    return to_steps(cfg.train.duration, batch=cfg.train.global_batch, train_images=images)


def existing_run(overrides: Sequence[str]) -> tuple[RunDir, Config]:
    """The run that a command line is about, and its config with the overrides of this call.

    Args:
        overrides: RUN_DIR, or those that the run was made with, then those of this call.
    Raises:
        UserError: where there is no such run, or an override changes what training made; it lists every difference.
    """
    cfg = config_from(overrides)
    run = RunDir(run_named(overrides) or run_directory(cfg))
    if not run.config.is_file():
        raise UserError(f"{run.path} is no run: it has no {CONFIG_FILE}. Train it first: mudi train ...")
    others = f"Of a run, {', '.join(_FREE)} alone may be said differently, and {DURATION} by `train` and `submit`"
    _refuse(run, differences(run, cfg), f"{others}. Give a new run another name")
    return run, cfg


def _refuse(run: RunDir, found: Sequence[str], otherwise: str) -> None:
    if found:
        listed = "\n".join(f"  - {difference}" for difference in found)
        raise UserError(
            f"{run.path} was made with other settings:\n{listed}\n"
            f"{otherwise}, or take the setting back to continue that run."
        )


def overrides_for(run: RunDir, cfg: Config) -> list[str]:
    """What a call says differently from the run's own config about sampling, evaluation and the cluster, as overrides.

    A job that is given the run directory and these overrides works with `cfg`.
    """
    before, after = _flat(config_from([str(run.path)])), _flat(cfg)
    return [
        override_for(key, value)
        for key, value in sorted(after.items())
        if _free(key) and key not in _PLACE and (key not in before or before[key] != value)
    ]


def open_run(path: Path) -> tuple[RunDir, Config]:
    """An existing run directory and its config."""
    return RunDir(path), config_from([str(path)])


def differences(run: RunDir, cfg: Config) -> list[str]:
    """In what a config differs from the run's own, of all that decides what training makes; a line for each."""
    if not run.config.is_file():
        return []
    before, after = _flat(config_from([str(run.path)])), _flat(cfg)
    return [
        f"{key}: the run has {before.get(key)!r}, this call has {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _free(key) and key not in _PLACE
    ]


def _free(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _FREE)


def _flat(cfg: Config) -> dict[str, object]:
    """Dotted name -> JSON-like value of every setting. A mapping that is itself a setting is one value."""
    rows: dict[str, object] = {}

    def walk(prefix: str, settings: Settings, values: dict[str, object]) -> None:
        for key, value in values.items():
            inner = getattr(settings, key)
            if isinstance(inner, Settings) and isinstance(value, dict):
                walk(f"{prefix}{key}.", inner, value)
            else:
                rows[f"{prefix}{key}"] = value

    walk("", cfg, cfg.model_dump(mode="json"))
    return rows
