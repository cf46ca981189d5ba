"""The condition of a network: an image's class, its attributes, or nothing; and how an unknown one is said."""

import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.data.shards import Manifest


class Conditions:
    """The condition of one experiment, as `pipeline.models` expects it."""

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Kind from the model's settings, counts from the data."""
        self.kind = cfg.model.condition
        self.classes, self.attributes = len(manifest.classes), len(manifest.attributes)

    def of(self, labels: Tensor, attributes: Tensor | None = None) -> Tensor | None:
        """Classes [B] with their number for unknown (a label of -1), or attributes [B, A] with -1; None for none."""
        if self.kind == "class":
            return torch.where(labels < 0, self.classes, labels)
        if self.kind == "attributes":
            unknown = torch.full((len(labels), self.attributes), -1, dtype=torch.int8, device=labels.device)
            return unknown if attributes is None else attributes
        return None
