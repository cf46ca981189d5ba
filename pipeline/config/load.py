"""Overrides of a command line -> a checked Config. Hydra composes the groups of `configs/`; pydantic checks the result.

Every problem is collected and reported at once, with the nearest known name beside each that is unknown.
"""

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from pipeline.config.autoencoder import Facts, facts_in, facts_of
from pipeline.config.base import Settings
from pipeline.config.check import check
from pipeline.config.explain import explain
from pipeline.config.overrides import key_of, literal, put
from pipeline.config.registry import import_plugins
from pipeline.config.schema import Config
from pipeline.config.weights import register
from pipeline.runtime.errors import UserError, did_you_mean, nearest

CONFIG_ROOT = Path(__file__).resolve().parents[2] / "configs"
CONFIG_FILE = "config.yaml"  # the resolved config inside a run directory
FINISHED = "finished.json"  # in its checkpoints/, written when the last step's checkpoint is committed
# The same in C takes a sixth of the time.
_Loader, _Dumper = (getattr(yaml, f"C{name}", getattr(yaml, name)) for name in ("SafeLoader", "SafeDumper"))
_FIRST = "Give a run directory, or a choice such as experiment=glyphs16 followed by key=value overrides."
_LISTED = ("experiment", "model")  # groups that `mudi list` shows
_GIVEN = ("name", "runs_dir", "data_dir", "data", "experiment", "latents")  # of an autoencoder: not to be overridden

logging.getLogger("hydra").setLevel(logging.WARNING)
register()


def config_from(overrides: Sequence[str], *, given: Mapping[str, Any] | None = None) -> Config:
    """The config that a command line means.

    Args:
        overrides: `key=value`, any number. First stands a run directory (its `config.yaml`) or a group choice such
            as `experiment=glyphs16`.
        given: whole groups of settings that replace those of the experiment; overrides are put into them.
    Raises:
        UserError: naming every problem found.
    """
    directory = run_named(overrides)
    try:
        if directory is None:
            return validated(_compose(overrides, given))
        stored, overrides = _stored(directory), overrides[1:]
    except (HydraException, OmegaConfBaseException) as error:
        raise _cannot_apply(overrides, error) from error
    trained = (directory / "checkpoints" / FINISHED).is_file()
    return config_of({**stored, **given} if given else stored, overrides, trained=trained)


def config_of(values: Mapping[str, Any], overrides: Sequence[str], *, trained: bool = False) -> Config:
    """The config of settings that are all said, with overrides put in. `trained`: see `check`."""
    try:
        return validated(_changed(values, overrides) if overrides else values, trained=trained)
    except (HydraException, OmegaConfBaseException) as error:
        raise _cannot_apply(overrides, error) from error


def _cannot_apply(overrides: Sequence[str], error: Exception) -> UserError:
    return UserError(f"Cannot apply {' '.join(overrides)}: {str(error).splitlines()[0]}")


def run_named(overrides: Sequence[str]) -> Path | None:
    """The run directory that a command line begins with; None where it begins with key=value, or is empty.

    A directory's name may hold an equals sign: what has a slash before it is no key.
    """
    key, equals, _ = overrides[0].partition("=") if overrides else ("", "=", "")
    return Path(overrides[0]) if not equals or "/" in key else None


def validated(values: Any, *, trained: bool = False) -> Config:
    """A plain mapping as a Config, checked field by field and then across fields. `trained`: see `check`."""
    if isinstance(values, dict):
        import_plugins(values.get("plugins", ()))
    try:
        cfg = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(listed(explain(error, Config))) from error
    problems = check(cfg, _autoencoder_facts(cfg), trained=trained)
    if problems:
        raise UserError(listed(problems))
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
    fixed = [override for override in latents.overrides if key_of(override).split(".")[0] in _GIVEN]
    if fixed:
        raise UserError(
            f"latents.overrides: found {', '.join(fixed)}, but name and place of the autoencoder follow from "
            "latents.autoencoder, and its data are those of this experiment. Leave them out."
        )
    choices, overrides = _divided(latents.overrides)
    taken = {name: getattr(cfg, name) for name in ("data", "data_dir", "seed", "cluster", "evaluate")}
    chosen = _compose([f"experiment={latents.experiment}", *choices])
    values = {
        **chosen,
        **{k: v.model_dump(mode="json") if isinstance(v, Settings) else v for k, v in taken.items()},
        "name": latents.autoencoder.name,
        "runs_dir": str(latents.autoencoder.parent),
        "data_dir": str(cfg.data_dir),
        "plugins": list(dict.fromkeys([*chosen.get("plugins", ()), *cfg.plugins])),
    }
    try:
        return validated(_changed(values, overrides))
    except (UserError, OmegaConfBaseException) as error:
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


