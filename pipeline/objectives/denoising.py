"""The diffusion objective: draw a noise level and noise for every image, ask the network for the clean image."""

import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.data.batches import Batch
from pipeline.data.shards import Manifest
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import build_generator
from pipeline.diffusion.loss import denoising_loss
from pipeline.diffusion.preconditioning import Network
from pipeline.models.build import build_network
from pipeline.objectives.objective import Networks
from pipeline.runtime.random import Stream, normal, uniform

GOLDEN = (5**0.5 - 1) / 2  # multiples of it fill (0, 1) as evenly as any sequence can


class Denoising:
    """One player, "denoiser"; conditions are classes, attributes or none, hidden for a share of the images."""

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Networks are initialised from torch's generator as it stands."""
        self._cfg, self._seed, self._shape = cfg.diffusion, cfg.seed, manifest.layout.shape
        self._condition, self._classes = cfg.model.condition, len(manifest.classes)
        self._attributes = len(manifest.attributes)
        network = build_network(cfg.model, shape=self._shape, classes=self._classes, attributes=self._attributes)
        self.process = build_process(cfg.diffusion)
        self.networks = {"denoiser": network}
        self.players: tuple[str, ...] = ("denoiser",)
        self.averaged: tuple[str, ...] = ("denoiser",)

    def loss(self, player: str, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Loss at a random noise level, [B]. All draws are functions of the visit."""
        u = uniform(self._seed, Stream.SIGMA, batch.visits, dtype=torch.float64)
        noise = self._noise(Stream.NOISE, batch)
        hide = uniform(self._seed, Stream.LABEL_DROP, batch.visits) < self._cfg.label_dropout

        def network(x: Tensor, cond: Tensor, condition: Tensor | None) -> Tensor:
            return networks[player](x, cond, condition, visits=batch.visits)

        return {"loss": self._loss(network, batch, u=u, noise=noise, hide=hide)}

    def validate(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """The same loss, labels shown, with noise levels spread evenly over the images and noise that never changes."""
        u = (batch.visits.double() * GOLDEN + 0.5) % 1  # any number of images in a row covers (0, 1) evenly
        noise = self._noise(Stream.VALIDATION, batch)
        hide = torch.zeros_like(batch.visits, dtype=torch.bool)
        return {"loss": self._loss(networks["denoiser"], batch, u=u, noise=noise, hide=hide)}

    def generate(self, networks: Networks, seeds: Tensor, labels: Tensor, *, sampler: SamplerConfig) -> Tensor:
        """Images [B, C, H, W] from noise keyed by the seeds."""

        def noise(stream: Stream, draw: int) -> Tensor:
            return normal(self._seed, stream, seeds, shape=self._shape, draw=draw)

        hidden = self._visible(labels, None, hide=torch.ones_like(labels, dtype=torch.bool))
        condition = self._visible(labels, None, hide=labels < 0)
        make = build_generator(sampler, self.process, networks["denoiser"], condition=condition, hidden=hidden)
        return make(noise(Stream.SAMPLE_START, 0), lambda draw: noise(Stream.SAMPLE_STEP, draw))

    def _loss(self, network: Network, batch: Batch, *, u: Tensor, noise: Tensor, hide: Tensor) -> Tensor:
        return denoising_loss(
            network,
            self.process.scales,
            batch.images,
            sigma=self.process.draw_sigma(u).to(batch.images.dtype)[:, None, None, None],
            noise=noise,
            weight=self.process.weight,
            cond=self._visible(batch.labels, batch.attributes, hide=hide),
        )

    def _noise(self, stream: Stream, batch: Batch) -> Tensor:
        return normal(self._seed, stream, batch.visits, shape=self._shape, dtype=batch.images.dtype)

    def _visible(self, labels: Tensor, attributes: Tensor | None, *, hide: Tensor) -> Tensor | None:
        """What the network is told: classes [B] with `classes` for unknown, or attributes [B, A] with -1."""
        if self._condition == "class":
            return torch.where(hide | (labels < 0), self._classes, labels)
        if self._condition == "attributes":
            if attributes is None:
                attributes = torch.full((len(labels), self._attributes), -1, dtype=torch.int8, device=labels.device)
            return torch.where(hide[:, None], -1, attributes)
        return None
