"""`key=value`: one grammar of overrides, for a new experiment and for the settings of an existing run alike.

The schema decides how a value is read:

- A text (a path, a name, a duration) is taken as it stands, whatever characters are in it. Quotes around the whole text
  are removed. `null` is none where the setting may be none.
- Everything else is read by Hydra's grammar: numbers (`1e-4`), `true`, `null`, `[1,2]`, `{key: value}`; or as JSON.

A mapping is merged into a group of settings. It replaces a group of another `kind`, and a setting that is itself a
mapping, such as sample.attributes.
`+key` and `++key` mean `key`: whether a setting exists is decided by the schema.
"""

import json
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from pipeline.config.registry import is_choice, registered
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError

_TEXT = (str, Path, types.NoneType)


@dataclass(frozen=True)
class Override:
    """One parsed override. `replaces`: the value takes the place of a mapping instead of being merged into it."""

    key: str
    value: Any
    replaces: bool = False


def key_of(override: str) -> str:
    """The key of `key=value`, `+key=value` or `++key=value`.

    Raises:
        UserError: where there is no key or no `=`, or the override has Hydra's `~` or `@`, which settings do not need.
    """
    key, equals, _ = override.partition("=")
    if key.startswith("~") or "@" in key:
        raise UserError(f"'{override}': expected key=value. A setting is switched off by key=null.")
    if key.startswith("-"):
        raise UserError(f"'{override}' is not key=value, and no option of this command; `--help` lists them.")
    if not equals or not key.lstrip("+"):
        raise UserError(f"'{override}' is not key=value.{_order(override)}")
    return key.lstrip("+")


def _order(override: str) -> str:
    return " A run directory stands first." if (Path(override) / "config.yaml").is_file() else ""


def parse(override: str, model: type[BaseModel] = Config) -> Override:
    """The key and the value of an override, which sets something of `model`.

    Raises:
        UserError: a list or mapping that cannot be read, with how to quote it, or several values at once.
    """
    key, text = key_of(override), override.partition("=")[2]
    kinds = _kinds(key, model, registered())
    if Path in kinds and not text:  # as from an empty variable; Path("") would be the current folder
        raise UserError(f"{key}: found nothing after the '=', expected a path.")
    if _are_texts(kinds):
        return Override(key, _text(text, nullable=types.NoneType in kinds))
    value = _value(key, text)
    mappings = [kind for kind in kinds if get_origin(kind) is dict]
    return Override(key, value, replaces=bool(mappings) and isinstance(value, dict))


def put(config: DictConfig, override: str) -> None:
    """Put `key=value` into a config."""
    parsed = parse(override)
    merge = not parsed.replaces and not _another_kind(OmegaConf.select(config, parsed.key), parsed.value)
    OmegaConf.update(config, parsed.key, parsed.value, merge=merge, force_add=True)


def _another_kind(current: Any, value: Any) -> bool:
    """Whether a mapping chooses another kind than what is there, whose settings it has no use for."""
    if not isinstance(current, DictConfig) or not isinstance(value, dict):
        return False
    return "kind" in value and current.get("kind") not in (None, value["kind"])


def _are_texts(kinds: Sequence[Any]) -> bool:
    """Whether a setting is a text: a path, a name, a duration."""
    return any(kind is not types.NoneType for kind in kinds) and all(kind in _TEXT for kind in kinds)


def is_sweep(override: str) -> bool:
    """Whether `key=value` gives several values in Hydra's sweep grammar: `a,b`, choice(), range(), interval()."""
    found = _hydra(override.partition("=")[2])
    return isinstance(found, HydraOverride) and found.is_sweep_override()


def override_for(key: str, value: Any) -> str:
    """The override that `parse` reads as this value. Interpolations (`${...}`) in the value stay as they are."""
    plain = literal(value)
    if (
        isinstance(plain, str)
        and _are_texts(_kinds(key, Config, registered()))
        and _text(plain, nullable=True) == plain
    ):
        return f"{key}={plain}"
    return f"{key}={json.dumps(plain, ensure_ascii=False)}"


def literal(value: Any) -> Any:
    """A value in which OmegaConf finds no interpolation: `${` becomes `\\${`, in all texts of it."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    return [literal(inner) for inner in value] if isinstance(value, list | tuple) else value


def _text(text: str, *, nullable: bool) -> str | None:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        unquoted = _json(text) or _hydra(text)
        if isinstance(unquoted, HydraOverride):
            unquoted = unquoted.value()
        return unquoted if isinstance(unquoted, str) else text
    return None if nullable and text.lower() == "null" else text


def _value(key: str, text: str) -> Any:
    if (found := _json(text)) is not None:
        return found
    read = _hydra(text)
    if isinstance(read, HydraOverride):
        if read.is_sweep_override():
            raise UserError(f"'{key}={text}' has several values, which only a sweep can try: mudi sweep submit")
        return read.value()
    if text[:1] in ("[", "{", "'", '"'):
        raise UserError(
            f"{key}: cannot read {text} ({read}). Put texts inside it that hold more than letters, digits and -_./ "
            f'into double quotes, and the whole override into single quotes for the shell: \'{key}=["a (1)","b#2"]\''
        )
    return text  # the schema says what it expected instead


def _json(text: str) -> Any:
    """A JSON list, mapping or string; None for everything else."""
    try:
        return json.loads(text) if text[:1] in ("[", "{", '"') else None
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _hydra(text: str) -> HydraOverride | str:
    """A value as Hydra reads it, or why Hydra cannot."""
    try:
        return _parser().parse_override(f"key={text}")
    except HydraException as error:
        return str(error).splitlines()[0]


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


@lru_cache(maxsize=4096)
def _kinds(key: str, model: type[BaseModel], registered: int) -> tuple[Any, ...]:  # noqa: ARG001
    """The types that a settings class allows at a key, unions taken apart; () where it has no such key.

    `registered`: how many kinds there are, so that what is remembered holds until a plug-in adds one.
    """
    found: list[Any] = [model]
    for part in key.split("."):
        found = [kind for holder in found for kind in _inside(holder, part)]
    return tuple(found)


def _inside(holder: Any, part: str) -> Iterator[Any]:
    if isinstance(holder, type) and issubclass(holder, BaseModel):
        if part in holder.model_fields:
            yield from _members(holder.model_fields[part].annotation)
    elif get_origin(holder) is dict:
        yield from _members(get_args(holder)[1])
    elif get_origin(holder) is tuple:
        yield from _members(get_args(holder)[0])


def _members(annotation: Any) -> Iterator[Any]:
    """The members of a union, however deep, without their annotations."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif is_choice(annotation):
        yield from annotation.registry.classes()
    else:
        yield annotation
