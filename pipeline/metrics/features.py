"""What a feature network is to the rest of this package: a name, a protocol, and a function of images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.runtime.files import content_hash


@dataclass(frozen=True)
class Extractor:
    """One feature network.

    `name`: what metric names end in: `fd-<name>`. `protocol`: JSON-like, everything that decides a number: network,
    hash of its weights, resize. `outputs`: the names of what it gives. `run`: uint8 images [B, C, H, W] with 1 or 3
    channels -> a float32 tensor [B, D] for each output; a row must not depend on the other rows. `about`: facts that
    decide no number, for people.
    """

    name: str
    protocol: Mapping[str, Any]
    outputs: tuple[str, ...]
    run: Callable[[Tensor], dict[str, Tensor]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`<name>-<first 8 digits of the protocol's hash>`: the directory of its reference statistics."""
        return f"{self.name}-{content_hash(dict(self.protocol))[:8]}"
