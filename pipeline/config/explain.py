"""Pydantic's findings in words: which setting, what was found, what was expected, what was probably meant."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.config.registry import is_choice, tag
from pipeline.runtime.errors import did_you_mean, meant, nearest

_TRIED = ("literal[", "tuple[", "list[", "dict[")


def explain(error: ValidationError, model: type[BaseModel], *, start: str = "") -> list[str]:
    """One sentence for each problem, in the order of the schema. `start`: what stands before each setting, "sweep.".

    A setting that is missing because its name was misspelt is one problem.
    """
    found = [(item, *_walk(item["loc"], model)) for item in error.errors()]
    unknown = [(place, holders) for item, place, holders in found if item["type"] == "extra_forbidden"]
    known = {name for place, holders in unknown for name in _meant(place, holders)}
    return [
        start + _sentence(item, place, holders, start=start)
        for item, place, holders in found
        if item["type"] != "missing" or _name(place) not in known
    ]


def own_settings(settings: type[BaseModel], values: Any) -> dict[str, Any]:
    """The values that a kind's own settings have, with its defaults put in; a `ValueError` says what is wrong."""
    try:
        return settings.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(" ".join(explain(error, settings))) from error


def _name(place: Sequence[int | str]) -> str:
    return ".".join(map(str, place))


def _fields(holders: Sequence[type[BaseModel]]) -> list[str]:
    return sorted({field for m in holders for field in m.model_fields})


def _meant(place: Sequence[int | str], holders: Sequence[type[BaseModel]]) -> list[str]:
    """Full names of settings that are probably meant: those of that very name further down, or the nearest here."""
    found = sorted(set(_below(str(place[-1]), holders)))
    if not found:
        near = nearest(str(place[-1]), _fields(holders))
        found = [] if near is None else [near]
    return [_name([*place[:-1], name]) for name in found]


def _below(name: str, holders: Sequence[type[BaseModel]], depth: int = 4) -> list[str]:
    """Where a setting of this name stands below some classes: the places of the fewest parts."""
    inner = [(field, list(_classes(m.model_fields[field].annotation))) for m in holders for field in m.model_fields]
    found = [f"{field}.{name}" for field, classes in inner if any(name in c.model_fields for c in classes)]
    if found or depth == 0:
        return found
    deeper = [f"{field}.{place}" for field, classes in inner if classes for place in _below(name, classes, depth - 1)]
    least = min((place.count(".") for place in deeper), default=0)
    return [place for place in deeper if place.count(".") == least]


def _sentence(item: Any, place: Sequence[int | str], holders: Sequence[type[BaseModel]], *, start: str) -> str:
    name, found = _name(place), item["input"]
    if item["type"] == "extra_forbidden":
        near = [f"{start}{known}" for known in _meant(place, holders)[:3]]
        hint = meant(near) if near else f" Known here: {', '.join(_fields(holders))}."
        return f"{name}: no such setting.{hint}"
    if item["type"] == "missing":
        return (
            f"{name}: missing. Set {start}{name}=..., or choose a config group that does (such as experiment=glyphs16)."
        )
    if item["type"] == "union_tag_invalid":
        expected = str(item["ctx"]["expected_tags"]).replace("'", "")
        found = item["ctx"]["tag"]
        return f"{name}.kind: found '{found}', expected one of {expected}.{did_you_mean(found, expected.split(', '))}"
    if item["type"] == "union_tag_not_found":
        fields = [m.model_fields[str(place[-1])] for m in holders]
        kinds = ", ".join(str(tag(m)) for field in fields for m in _classes(field.annotation))
        return f"{name}.kind: missing, expected one of {kinds}. Set it, or choose a config group that does."
    if item["type"] in ("tuple_type", "list_type") and isinstance(found, str | int | float):
        return f"{name}: found {found!r}, expected a list: [{found}]."
    message = str(item["msg"]).removeprefix("Value error, ")
    if message.startswith("found "):
        return f"{name}: {message}{'' if message[-1] in '.?' else '.'}"
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
    hint = did_you_mean(str(found), item.get("ctx", {}).get("expected", "").replace("'", "").split(", "))
    return f"{name}: found {found!r}; {message[0].lower()}{message[1:]}.{hint}"


def _walk(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[int | str], list[type[BaseModel]]]:
    """The dotted place of a finding, and the settings classes that its last part should be a field of.

    Pydantic puts the tag of a union's chosen member into the location; people do not write it, but it says which
    member is meant. Of a union without tags it puts there the type that it tried.
    """
    place: list[int | str] = []
    holders = found = [model]
    for part in location:
        tagged = [m for m in found if tag(m) == part and not any(part in m.model_fields for m in found)]
        if tagged:
            found = tagged
            continue
        if str(part).startswith(_TRIED):
            continue
        holders = found
        place.append(part)
        if isinstance(part, str):
            fields = [m.model_fields[part] for m in found if part in m.model_fields]
            found = [m for field in fields for m in _classes(field.annotation)]
    return place, holders


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes in an annotation; all kinds of a registry where its base stands for them."""
    if is_choice(annotation):
        yield from annotation.registry.classes()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)
