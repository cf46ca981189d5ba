"""Pydantic's findings in words: which setting, what was found, what was expected, what was probably meant."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.runtime.errors import did_you_mean


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence for each problem, in the order of the schema."""
    return [_sentence(item, model) for item in error.errors()]


def _sentence(item: Any, model: type[BaseModel]) -> str:
    place = _without_tags(item["loc"], model)
    name, found = ".".join(map(str, place)), item["input"]
    if item["type"] == "extra_forbidden":
        known = sorted({field for m in _models_at(model, place[:-1]) for field in m.model_fields})
        hint = did_you_mean(str(place[-1]), known) or f" Known here: {', '.join(known)}."
        return f"{name}: no such setting.{hint}"
    if item["type"] == "missing":
        return f"{name}: missing. Set {name}=..., or choose a config group that does (such as experiment=glyphs16)."
    if item["type"] == "union_tag_invalid":
        expected = str(item["ctx"]["expected_tags"]).replace("'", "")
        found = item["ctx"]["tag"]
        return f"{name}.kind: found '{found}', expected one of {expected}.{did_you_mean(found, expected.split(', '))}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if message.startswith("found "):
        return f"{name}: {message}."
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
    hint = did_you_mean(str(found), item.get("ctx", {}).get("expected", "").replace("'", "").split(", "))
    return f"{name}: found {found!r}; {message[0].lower()}{message[1:]}.{hint}"


def _without_tags(location: tuple[int | str, ...], model: type[BaseModel]) -> list[int | str]:
    """Pydantic puts the chosen member's tag into a union's location; people do not write it."""
    place: list[int | str] = []
    for part in location:
        fields = {field for m in _models_at(model, place) for field in m.model_fields}
        tags = {_tag(m) for m in _models_at(model, place)}
        if part in tags and part not in fields and part != location[-1]:
            continue
        place.append(part)
    return place


def _tag(model: type[BaseModel]) -> Any:
    kind = model.model_fields.get("kind")
    return next(iter(get_args(kind.annotation)), None) if kind else None


def _models_at(model: type[BaseModel], place: list[int | str]) -> list[type[BaseModel]]:
    """The settings classes that may stand at a dotted place (several for a union)."""
    found = [model]
    for part in place:
        fields = [m.model_fields[part] for m in found if isinstance(part, str) and part in m.model_fields]
        found = [m for field in fields for m in _classes(field.annotation)]
    return found


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)
