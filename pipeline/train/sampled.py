"""A small metric while training: samples of fixed seeds, judged by the data set's own classifier, over all ranks.

Seeds are cut into blocks; a rank does every n-th, and one sum gathers them. A block is computed in the same way
wherever that happens, so the number does not depend on how many ranks there are, and no rank waits for another's work.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.schema_metrics import ATTRIBUTE_ACCURACY, CLASS_ACCURACY, DOMAIN_DISTANCE
from pipeline.data.pictures import to_uint8
from pipeline.metrics.domain import LABELS
from pipeline.metrics.frechet import Target
from pipeline.metrics.moments import moments
from pipeline.objectives.objective import Networks
from pipeline.runtime import distributed
from pipeline.runtime.numerics import own_precision
from pipeline.standards import open_domain
from pipeline.train.session import Session
from pipeline.train.validation import averaged

BLOCK = 64  # seeds computed at once


class Judge:
    """The prepared reference, opened before the first step: what is missing is known then."""

    def __init__(self, s: Session) -> None:
        """Raises `Incomplete`, with the command to run, where the reference was not prepared."""
        self._extractor, reference = open_domain(s.cfg, device=str(s.device))
        self._target = Target(reference.moments("features"))
        self._classes = s.cfg.model.condition == "class" and self._extractor.protocol["task"] == LABELS
        self._attributes = s.cfg.model.condition == "attributes" and "attributes" in self._extractor.spaces

    @torch.no_grad()
    def values(self, s: Session) -> dict[str, float]:
        """`sampled/fd-domain` of `train.metric_images` samples of the averaged weights, and, where the model is told
        classes or attributes, `sampled/accuracy-domain` or `-attributes`. A collective."""
        count = s.cfg.train.metric_images
        rows = torch.zeros(count, len(self._target.mean) + 2, dtype=torch.float64)
        with averaged(s) as networks:
            for first in range(s.world.rank * BLOCK, count, s.world.size * BLOCK):
                seeds = torch.arange(first, min(first + BLOCK, count))
                rows[first : first + len(seeds)] = self._block(s, networks, seeds)
        rows = distributed.total(rows)
        features, right, asked = rows[:, :-2].numpy(), rows[:, -2].sum(), rows[:, -1].sum()
        found = {f"sampled/{DOMAIN_DISTANCE}": self._target.quick(moments(features))}
        if asked:
            found[f"sampled/{CLASS_ACCURACY if self._classes else ATTRIBUTE_ACCURACY}"] = float(right / asked)
        return found

    def _block(self, s: Session, networks: Networks, seeds: Tensor) -> Tensor:
        """[B, D + 2]: features, right answers, questions asked."""
        labels, attributes = self._asked(s, seeds.numpy())
        device, sampler = s.device, s.cfg.sample.sampler.alone
        told = None if attributes is None else attributes.to(device)
        images = s.objective.generate(networks, seeds.to(device), labels.to(device), attributes=told, sampler=sampler)
        pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).to(device)
        with own_precision(pixels):
            found = {name: value.double().cpu() for name, value in self._extractor.run(pixels).items()}
        right, asked = torch.zeros(len(seeds)), torch.zeros(len(seeds))
        if self._classes:
            right, asked = (found["logits"].argmax(1) == labels) & (labels >= 0), labels >= 0
        elif self._attributes and attributes is not None:
            seen = (found["attributes"] > 0) == (attributes == 1)
            right, asked = (seen & (attributes >= 0)).sum(1), (attributes >= 0).sum(1)
        return torch.cat([found["features"], right.double()[:, None], asked.double()[:, None]], 1)

    def _asked(self, s: Session, seeds: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Classes in turn; attributes of training images."""
        classes = len(s.train_data.manifest.classes)
        numbers = torch.from_numpy(seeds)
        labels = numbers % classes if classes else torch.full_like(numbers, -1)
        rows = s.train_data.attributes(seeds % s.train_data.count)
        return labels, None if rows is None else torch.from_numpy(rows)
