"""A generator against a critic: the baseline of the adversarial kind, two networks trained in turn by the same loop."""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.config.schema import Config
from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.config.schema_model import StyleGANConfig
from pipeline.data.batches import Batch
from pipeline.data.shards import Manifest
from pipeline.diffusion.preconditioning import Denoise
from pipeline.models.build import build_network
from pipeline.models.discriminator import StyleDiscriminator
from pipeline.models.stylegan import seed_noise
from pipeline.objectives.condition import Conditions
from pipeline.objectives.objective import Networks
from pipeline.runtime.random import Stream, normal


class Adversarial:
    """The non-saturating game (Goodfellow et al. 2014) with R1 (Mescheder et al. 2018, equation 9)."""

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Networks are initialised from torch's generator as it stands."""
        if not isinstance(cfg.model, StyleGANConfig):
            raise TypeError(f"a game needs model.kind=stylegan, not {cfg.model.kind}")
        self._seed, self._gamma, self._latent = cfg.seed, cfg.adversarial.r1_gamma, cfg.model.latent
        self._conditions = Conditions(cfg, manifest)
        shape, counts = manifest.layout.shape, (self._conditions.classes, self._conditions.attributes)
        self.networks: dict[str, nn.Module] = {
            "critic": StyleDiscriminator(cfg.model, shape, classes=counts[0], attributes=counts[1]),
            "generator": build_network(cfg.model, shape=shape, classes=counts[0], attributes=counts[1]),
        }
        seed_noise(self.networks["generator"], seed=cfg.seed)
        self.trained: tuple[str, ...] = ("critic", "generator")
        self.averaged: tuple[str, ...] = ("generator",)

    def draws(self, visits: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """None: every draw of this objective has the size of an image or a latent, and is made on the device."""
        return {}

    def loss(self, name: str, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """The loss of the generator or of the critic, [B]; the same visit has the same latent in both turns."""
        told = self._conditions.told(batch.labels, batch.attributes)
        z = self._z(batch.visits, batch.images.dtype)
        if name == "generator":
            made = networks["generator"](z, told, visits=batch.visits)
            return {"loss": softplus(-networks["critic"](made, told, visits=batch.visits))}
        with torch.no_grad():
            made = networks["generator"](z, told, visits=batch.visits)
        # One call with both halves: a DDP wrapper must see each backward pass preceded by one forward pass.
        images = torch.cat([batch.images, made]).requires_grad_(self._gamma > 0)
        both = None if told is None else torch.cat([told, told])
        scores = networks["critic"](images, both, visits=torch.cat([batch.visits, batch.visits]))
        real, fake = scores.chunk(2)
        penalty = self._penalty(real, images)
        return {"loss": softplus(-real) + softplus(fake) + penalty, "real": real, "fake": fake, "penalty": penalty}

    def validate(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002
        """A game has no loss that says how good its images are: nothing."""
        return {}

    def generate(
        self,
        networks: Networks,
        seeds: Tensor,
        labels: Tensor,
        *,
        attributes: Tensor | None = None,
        sampler: SamplerConfig,  # noqa: ARG002
        weak: Denoise | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Images [B, C, H, W] in one step, whatever the sampler."""
        told = self._conditions.told(labels, attributes)
        images: Tensor = networks["generator"](self._z(seeds, torch.float32), told, visits=seeds)
        return images

    def _z(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        return normal(self._seed, Stream.LATENT, numbers, shape=(self._latent,), dtype=dtype)

    def _penalty(self, real: Tensor, images: Tensor) -> Tensor:
        """gamma / 2 * |gradient of the score at a real image|^2, [B]."""
        if self._gamma == 0:
            return torch.zeros_like(real)
        (gradient,) = torch.autograd.grad(real.sum(), images, create_graph=True)
        return self._gamma / 2 * gradient[: len(real)].square().sum(dim=(1, 2, 3))
