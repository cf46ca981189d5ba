"""Words of a command line -> a checked Config. Hydra composes the groups of `configs/`; pydantic checks the result.

Every problem is collected and reported at once, with the nearest known name beside each that is unknown.
"""

import copy
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from pipeline.config.autoencoder import Facts, facts_in, facts_of
from pipeline.config.base import Settings
from pipeline.config.check import check
from pipeline.config.explain import explain
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError, did_you_mean

CONFIG_ROOT = Path(__file__).resolve().parents[2] / "configs"
CONFIG_FILE = "config.yaml"  # the resolved config inside a run directory
_PLAIN = re.compile(r"[A-Za-z_][\w.]*=")  # a word that sets one key
# The same in C takes a sixth of the time.
_Loader, _Dumper = (getattr(yaml, f"C{name}", getattr(yaml, name)) for name in ("SafeLoader", "SafeDumper"))
_GIVEN = ("name", "runs_dir", "data_dir", "data", "experiment", "latents")  # of an autoencoder: not to be overridden

logging.getLogger("hydra").setLevel(logging.WARNING)


def config_from(words: Sequence[str]) -> Config:
    """The config that a command line means.

    Args:
        words: either a run directory (its `config.yaml`) or a group choice such as `experiment=glyphs16`, followed by
            any number of `key=value` overrides.
    Raises:
        UserError: naming every problem found.
    """
    directory = run_named(words)
    return validated(_compose(words)) if directory is None else _from_run(directory, words[1:])


def run_named(words: Sequence[str]) -> Path | None:
    """The run directory that a command line begins with; None where it begins with key=value, or is empty.

    A directory's name may hold an equals sign: what has a slash before it is no key.
    """
    key, equals, _ = words[0].partition("=") if words else ("", "=", "")
    return Path(words[0]) if not equals or "/" in key else None


def validated(values: Any) -> Config:
    """A plain mapping as a Config, checked field by field and then across fields."""
    try:
        cfg = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_listed(explain(error, Config))) from error
    problems = check(cfg, _autoencoder_facts(cfg))
    if problems:
        raise UserError(_listed(problems))
    return cfg


def autoencoder_config(cfg: Config) -> Config:
    """The config of the run that trains the autoencoder of `cfg.latents`: its experiment on the data of `cfg`, judged
    by the same networks, which one stage prepares.

    Raises:
        UserError: where no experiment is named, or its settings and the overrides have problems.
    """
    latents = cfg.latents
    if latents is None or latents.experiment is None:
        raise UserError("latents.experiment: found null, expected the experiment that trains the autoencoder.")
    fixed = [w for w in latents.overrides if w.lstrip("+").partition("=")[0].split(".")[0] in _GIVEN]
    if fixed:
        raise UserError(
            f"latents.overrides: found {', '.join(fixed)}, but name and place of the autoencoder follow from "
            "latents.autoencoder, and its data are those of this experiment. Leave them out."
        )
    known = groups()
    choices = [word for word in latents.overrides if word.partition("=")[0] in known]
    taken = {name: getattr(cfg, name) for name in ("data", "data_dir", "seed", "cluster", "evaluate")}
    values = {
        **_compose([f"experiment={latents.experiment}", *choices]),
        **{k: v.model_dump(mode="json") if isinstance(v, Settings) else v for k, v in taken.items()},
        "name": latents.autoencoder.name,
        "runs_dir": str(latents.autoencoder.parent),
        "data_dir": str(cfg.data_dir),
    }
    words = [word for word in latents.overrides if word not in choices]
    try:
        return validated(_overridden(values, words))
    except (UserError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"latents.experiment={latents.experiment}: {error}") from error


def _autoencoder_facts(cfg: Config) -> Facts | None:
    """Of the autoencoder at its path, or of the one that an experiment will put there."""
    if cfg.latents is None:
        return None
    found = facts_in(cfg.latents.autoencoder)
    return facts_of(autoencoder_config(cfg)) if found is None and cfg.latents.experiment else found


