"""The diffusion objective: draw a noise level and noise for every image, ask the network for the clean image."""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.data.augment import NAMES, augment_draws, parameters
from pipeline.data.batches import Batch
from pipeline.data.shards import Manifest
from pipeline.diffusion.build import build_balance, build_process
from pipeline.diffusion.build_sampler import Generator, build_generator
from pipeline.diffusion.guidance import clipped, hide_labels
from pipeline.diffusion.posterior import LearnedVariance
from pipeline.diffusion.preconditioning import Denoise, denoiser
from pipeline.diffusion.variational import Bound, bits_per_dimension
from pipeline.models.build import build_network
from pipeline.models.dropout import number_layers
from pipeline.models.unet import UNet
from pipeline.objectives.condition import Conditions
from pipeline.objectives.latent_codec import codec_of
from pipeline.objectives.objective import Networks
from pipeline.runtime.random import Stream, normal, uniform

GOLDEN = (5**0.5 - 1) / 2  # multiples of it fill (0, 1) as evenly as any sequence can


class Denoising:
    """Trains one network, "denoiser". Conditions are classes, attributes or none, hidden for a share of the images."""

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Networks are initialised from torch's generator as it stands."""
        self._cfg, self._seed = cfg.diffusion, cfg.seed
        self._codec = codec_of(cfg, manifest)
        self._shape = self._codec.shape
        self._conditions = Conditions(cfg, manifest)
        network = build_network(
            cfg.model,
            shape=self._shape,
            classes=self._conditions.classes,
            attributes=self._conditions.attributes,
            outputs=self._shape[0] * 2 if cfg.diffusion.learned_variance else None,
        )
        self._augmentation = cfg.train.augmentation if cfg.train.augmentation.condition else None
        if self._augmentation is not None:
            if not isinstance(network, UNet):
                raise TypeError(f"train.augmentation.condition needs model.kind=unet, not {cfg.model.kind}")
            network.condition_on_augmentation(len(NAMES))
        number_layers(network, seed=cfg.seed)  # dropout masks are functions of the seed and the sample index
        self.process = build_process(cfg.diffusion)
        self._balance = build_balance(cfg.diffusion)
        if cfg.diffusion.learned_uncertainty:
            network.add_module("balance", self._balance)  # trained and saved with the network, and part of its EMA
        self.networks: dict[str, nn.Module] = {"denoiser": network}
        self.trained: tuple[str, ...] = ("denoiser",)
        self.ema_networks: tuple[str, ...] = ("denoiser",)

    def draws(self, sample_indices: Tensor) -> dict[str, Tensor]:
        """Noise levels [B], and uniform numbers that decide what of the condition is hidden: [B], and [B, A]."""
        found = {
            "sigma": self.process.draw_sigma(uniform(self._seed, Stream.SIGMA, sample_indices, dtype=torch.float64))
        }
        if self._conditions.kind != "none" and self._cfg.label_dropout:
            found["hide_all"] = uniform(self._seed, Stream.LABEL_DROP, sample_indices)
        if self._conditions.kind == "attributes" and self._cfg.attribute_dropout:
            shape = (self._conditions.attributes,)
            found["hide_each"] = uniform(self._seed, Stream.LABEL_DROP, sample_indices, shape=shape, draw=1)
        if self._augmentation is not None:
            found["augmented"] = parameters(augment_draws(sample_indices, seed=self._seed), cfg=self._augmentation)
        return found

    def loss(self, name: str, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Loss at a random noise level, [B]. All draws are functions of the sample index."""
        x0, sigma = self._codec.clean(batch), _per_image(batch.draws["sigma"], batch)
        noise = self._noise(Stream.NOISE, batch.sample_indices, dtype=batch.images.dtype)

        extras = {"augmented": batch.draws["augmented"]} if self._augmentation is not None else {}

        def network(x: Tensor, cond: Tensor, condition: Tensor | None, /) -> Tensor:
            return networks[name](x, cond, condition, sample_indices=batch.sample_indices, **extras)

        error = self.process.loss(network, x0, sigma=sigma, noise=noise, cond=self._dropped(batch))
        balanced = self._balance(error, sigma)
        return {"loss": balanced} if balanced is error else {"loss": balanced, "error": error}

    def validate(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """The same loss, labels shown, with noise levels spread evenly over the images and noise that never changes."""
        u = (batch.sample_indices.double() * GOLDEN + 0.5) % 1  # any number of images in a row covers (0, 1) evenly
        noise = self._noise(Stream.VALIDATION, batch.sample_indices, dtype=batch.images.dtype)
        shown = self._conditions.of(batch.labels, batch.attributes)
        x0, sigma = (
            self._codec.clean(batch, draw=1),
            _per_image(self.process.draw_sigma(u), batch),
        )  # draw 0 is that of training
        return {"loss": self.process.loss(networks["denoiser"], x0, sigma=sigma, noise=noise, cond=shown)}

    def denoise(self, networks: Networks, labels: Tensor, attributes: Tensor | None = None) -> Denoise:
        """The estimate of the clean image given its condition: what a better model is guided away from."""
        return denoiser(networks["denoiser"], self.process.scales, self._conditions.of(labels, attributes))

    def generate(
        self,
        networks: Networks,
        seeds: Tensor,
        labels: Tensor,
        *,
        attributes: Tensor | None = None,
        sampler: SamplerConfig,
        guide: Denoise | None = None,
    ) -> Tensor:
        """Images [B, C, H, W] from noise keyed by the seeds. `guide`: the guide model, for autoguidance."""
        make = self.generator(networks, labels, attributes=attributes, sampler=sampler, guide=guide)
        x0 = make(self.noise(seeds, Stream.SAMPLE_START), lambda draw: self.noise(seeds, Stream.SAMPLE_STEP, draw))
        return self.images(x0)

    def generator(
        self,
        networks: Networks,
        labels: Tensor,
        *,
        attributes: Tensor | None = None,
        sampler: SamplerConfig,
        guide: Denoise | None = None,
    ) -> Generator:
        """The denoiser and the sampler that `generate` joins, for whoever wants to come between them."""
        return build_generator(
            sampler,
            self.process,
            networks["denoiser"],
            condition=self._conditions.of(labels, attributes),
            hidden=self._conditions.of(torch.full_like(labels, -1)),
            guide=guide,
        )

    def bound(
        self, networks: Networks, batch: Batch, *, variance: Literal["small", "large", "learned"], clip: float | None
    ) -> Bound:
        """The variational bound on the images' code length, labels shown; its noise belongs to (index, timestep).

        Raises ValueError for a process without discrete timesteps.
        """
        if self.process.table is None:
            raise ValueError("the bound is a sum over DDPM's timesteps: it needs levels.kind=ddpm")
        condition = self._conditions.of(batch.labels, batch.attributes)
        learned = LearnedVariance(networks["denoiser"], self.process.scales, condition)
        plain = denoiser(networks["denoiser"], self.process.scales, condition)
        denoise = learned.denoise if variance == "learned" else plain
        return bits_per_dimension(
            clipped(denoise, bound=clip) if clip else denoise,
            self._codec.clean(batch, draw=1),
            self.process.table,
            noise=lambda t: self.noise(batch.sample_indices, Stream.VALIDATION, draw=1 + t),
            place=learned.place if variance == "learned" else lambda: float(variance == "large"),
        )

    def noise(self, seeds: Tensor, stream: Stream, draw: int = 0) -> Tensor:
        """Noise [B, d, h, w] of each seed, of the process's kind and of the shape that the network sees."""
        return self._noise(stream, seeds, draw=draw)

    def images(self, x0: Tensor) -> Tensor:
        """Images [B, C, H, W] of what the network sees: the same, or decoded latents."""
        return self._codec.images(x0)

    def _noise(self, stream: Stream, numbers: Tensor, *, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        if self._cfg.noise == "uniform":
            return 2 * uniform(self._seed, stream, numbers, shape=self._shape, draw=draw, dtype=dtype) - 1
        return normal(self._seed, stream, numbers, shape=self._shape, draw=draw, dtype=dtype)

    def _dropped(self, batch: Batch) -> Tensor | None:
        """The condition with whole images' labels and single attributes hidden at random."""
        labels, attributes, draws = batch.labels, batch.attributes, batch.draws
        if "hide_all" in draws:
            labels = hide_labels(labels, draws["hide_all"], share=self._cfg.label_dropout, unknown=-1)
        if attributes is not None and "hide_each" in draws:
            attributes = hide_labels(attributes, draws["hide_each"], share=self._cfg.attribute_dropout, unknown=-1)
        if attributes is not None and "hide_all" in draws:
            attributes = hide_labels(attributes, draws["hide_all"], share=self._cfg.label_dropout, unknown=-1)
        return self._conditions.of(labels, attributes)


def _per_image(sigma: Tensor, batch: Batch) -> Tensor:
    """sigma [B] in the precision of the images, [B, 1, 1, 1]."""
    return sigma.to(batch.images.dtype)[:, None, None, None]
