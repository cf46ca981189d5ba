"""The base of every settings class. Torch-free, as is everything in this package."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Settings(BaseModel):
    """Frozen, and strict about names: a key that no field has is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """`~/pictures` is a path below the home directory: a shell expands it in `key=~/pictures` only sometimes."""
        if not isinstance(value, Path) or not str(value).startswith("~"):
            return value
        try:
            return value.expanduser()
        except RuntimeError as error:
            user = value.parts[0][1:]
            raise ValueError(
                f"found '{value}', but there is no user {user}. Write ./{value} for a folder of that name"
            ) from error
