"""An autoencoder, alone or with a discriminator: first stage of latent diffusion (Rombach et al. 2022, appendix G)."""

import torch
from torch import Tensor, nn

from pipeline.config.durations import to_images
from pipeline.config.schema import Config
from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.config.schema_objectives import late_start
from pipeline.data.batches import Batch
from pipeline.data.shards import Manifest
from pipeline.diffusion.preconditioning import Denoise
from pipeline.metrics.reconstruction import psnr, ssim
from pipeline.models.build import build_network
from pipeline.models.discriminator import PatchDiscriminator
from pipeline.models.posterior import Reconstruction
from pipeline.objectives.autoencoder_losses import (
    adaptive_weight,
    discriminator_loss,
    divergence,
    error,
    generator_loss,
    reconstructed_by,
)
from pipeline.objectives.degradation import degraded
from pipeline.objectives.objective import Networks
from pipeline.objectives.perceptual import Perceptual
from pipeline.runtime.errors import UserError
from pipeline.runtime.random import Stream, normal

VALIDATION = 1  # the draw that keeps the validation split apart from training


class Autoencoding:
    """Networks: "autoencoder", and "discriminator" where the game has a weight.

    loss = error + perceptual distance + KL divergence + (from `adversarial_start` on) the game with the discriminator.
    """

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Networks are initialised from torch's generator as it stands."""
        shape = manifest.layout.shape
        self._cfg, self._seed = cfg.autoencoder, cfg.seed
        self._latent = cfg.model.latent_shape(shape)
        self.has_noise = cfg.model.has_posterior
        self._perceptual = Perceptual(cfg) if self._cfg.perceptual.weight else None
        self._start = to_images(self._cfg.adversarial_start, batch=cfg.train.global_batch, train_images=manifest.count)
        self.networks: dict[str, nn.Module] = {"autoencoder": build_network(cfg.model, shape=shape)}
        self.trained: tuple[str, ...] = ("autoencoder",)
        self.ema_networks: tuple[str, ...] = ("autoencoder",)
        if self._cfg.adversarial_weight:
            for problem in late_start(cfg, train_images=manifest.count):
                raise UserError(problem)
            discriminator = PatchDiscriminator(self._cfg.discriminator, shape[0])
            self.networks["discriminator"] = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.trained = ("autoencoder", "discriminator")

    def draws(self, sample_indices: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """None: every draw of this objective has the size of an image or a latent, and is made on the device."""
        return {}

    def loss(self, name: str, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """The loss of the autoencoder or of the discriminator, [B]. Both see the same degradation and latent."""
        return self._reconstructing(networks, batch) if name == "autoencoder" else self._judging(networks, batch)

    def variant(self, name: str, batch: Batch) -> bool:  # noqa: ARG002
        """Whether the discriminator has joined."""
        return batch.newest >= self._start

    def _reconstructing(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        reconstructed = self._reconstructed(networks, batch, drawn=True)
        values = self._errors(reconstructed, batch.images)
        loss = self._sum(values)
        if "discriminator" not in networks:
            return {"loss": loss, **values}
        game = weight = torch.zeros_like(loss)
        playing = batch.sample_indices >= self._start
        if self.variant("autoencoder", batch):
            game = generator_loss(networks["discriminator"](reconstructed.images))
            weight = self._weight(values, game, reconstructed) * playing
            loss = loss + weight * game
        return {"loss": loss, **values, "game": game.detach(), "game_weight": weight}

    def _judging(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        playing = batch.sample_indices >= self._start
        if not self.variant("discriminator", batch):
            # Nothing to learn yet, but a DDP wrapper waits for a gradient of every weight: one image, times nothing.
            nothing = networks["discriminator"](batch.images[:1]).mean() * torch.zeros(
                len(playing), dtype=batch.images.dtype, device=batch.images.device
            )
            return {"loss": nothing, "real": nothing.detach(), "fake": nothing.detach()}
        with torch.no_grad():
            reconstructed = self._reconstructed(networks, batch, drawn=True).images
        # One call with both halves: a DDP wrapper must see each backward pass preceded by one forward pass.
        real, fake = networks["discriminator"](torch.cat([batch.images, reconstructed])).chunk(2)
        means = {
            name: scores.detach().flatten(1).mean(dim=1) * playing for name, scores in (("real", real), ("fake", fake))
        }
        return {"loss": discriminator_loss(real, fake) * playing, **means}

    def validate(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """The loss without the game, its parts, and likeness to the originals, by the posterior's mean."""
        reconstructed = self._reconstructed(networks, batch, drawn=False)
        values = self._errors(reconstructed, batch.images)
        return {"loss": self._sum(values), **values, **likeness(reconstructed.images, batch.images)}

    def reconstructed(self, networks: Networks, batch: Batch) -> Reconstruction:
        """What is made of the images as they are, by the posterior's mean."""
        return reconstructed_by(networks["autoencoder"], batch.images)

    def reconstructions(self, networks: Networks, batch: Batch) -> tuple[Tensor, ...]:
        """Originals, degraded ones where there are, and what is made of them by the posterior's mean; [B, C, H, W]."""
        reconstructed = self._reconstructed(networks, batch, drawn=False).images
        if self._cfg.degradation.active:
            return batch.images, self._given(batch, drawn=False), reconstructed
        return batch.images, reconstructed

    def generate(
        self,
        networks: Networks,  # noqa: ARG002
        seeds: Tensor,  # noqa: ARG002
        labels: Tensor,  # noqa: ARG002
        *,
        attributes: Tensor | None = None,  # noqa: ARG002
        sampler: SamplerConfig,  # noqa: ARG002
        guide: Denoise | None = None,  # noqa: ARG002
    ) -> Tensor:
        """An autoencoder has no prior to draw from: an error that says what to do."""
        raise UserError(
            "model.kind: an autoencoder reconstructs images and makes none. Run mudi reconstruct RUN_DIR, or "
            "train a diffusion model on its latents (latents.autoencoder)."
        )

    def _given(self, batch: Batch, *, drawn: bool) -> Tensor:
        """What the autoencoder sees."""
        draw = 0 if drawn else VALIDATION
        return degraded(batch.images, batch.sample_indices, seed=self._seed, cfg=self._cfg.degradation, draw=draw)

    def _reconstructed(self, networks: Networks, batch: Batch, *, drawn: bool) -> Reconstruction:
        """`drawn`: with latents drawn from the posterior, as in training; else with its mean."""
        noise = None
        if drawn and self.has_noise:
            noise = normal(
                self._seed, Stream.POSTERIOR, batch.sample_indices, shape=self._latent, dtype=batch.images.dtype
            )
        return reconstructed_by(networks["autoencoder"], self._given(batch, drawn=drawn), noise)

    def _errors(self, reconstructed: Reconstruction, originals: Tensor) -> dict[str, Tensor]:
        """The parts of the loss without their weights, [B] each."""
        kind = self._cfg.reconstruction
        values: dict[str, Tensor] = {kind: error(kind, reconstructed.images, originals)}
        if self._perceptual is not None:
            values["perceptual"] = self._perceptual(reconstructed.images, originals)
        if self.has_noise:
            values["kl"] = divergence(reconstructed.posterior, originals)
        return values

    def _sum(self, values: dict[str, Tensor]) -> Tensor:
        weights = {"perceptual": self._cfg.perceptual.weight, "kl": self._cfg.kl_weight}
        return torch.stack([weights.get(name, 1.0) * value for name, value in values.items()]).sum(dim=0)

    def _weight(self, values: dict[str, Tensor], game: Tensor, reconstructed: Reconstruction) -> Tensor:
        """What the game is multiplied by, [B]."""
        fixed = torch.full_like(game, self._cfg.adversarial_weight).detach()
        if not self._cfg.adaptive:
            return fixed
        reconstruction = self._sum({name: value for name, value in values.items() if name != "kl"})
        return fixed * adaptive_weight(reconstruction, game, images=reconstructed.images, inner=reconstructed.inner)


def likeness(reconstructed: Tensor, originals: Tensor) -> dict[str, Tensor]:
    """PSNR, SSIM, and both errors, [B] each."""
    found = {"psnr": psnr(reconstructed, originals), "ssim": ssim(reconstructed, originals)}
    return {**found, **{kind: error(kind, reconstructed.clamp(-1, 1), originals) for kind in ("l1", "l2")}}