def _stored(directory: Path) -> Any:
    path = directory / CONFIG_FILE
    if not path.is_file():
        near = nearest(directory.name, groups()["experiment"]) if directory.name == str(directory) else None
        hint = f"Did you mean experiment={near}?" if near else _FIRST
        raise UserError(f"'{directory}' is neither a run directory (it has no {CONFIG_FILE}) nor key=value. {hint}")
    try:
        return yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not readable YAML ({error}). Restore it.") from error


def _changed(values: Any, overrides: Sequence[str]) -> Any:
    """The settings of an existing run with overrides put in, as into those of a new one.

    A group choice takes the place of the whole group. An experiment cannot be chosen: the run is one.
    """
    _check_choices(overrides)
    choices, settings = _divided(overrides)
    config = OmegaConf.create(literal(values))
    for override in choices:
        group = key_of(override)
        if group not in Config.model_fields:
            raise UserError(f"{override}: a run has its settings already. Leave it out, or begin a new run with it.")
        config[group] = _composed((override.lstrip("+"),))[group]
    _put(config, settings)
    return OmegaConf.to_container(config, resolve=True)


def groups() -> dict[str, list[str]]:
    """The choices of each config group, from the files of `configs/`."""
    return {
        folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
        for folder in sorted(CONFIG_ROOT.iterdir())
        if folder.is_dir()
    }


def _compose(overrides: Sequence[str], given: Mapping[str, Any] | None = None) -> Any:
    _check_choices(overrides)
    return _without_missing(OmegaConf.to_container(composed(overrides, given), resolve=True))


def composed(overrides: Sequence[str], given: Mapping[str, Any] | None = None) -> DictConfig:
    """What Hydra makes of `group=choice` and `key=value`: groups are composed once, keys are put in each time.

    `given`: groups of settings between the two.
    """
    choices, settings = _divided(overrides)
    config = copy.deepcopy(_composed(tuple(choices)))
    for group, values in (given or {}).items():
        OmegaConf.update(config, group, literal(values), merge=False, force_add=True)
    _put(config, settings)
    return config


def _put(config: DictConfig, overrides: Sequence[str]) -> None:
    """Put settings in. Plug-ins are imported first: their kinds decide how other settings are read and checked."""
    own = [override for override in overrides if key_of(override) == "plugins"]
    import_plugins(config.get("plugins", ()))
    for override in own:
        put(config, override)
        import_plugins(config.get("plugins", ()))
    for override in overrides:
        if override not in own:
            put(config, override)


def _divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choices of groups, and settings: a group may also be given as a mapping, `model={kind: unet, width: 64}`."""
    known = groups()
    chooses = [key_of(override) in known and not _is_mapping(override) for override in overrides]
    choices = [override.lstrip("+") for override, choice in zip(overrides, chooses, strict=True) if choice]
    return choices, [override for override, choice in zip(overrides, chooses, strict=True) if not choice]


def _is_mapping(override: str) -> bool:
    return override.partition("=")[2].startswith("{")


@lru_cache(maxsize=64)
def _composed(choices: tuple[str, ...]) -> DictConfig:
    """What Hydra composes; not to be changed. It takes 70 ms, and the trials of a sweep differ by what is put in."""
    for override in choices:
        _refuse_bare_times(CONFIG_ROOT / key_of(override) / f"{override.partition('=')[2]}.yaml")
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIG_ROOT), version_base="1.3"):
        return compose("config", overrides=list(choices))


def _refuse_bare_times(path: Path) -> None:
    """YAML reads 24:00:00 without quotes as a number of seconds, which would be taken for minutes."""
    if path.is_file() and (found := re.search(r"\bminutes: *(\d+(?::\d+)+)", path.read_text())):
        raise UserError(f"{path}: found minutes: {found[1]}, which YAML misreads. Quote it: minutes: '{found[1]}'.")


def _without_missing(value: Any) -> Any:
    """Leave out what a config file marks as `???`, so that it is reported as missing like any other field."""
    if isinstance(value, dict):
        return {k: _without_missing(v) for k, v in value.items() if v != "???"}
    return value


def _check_choices(overrides: Sequence[str]) -> None:
    known, problems = groups(), []
    for override in overrides:
        try:
            key, value = key_of(override), override.partition("=")[2]
        except UserError as error:
            problems.append(str(error))
            continue
        if key in known and value not in known[key] and not _is_mapping(override):
            problems.append(unknown_choice(key, value, known[key]))
    if problems:
        raise UserError(listed(problems))


def unknown_choice(group: str, name: str, known: Sequence[str]) -> str:
    """Of a choice that there is not: what was meant comes before what there is."""
    near = did_you_mean(name, known)
    there = f"`mudi list {group}s` lists all." if group in _LISTED else f"Expected one of {', '.join(known)}."
    return f"{group}: found '{name}'{'.' if near else ', which is none.'}{near} {there}"


def listed(problems: Sequence[str], what: str = "problems in the settings") -> str:
    """All problems in one message. `what`: what they are called where they are several."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} {what}:\n" + "\n".join(f"  - {p}" for p in problems)
