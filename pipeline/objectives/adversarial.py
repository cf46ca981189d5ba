"""A generator and a discriminator: the baseline of the adversarial kind, trained in turn by the same loop."""

import math
from typing import Any

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
from pipeline.models.stylegan import StyleGenerator, seed_noise
from pipeline.objectives.ada import adjusted, augment, draws
from pipeline.objectives.condition import Conditions
from pipeline.objectives.objective import Mix, Networks
from pipeline.runtime.random import Stream, normal, uniform

PATH_DECAY = 0.01  # share of the newest in the mean path length (Karras et al. 2020, appendix B)
STYLE_DECAY, STYLES = 0.002, 64  # of the average style, and z of which it is taken in every step
REAL, FAKE = 0, 1  # draws of ADA


class GameState(nn.Module):
    """Numbers of a game that training moves, saved with the networks: ADA's p, the signs of real scores since it last
    changed, and the mean path length."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.register_buffer("probability", torch.tensor(probability))
        self.register_buffer("signs", torch.zeros(()))
        self.register_buffer("path_length", torch.zeros(()))


class Adversarial:
    """The game of Goodfellow et al. (2014) or Arjovsky et al. (2017), with what StyleGAN2 and ADA add to it.

    R1: Mescheder et al. 2018, equation 9. Path length: Karras et al. 2020, arXiv:1912.04958, equation 4. Augmentation:
    see `pipeline.objectives.ada`.
    """

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Networks are initialised from torch's generator as it stands."""
        if not isinstance(cfg.model, StyleGANConfig):
            raise TypeError(f"a game needs model.kind=stylegan, not {cfg.model.kind}")
        self._seed, self._latent, self._game = cfg.seed, cfg.model.latent, cfg.adversarial
        self._ada, self._batch = cfg.adversarial.ada, cfg.train.global_batch
        self._conditions = Conditions(cfg, manifest)
        shape, counts = manifest.layout.shape, (self._conditions.classes, self._conditions.attributes)
        self.networks: dict[str, nn.Module] = {
            "discriminator": StyleDiscriminator(cfg.model, shape, classes=counts[0], attributes=counts[1]).to(
                memory_format=torch.channels_last  # type: ignore[call-overload]  # as `build_network` has it
            ),
            "generator": build_network(cfg.model, shape=shape, classes=counts[0], attributes=counts[1]),
            "game": GameState(self._ada.start if self._ada.enabled else 0.0),
        }
        self._layers = self._generator.layer_count
        seed_noise(self.networks["generator"], seed=cfg.seed)
        self.trained: tuple[str, ...] = ("discriminator", "generator")
        self.ema_networks: tuple[str, ...] = ("generator",)

    def draws(self, sample_indices: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """None: every draw of this objective has the size of an image or a latent, and is made on the device."""
        return {}

    def loss(self, name: str, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """The loss of the generator or of the discriminator, [B]; an index has the same latent in both turns."""
        condition = self._conditions.of(batch.labels, batch.attributes)
        return (self._of_generator if name == "generator" else self._of_discriminator)(networks, batch, condition)

    def variant(self, name: str, batch: Batch) -> bool:
        """Whether the penalty of network `name`, which may be computed every n-th step alone, is part of this one."""
        game = self._game
        if name == "generator":
            return bool(game.path_length) and self._due(batch, game.path_every)
        return bool(game.gradient_penalty or game.r1_gamma) and self._due(batch, game.penalty_every)

    def _of_generator(self, networks: Networks, batch: Batch, condition: Tensor | None) -> dict[str, Tensor]:
        shift = None
        if measured := self.variant("generator", batch):
            size = (len(batch.sample_indices), self._layers, self._latent)
            shift = torch.zeros(size, dtype=batch.images.dtype, device=batch.images.device, requires_grad=True)
        made = self._made(networks, batch, condition, shift=shift)
        score = networks["discriminator"](
            self._seen(made, batch.sample_indices, FAKE), condition, sample_indices=batch.sample_indices
        )
        loss = {"non_saturating": softplus(-score), "minimax": -softplus(score), "wasserstein": -score}[self._game.loss]
        if not self._game.path_length:
            return {"loss": loss}
        length = (
            self._length(made, shift, batch.sample_indices)
            if measured and shift is not None
            else torch.zeros_like(loss)
        )
        penalty = self._game.path_length * (length - self._state("path_length")).square() if measured else length
        # Counted n times where they are computed every n-th step: their means over steps are then those of all.
        length, penalty = length * self._game.path_every, penalty * self._game.path_every
        return {"loss": loss + penalty, "path_length": length, "path_penalty": penalty}

    def _of_discriminator(self, networks: Networks, batch: Batch, condition: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad():
            made = self._made(networks, batch, condition)
            parts = [self._seen(batch.images, batch.sample_indices, REAL), self._seen(made, batch.sample_indices, FAKE)]
            game = self._game
            weight, penalised = game.gradient_penalty or game.r1_gamma, self.variant("discriminator", batch)
            if penalised and game.gradient_penalty:
                share = uniform(self._seed, Stream.PENALTY, batch.sample_indices, shape=(1, 1, 1)).to(made.dtype)
                parts.append(torch.lerp(parts[1], parts[0], share))
        # One call with all parts: a DDP wrapper must see each backward pass preceded by one forward pass.
        images = torch.cat(parts).requires_grad_(penalised)
        each = None if condition is None else torch.cat([condition] * len(parts))
        scores = networks["discriminator"](
            images, each, sample_indices=torch.cat([batch.sample_indices] * len(parts))
        ).chunk(len(parts))
        real, fake = scores[:2]
        penalty = torch.zeros_like(real)
        if penalised:
            place = 2 if game.gradient_penalty else 0
            (gradient,) = torch.autograd.grad(scores[place].sum(), images, create_graph=True)
            squared = gradient.chunk(len(parts))[place].square().sum(dim=(1, 2, 3))
            excess = ((squared + 1e-12).sqrt() - 1).square() if game.gradient_penalty else squared / 2
            penalty = weight * game.penalty_every * excess
        loss = fake - real if game.loss == "wasserstein" else softplus(-real) + softplus(fake)
        values = {"loss": loss + penalty, "real": real, "fake": fake, "penalty": penalty, "sign": real.detach().sign()}
        if self._ada.enabled:
            values["augmented"] = self._state("probability").expand_as(real)
        return values

    @torch.no_grad()
    def adapt(self, name: str, sums: dict[str, Tensor], *, step: int) -> None:
        """p after the discriminator's turn; the mean path length and the average style after the generator's.

        Sums that are not finite belong to a step that was skipped, and change nothing.
        """
        if name == "discriminator":
            if self._ada.enabled and self._ada.target is not None:
                self._adjust(sums["sign"], step=step)
            return
        if self._game.path_length and step % self._game.path_every == 0:
            mean = self._state("path_length")
            newest = sums["path_length"] / (self._batch * self._game.path_every)
            mean.lerp_(torch.where(newest.isfinite(), newest.to(mean.dtype), mean), PATH_DECAY)
        generator = self._generator
        numbers = torch.arange(step * STYLES, (step + 1) * STYLES, device=generator.w_average.device)
        labels = numbers % self._conditions.classes if self._conditions.classes else torch.full_like(numbers, -1)
        z = self._z(numbers, generator.w_average.dtype, draw=1)
        w = generator.styles(z, self._conditions.of(labels)).mean(dim=0)
        generator.w_average.lerp_(w.to(generator.w_average.dtype), STYLE_DECAY if step else 1.0)

    def _adjust(self, signs: Tensor, *, step: int) -> None:
        ada, gathered, p = self._ada, self._state("signs"), self._state("probability")
        gathered.add_(torch.nan_to_num(signs).to(gathered.dtype))
        if (step + 1) % ada.every:
            return
        images = ada.every * self._batch
        p.copy_(adjusted(p, gathered / images, target=ada.target or 0.0, amount=images / (1000 * ada.kimg)))
        gathered.zero_()

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
        sampler: SamplerConfig,
        guide: Denoise | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Images [B, C, H, W] in one step, whatever the sampler; `sampler.truncation` pulls styles to their average."""
        condition = self._conditions.of(labels, attributes)
        return networks["generator"](self.latents(seeds), condition, sample_indices=seeds, psi=sampler.truncation)

    def latents(self, seeds: Tensor) -> Tensor:
        """z [B, latent] of the images of `seeds`."""
        return self._z(seeds, torch.float32)

    def between(
        self, starts: Tensor, asked: tuple[Tensor, Tensor | None], *, seeds: Tensor, mix: Mix, space: str, psi: float
    ) -> Tensor:
        """Images from each z to the next one, mixed as z or as styles w; conditions and noise are the row's."""
        generator, condition = self._generator, self._conditions.of(*asked)
        first, second = starts[:-1], starts[1:]
        if space == "w":
            first, second = generator.styles(first, condition), generator.styles(second, condition)
        mixed = mix(first, second).transpose(0, 1)
        frames, (rows, width) = mixed.shape[1], (mixed.shape[0], mixed.shape[2])
        each = None if condition is None else condition.repeat_interleave(frames, 0)
        flat = mixed.reshape(rows * frames, width)
        w = flat if space == "w" else generator.styles(flat, each)
        return generator.synthesis(generator.truncated(w, psi), sample_indices=seeds.repeat_interleave(frames))

    @property
    def _generator(self) -> StyleGenerator:
        found = self.networks["generator"]
        if not isinstance(found, StyleGenerator):
            raise TypeError(f"a game needs a StyleGenerator, not {type(found).__name__}")
        return found

    def _state(self, name: str) -> Tensor:
        return self.networks["game"].get_buffer(name)

    def _due(self, batch: Batch, every: int) -> bool:
        """Whether something that happens every `every` steps happens in this one. The host knows without asking."""
        return batch.newest // self._batch % every == 0

    def _z(self, numbers: Tensor, dtype: torch.dtype, *, draw: int = 0) -> Tensor:
        return normal(self._seed, Stream.LATENT, numbers, shape=(self._latent,), draw=draw, dtype=dtype)

    def _made(
        self, networks: Networks, batch: Batch, condition: Tensor | None, *, shift: Tensor | None = None
    ) -> Tensor:
        """Generated images for the batch's indices, some of two styles."""
        sample_indices, dtype, mixed = batch.sample_indices, batch.images.dtype, None
        if share := self._game.style_mixing:
            chosen, place = uniform(self._seed, Stream.STYLE_MIX, sample_indices, shape=(2,)).unbind(1)
            first = 1 + (place * (self._layers - 1)).long()  # each has a layer at least
            other = normal(self._seed, Stream.STYLE_MIX, sample_indices, shape=(self._latent,), draw=1, dtype=dtype)
            mixed = (other, torch.where(chosen < share, first, self._layers))
        extras: dict[str, Any] = {} if shift is None else {"shift": shift}
        extras |= {} if mixed is None else {"mixed": mixed}
        return networks["generator"](self._z(sample_indices, dtype), condition, sample_indices=sample_indices, **extras)

    def _seen(self, images: Tensor, sample_indices: Tensor, draw: int) -> Tensor:
        """What the discriminator sees of images."""
        if not self._ada.enabled:
            return images
        return augment(
            images, draws(self._seed, sample_indices, draw=draw), self._state("probability"), groups=self._ada.groups
        )

    def _length(self, made: Tensor, shift: Tensor, sample_indices: Tensor) -> Tensor:
        """|J^T y| of each image, [B], y normal noise of the image's size: root mean square over the layers' styles."""
        noise = normal(self._seed, Stream.PATH, sample_indices, shape=tuple(made.shape[1:])).to(made.dtype)
        noise = noise / math.sqrt(made.shape[2] * made.shape[3])
        (gradient,) = torch.autograd.grad((made * noise).sum(), shift, create_graph=True)
        return (gradient.square().sum(dim=2).mean(dim=1) + 1e-12).sqrt()
