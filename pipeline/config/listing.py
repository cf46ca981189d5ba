"""What there is to choose from: the experiments, and every setting with its type, default and meaning. Torch-free."""

import ast
import inspect
import io
import itertools
import json
import re
import shutil
import textwrap
import tokenize
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from pipeline.config.base import Settings
from pipeline.config.durations import Duration
from pipeline.config.load import CONFIG_ROOT
from pipeline.config.registry import METRICS, SAMPLERS, Registry, is_choice
from pipeline.config.schema import Config
from pipeline.config.schema_cluster import Minutes
from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.config.schema_metrics import EvaluateConfig
from pipeline.runtime.errors import UserError, did_you_mean, meant

_NAMES = {bool: "true | false", int: "whole number", float: "number", types.NoneType: "null", str: "text", Path: "path"}
_MARKED = (
    (get_args(Duration)[1], "duration such as 10 epochs, 5000 steps, 200 kimg"),
    (get_args(Minutes)[1], "minutes, or [D-]HH:MM:SS"),
)
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


class Setting(NamedTuple):
    """One setting, as it is shown."""

    key: str
    type: str
    default: str
    comment: str


def experiments(arguments: list[str]) -> None:
    """Print each experiment with the first sentence of its file's comment."""
    _choices(arguments, "experiment")
    print("\nOne of them: mudi plan experiment=NAME\nthen: mudi submit experiment=NAME")


def models(arguments: list[str]) -> None:
    """Print each model of configs/model with the first sentence of its file's comment."""
    _choices(arguments, "model")
    print("\nOne of them: model=NAME. Its settings: mudi list settings model")


def _choices(arguments: list[str], group: str) -> None:
    if arguments:
        raise UserError(f"list {group}s: found '{arguments[0]}', expected nothing: it lists all.")
    heading = ""
    for path in sorted((CONFIG_ROOT / group).glob("*.yaml"), key=lambda path: (_subject(path), path.stem)):
        if group == "experiment" and heading != (heading := _subject(path)):
            print(f"\n{heading}:")
        print(wrapped(f"{path.stem}  ", described(path.read_text())))


def _subject(path: Path) -> str:
    """What a name begins with: the images that an experiment is about, flowers of flowers64_ddpm."""
    return re.split(r"[\d_]", path.stem)[0]


def described(text: str) -> str:
    """What a config's comment says of it: the first sentence, at most up to a line that has a name, such as Cost."""
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    told = [line for line in comments if not line.startswith("@")]
    whole = " ".join(itertools.takewhile(lambda line: not re.match(r"[A-Z]\w+:  ?", line), told))
    return re.split(r"(?<=[\w)\]])\. (?=[A-Z])", whole)[0].rstrip(".")


def settings(arguments: list[str]) -> None:
    """Print all settings, or those below a prefix; a setting of some kinds alone with their names."""
    if len(arguments) > 1:
        raise UserError(f"list settings: found {' '.join(arguments)}, expected one prefix, such as train.optim.")
    found: dict[Setting, list[str]] = {}
    for kind, setting in _settings(Config, ""):
        found.setdefault(setting, []).append(kind)
    prefix = arguments[0].rstrip(".") if arguments else ""
    shown = {s: kinds for s, kinds in found.items() if not prefix or f"{s.key}.".startswith(f"{prefix}.")}
    if not shown:
        known = {".".join(parts[:n]) for parts in (s.key.split(".") for s in found) for n in range(1, len(parts) + 1)}
        above, _, last = prefix.rpartition(".")
        deeper = sorted((k for k in known if k.startswith(f"{above}.") and k.endswith(f".{last}")), key=len)[:3]
        hint = meant(deeper) if deeper else did_you_mean(prefix, sorted(known))
        raise UserError(f"list settings: found no setting '{prefix}'.{hint}")
    for setting, kinds in shown.items():
        facts = [setting.type, f"default {setting.default}" if setting.default else "no default"]
        facts += [f"of {', '.join(dict.fromkeys(kinds))}"] if any(kinds) else []
        print(wrapped(f"{setting.key}  ", "; ".join(facts)))
        if setting.comment:
            print(wrapped("    ", setting.comment))


def wrapped(start: str, text: str) -> str:
    """A text after `start`, as wide as the terminal. Words are not cut."""
    columns = min(shutil.get_terminal_size().columns, 120)
    return textwrap.fill(
        text, columns, initial_indent=start, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )


def _settings(model: type[Settings], place: str, kind: str = "") -> Iterator[tuple[str, Setting]]:
    """Everything below a place, with the kind that it is a setting of; "" where it is one of all."""
    comments = _comments(model)
    for name, field in model.model_fields.items():
        key, inner = f"{place}.{name}".lstrip("."), list(_classes(field.annotation))
        kinds = [_kind(cls) for cls in inner]
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        if any(kinds):
            null = [] if field.is_required() or field.default is not None else ["null"]
            yield kind, Setting(f"{key}.kind", " | ".join(kinds + null), _shown(field), comments.get(name, ""))
        elif not (name == "kind" and _kind(model)) and (not inner or field.default is None):
            yield kind, Setting(key, _type(annotation), _shown(field), comments.get(name, ""))
        for cls in inner:
            yield from _settings(cls, key, _kind(cls) or kind)
    if model in (SamplerConfig, EvaluateConfig):
        registry: Registry[Any] = SAMPLERS if model is SamplerConfig else METRICS
        for own in registry:
            at = f"{place}.options" if model is SamplerConfig else f"{place}.options.{own.name}"
            yield from () if own.settings is None else _settings(own.settings, at, own.name)


def _classes(annotation: Any) -> Iterator[type[Settings]]:
    if is_choice(annotation):
        yield from annotation.registry.classes()
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for inner in get_args(annotation):
            yield from _classes(inner)


def _kind(model: type[Settings]) -> str:
    """The name of the kind that a class has the settings of; "" where it is no kind."""
    field = model.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field and len(get_args(field.annotation)) == 1 else ""


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if marked := [text for mark, text in _MARKED if mark in inner]:
            return marked[0]
        bounds = [f"{sign} {getattr(m, name):g}" for m in inner for name, sign in _BOUNDS.items() if hasattr(m, name)]
        return " ".join([_type(inner[0]), *([f"({', '.join(bounds)})"] if bounds else [])])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(_type, inner)))
    if origin is tuple:
        return f"[{', '.join('...' if one is ... else _type(one) for one in inner)}]"
    if origin is dict:
        return f"{{{_type(inner[0])}: {_type(inner[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "settings"
    return _NAMES.get(annotation, "anything")


def _shown(field: FieldInfo) -> str:
    """A default as it is written on a command line."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        return _kind(type(value))
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


@cache
def _comments(model: type[Settings]) -> dict[str, str]:
    """The comment of each field: beside it, or in the lines directly above."""
    found: dict[str, str] = {}
    for cls in (cls for cls in reversed(model.__mro__) if cls.__module__.startswith("pipeline.")):
        source = textwrap.dedent(inspect.getsource(cls))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        comments = {t.start[0]: t.string.strip("# ") for t in tokens if t.type == tokenize.COMMENT}
        alone = {t.start[0] for t in tokens if t.type == tokenize.COMMENT and t.line.lstrip().startswith("#")}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while first - 1 in alone:
                    first -= 1
                lines = [comments.get(number, "") for number in range(first, (node.end_lineno or first) + 1)]
                found[node.target.id] = " ".join(filter(None, lines))
    return found
