"""What an objective is: everything the training loop and the sampling job need to know about one."""

from collections.abc import Callable, Hashable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.data.batches import Batch
from pipeline.diffusion.preconditioning import Denoise

Networks = Mapping[str, Callable[..., Tensor]]


class Objective(Protocol):
    """Something to optimise.

    `networks` are all modules with weights, by name. `trained` are names of networks that are optimised one after the
    other within a step, each with an optimiser of its own. `ema_networks` are those of which an EMA is kept and from
    which images are made.
    """

    networks: dict[str, nn.Module]
    trained: tuple[str, ...]
    ema_networks: tuple[str, ...]

    def draws(self, sample_indices: Tensor) -> dict[str, Tensor]:
        """Random numbers of whole images [B, ...] by name, for image numbers [B] on the CPU.

        Threads that read ahead call it, and `loss` finds them in `batch.draws`: a GPU would spend more time on
        starting the many small operations than on the numbers.
        """
        ...

    def loss(self, name: str, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Values per image, [B] each, as sums would be too late to weigh. "loss" is minimised over network `name`.

        `networks` are those of this object as the loop has prepared them: call these, not your own. Random draws are
        functions of `batch.sample_indices`, or of `batch.draws`. Nothing here waits for the device.
        """
        ...

    def validate(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Values per image, [B] each, without gradients; sample indices are those of the validation split."""
        ...

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
        """Images [B, C, H, W] in [-1, 1] (not clipped), each a function of its seed and what it was asked for.

        seeds: [B] int64; labels: [B] int64 classes, -1 for no class; attributes: [B, A] int8 of 0, 1 and -1 for
        unknown, None for all unknown; guide: what autoguidance leads away from.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """An objective that makes images out of images: a preview shows both."""

    def reconstructions(self, networks: Networks, batch: Batch) -> tuple[Tensor, ...]:
        """What is shown of each image, side by side, the original first; [B, C, H, W] each, in [-1, 1] or near it."""
        ...


@runtime_checkable
class Adapts(Protocol):
    """An objective with numbers of its own, in buffers of `networks`, that follow what its losses found."""

    def adapt(self, name: str, sums: dict[str, Tensor], *, step: int) -> None:
        """After the update of network `name` with the data of step `step`, from 0, whether it was finite or not.

        `sums` are those over the global batch of what its loss returned: float64 scalars on the device, the same on all
        ranks. Nothing here waits for the device, and every rank does the same.
        """
        ...


@runtime_checkable
class Varies(Protocol):
    """An objective whose loss computes something else in some steps, such as a penalty in every 16th."""

    def variant(self, name: str, batch: Batch) -> Hashable:
        """What the loss of network `name` computes for this batch: one CUDA graph holds the batches of one value.

        The host knows it without asking the device.
        """
        ...


@runtime_checkable
class FromLatents(Protocol):
    """An objective that makes an image of one vector at once: what lies between two vectors can be shown."""

    def latents(self, seeds: Tensor) -> Tensor:
        """The vectors [B, width] that the images of `seeds` [B] are made of."""
        ...

    def between(
        self, starts: Tensor, asked: tuple[Tensor, Tensor | None], *, seeds: Tensor, mix: "Mix", space: str, psi: float
    ) -> Tensor:
        """Images [rows * frames, C, H, W] from each latent of `starts` [rows + 1, width] to the next one.

        `asked` (labels, attributes) and `seeds` are those of each row. `mix` takes the starts and the ends and returns
        [frames, rows, width]. `space`: "z", or "w" for a generator's styles.
        """
        ...


Mix = Callable[[Tensor, Tensor], Tensor]
