"""Our weights under the names that diffusers gives them, and back. Needs no diffusers: names and tensors only.

A network's `theirs(name)` says which of their tensors one of ours is made of: one name, or the several that are
stacked along the first dimension (queries, keys and values). That one table serves both directions.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import read_json

T = TypeVar("T")

Names = Callable[[str], tuple[str, ...]]
Rules = Sequence[tuple[str, str]]  # (pattern of our name's part, their replacement), each applied once, in order


def renamed(rules: Rules) -> Names:
    """The `theirs` of a table of regular expressions; `to_qkv` always stands for their three layers."""

    def theirs(name: str) -> tuple[str, ...]:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if ".to_qkv." in name:
            return tuple(name.replace(".to_qkv.", f".to_{letter}.") for letter in "qkv")
        return (name,)

    return theirs


def to_foreign(state: Mapping[str, Tensor], theirs: Names) -> dict[str, Tensor]:
    """Our weights as theirs."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = theirs(name)
        out.update(zip(names, (part.contiguous() for part in tensor.chunk(len(names))), strict=True))
    return out


def from_foreign(state: Mapping[str, Tensor], theirs: Names, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights as ours; `like` is our network's own state, for names and shapes.

    Raises:
        UserError: naming tensors that are missing, left over, or of another shape.
    """
    wanted = {name: theirs(name) for name in like}
    missing = [name for names in wanted.values() for name in names if name not in state]
    extra = sorted(set(state) - {name for names in wanted.values() for name in names})
    if missing or extra:
        raise UserError(
            f"weights: {len(missing)} tensors are missing ({_few(missing)}) and {len(extra)} have no place "
            f"({_few(extra)}). The folder's config.json describes another network than its weights hold."
        )
    out = {name: torch.cat([state[part] for part in parts]) for name, parts in wanted.items()}
    wrong = [f"{name}: {list(out[name].shape)}, expected {list(like[name].shape)}" for name in out
             if out[name].numel() != like[name].numel()]  # fmt: skip
    if wrong:
        raise UserError(f"weights: {len(wrong)} tensors have another shape ({_few(wrong)}).")
    return {name: tensor.reshape(like[name].shape) for name, tensor in out.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, attention under its newer names. Pickled weights are never read.

    Raises:
        Incomplete: where it is missing or damaged.
    """
    if not path.is_file():
        raise Incomplete(f"{path} does not exist. Only safetensors are read, never pickled weights.")
    try:
        return {_modern(name): tensor for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise Incomplete(f"{path} cannot be read: {error}") from error


def understood(read: Callable[[Mapping[str, Any]], T], path: Path) -> T:
    """Their config.json at `path` through one of the `from_config`; a missing or odd setting is a `UserError`."""
    try:
        return read(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be understood ({type(error).__name__}: {error}). Expected the settings that diffusers "
            "writes, with the sizes of the network among them."
        ) from error


def _modern(name: str) -> str:
    """Files of diffusers before 0.17, such as Stable Diffusion's autoencoder, call the parts of attention otherwise."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = re.sub(rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
    return name


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Settings of a `config.json` of theirs that are not what our network computes; what they leave out is default."""
    return [
        f"{key}: found {theirs[key]}, ours is {value}"
        for key, value in ours.items()
        if key in theirs and _plain(theirs[key]) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