def to_yaml(cfg: Config) -> str:
    """The resolved config as YAML, fields in the order of the schema."""
    return str(yaml.dump(cfg.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _from_run(directory: Path, overrides: Sequence[str]) -> Config:
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"'{directory}' is neither a run directory (it has no {CONFIG_FILE}) nor key=value. "
            "Give a run directory, or a choice such as experiment=glyphs16 followed by key=value overrides."
        )
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
        return validated(_overridden(values, overrides) if overrides else values)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"Cannot apply {list(overrides)} to {path}: {error}") from error


def _overridden(values: Any, words: Sequence[str]) -> Any:
    """A plain mapping with `key=value` words put in."""
    changed = OmegaConf.create(values)
    for word in words:
        key, _, value = word.partition("=")
        OmegaConf.update(changed, key.lstrip("+"), yaml.safe_load(value), force_add=True)
    return OmegaConf.to_container(changed, resolve=True)


def groups() -> dict[str, list[str]]:
    """The choices of each config group, from the files of `configs/`."""
    return {
        folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
        for folder in sorted(CONFIG_ROOT.iterdir())
        if folder.is_dir()
    }


def _compose(words: Sequence[str]) -> Any:
    _check_choices(words)
    try:
        return _without_missing(OmegaConf.to_container(composed(words), resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"Cannot compose {' '.join(words)}: {str(error).splitlines()[0]}") from error


def composed(words: Sequence[str]) -> DictConfig:
    """What Hydra makes of `group=choice` and `key=value`: groups are composed once, keys are put in each time."""
    known = groups()
    choices = [w for w in words if w.partition("=")[0] in known]
    settings = [w for w in words if w not in choices]
    if not all(_PLAIN.match(word) for word in settings):  # +key, ~key, key@package: for Hydra to apply
        choices, settings = [*words], []
    config = copy.deepcopy(_composed(tuple(choices)))
    for word in settings:
        _put(config, word)
    return config


@lru_cache(maxsize=64)
def _composed(words: tuple[str, ...]) -> DictConfig:
    """What Hydra composes; not to be changed. It takes 70 ms, and the trials of a sweep differ by what is put in."""
    known = groups()
    # `++` sets a key whether it stands in the YAML or not: that a key exists is the schema's to say, for all at once.
    overrides = [w if w.partition("=")[0] in known or w[:1] in "+~" else f"++{w}" for w in map(_quoted, words)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIG_ROOT), version_base="1.3"):
        return compose("config", overrides=overrides)


def _put(config: DictConfig, word: str) -> None:
    """Put `key=value` into a composed config, as Hydra does with `++key=value`."""
    override = _parsed(f"++{_quoted(word)}")
    if override.is_sweep_override():
        raise HydraException(f"'{word}' has several values, which only a sweep can try: python -m slurm sweep submit")
    OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)


@lru_cache(maxsize=1024)
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _quoted(word: str) -> str:
    """A value with an equals sign in it, such as a path, in the quotes that Hydra wants around it."""
    key, _, value = word.partition("=")
    if "=" not in value or value[0] in "'\"[{":
        return word
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _without_missing(value: Any) -> Any:
    """Leave out what a config file marks as `???`, so that it is reported as missing like any other field."""
    if isinstance(value, dict):
        return {k: _without_missing(v) for k, v in value.items() if v != "???"}
    return value


def _check_choices(words: Sequence[str]) -> None:
    known, problems = groups(), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            problems.append(f"'{word}' is not key=value.")
        elif key in known and value not in known[key]:
            problems.append(
                f"{key}: found '{value}', expected one of {', '.join(known[key])}.{did_you_mean(value, known[key])}"
            )
    if problems:
        raise UserError(_listed(problems))


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems in the settings:\n" + "\n".join(f"  - {p}" for p in problems)
