"""The variational autoencoder to one vector: the baseline that samples in one step (Kingma & Welling 2014)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.config.schema_model import VAEConfig
from pipeline.data.batches import Batch
from pipeline.data.shards import Manifest
from pipeline.diffusion.preconditioning import Denoise
from pipeline.models.build import build_network
from pipeline.models.posterior import Reconstruction
from pipeline.objectives.autoencoder import likeness
from pipeline.objectives.autoencoder_losses import divergence, error, reconstructed_by
from pipeline.objectives.condition import Conditions
from pipeline.objectives.objective import Mix, Networks
from pipeline.objectives.perceptual import Perceptual
from pipeline.runtime.errors import UserError
from pipeline.runtime.random import Stream, normal


class Variational:
    """Trains one network, "autoencoder", by the negative ELBO as `AutoencoderConfig` says, with beta in its weight."""

    has_noise = True  # the vector is drawn from a normal distribution

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Networks are initialised from torch's generator as it stands."""
        if not isinstance(cfg.model, VAEConfig):
            raise TypeError(f"this objective trains model.kind=vae, not {cfg.model.kind}")
        self._cfg, self._seed, self._latent = cfg.autoencoder, cfg.seed, cfg.model.latent
        self._conditions = Conditions(cfg, manifest)
        self._perceptual = Perceptual(cfg) if self._cfg.perceptual.weight else None
        counts = {"classes": self._conditions.classes, "attributes": self._conditions.attributes}
        self.networks: dict[str, nn.Module] = {
            "autoencoder": build_network(cfg.model, shape=manifest.layout.shape, **counts)
        }
        self.trained: tuple[str, ...] = ("autoencoder",)
        self.ema_networks: tuple[str, ...] = ("autoencoder",)

    def draws(self, sample_indices: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """None: every draw of this objective has the size of an image or a latent, and is made on the device."""
        return {}

    def loss(self, name: str, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """-ELBO [B], its latents drawn by sample index, and its parts."""
        noise = self._noise(Stream.POSTERIOR, batch.sample_indices, batch.images.dtype)
        return self._elbo(self._called(networks[name], batch, noise), batch.images)

    def validate(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """-ELBO with latents that never change; how near the posterior's mean comes to the originals."""
        noise = self._noise(Stream.VALIDATION, batch.sample_indices, batch.images.dtype)
        values = self._elbo(self._called(networks["autoencoder"], batch, noise), batch.images)
        mean = self.reconstructed(networks, batch).images
        near = {f"mean_{name}": value for name, value in likeness(mean, batch.images).items()}
        return {**values, **near}

    def reconstructed(self, networks: Networks, batch: Batch) -> Reconstruction:
        """What is made of the images by the posterior's mean, conditioned on what they show."""
        return self._called(networks["autoencoder"], batch, None)

    def generate(
        self,
        networks: Networks,
        seeds: Tensor,
        labels: Tensor,
        *,
        attributes: Tensor | None = None,
        sampler: SamplerConfig,  # noqa: ARG002
        guide: Denoise | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Images [B, C, H, W] in one step, whatever the sampler: the decoder's mean for a vector from the prior."""
        noise = self.latents(seeds)
        return reconstructed_by(networks["autoencoder"], None, noise, self._conditions.of(labels, attributes)).images

    def latents(self, seeds: Tensor) -> Tensor:
        """Vectors [B, latent] from the prior, of the images of `seeds`."""
        return self._noise(Stream.LATENT, seeds, torch.float32)

    def between(
        self, starts: Tensor, asked: tuple[Tensor, Tensor | None], *, seeds: Tensor, mix: Mix, space: str, psi: float
    ) -> Tensor:
        """Images of the vectors from each one to the next; a VAE has no styles, and nothing else is drawn."""
        del seeds, psi
        if space != "z":
            raise UserError(f"--space: found {space}, but a VAE has no styles. Leave it out, or give the run of a GAN.")
        mixed = mix(starts[:-1], starts[1:]).transpose(0, 1)
        condition = self._conditions.of(*asked)
        each = None if condition is None else condition.repeat_interleave(mixed.shape[1], 0)
        return reconstructed_by(self.networks["autoencoder"], None, mixed.flatten(0, 1), each).images

    def _called(self, network: Callable[..., Tensor], batch: Batch, noise: Tensor | None) -> Reconstruction:
        return reconstructed_by(network, batch.images, noise, self._conditions.of(batch.labels, batch.attributes))

    def _noise(self, stream: Stream, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        return normal(self._seed, stream, numbers, shape=(self._latent,), dtype=dtype)

    def _elbo(self, reconstructed: Reconstruction, originals: Tensor) -> dict[str, Tensor]:
        kind = self._cfg.reconstruction
        values = {
            kind: error(kind, reconstructed.images, originals),
            "kl": divergence(reconstructed.posterior, originals),
        }
        loss = values[kind] + self._cfg.kl_weight * values["kl"]
        if self._perceptual is not None:
            values["perceptual"] = self._perceptual(reconstructed.images, originals)
            loss = loss + self._cfg.perceptual.weight * values["perceptual"]
        return {"loss": loss, **values}
