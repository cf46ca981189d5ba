"""Images from a class, through diffusers. This file is copied into exported folders: it needs diffusers alone.

from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe(class_labels=[0, 1, 2], guidance_scale=2.0).images[0].save("image.png")
"""

import inspect
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput


class LabelPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers knows its pipelines by their base class
    """A denoising network, a scheduler, and an autoencoder where the network works on latents."""

    _optional_components = ["unet", "transformer", "vae"]  # as diffusers declares it

    def __init__(
        self,
        scheduler: Any,
        unet: Any = None,
        transformer: Any = None,
        vae: Any = None,
        classes: int = 0,
        start: float = 1.0,
        flow_start: float | None = None,
        steps: int = 50,
        guidance: float = 1.0,
        eta: float = 0.0,
    ) -> None:
        """`classes` is also the number of the label "unknown"; `start` the deviation of the first x; `eta` DDIM's."""
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer, vae=vae)
        self.register_to_config(
            classes=classes, start=start, flow_start=flow_start, steps=steps, guidance=guidance, eta=eta
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int] | None = None,
        *,
        batch_size: int = 1,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        noise: torch.Tensor | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Images of the classes asked for, or `batch_size` images of a model without classes.

        Args:
            class_labels: a class number for each image; the number of classes means any.
            guidance_scale: 1 is the model itself; None as it was exported with.
            num_inference_steps: None as it was exported with.
            generator: of the noise at the start, and of what a scheduler adds on the way.
            noise: standard normal [B, C, H, W] to start from; None draws it from `generator`.
            output_type: "pil", "np" [B, H, W, C] in [0, 1] or "pt" [B, C, H, W] in [-1, 1], not clipped.
        """
        model = self.unet if self.unet is not None else self.transformer
        scale = self.config.guidance if guidance_scale is None else guidance_scale
        labels = None
        if self.config.classes:
            if class_labels is None:
                class_labels = [self.config.classes] * batch_size
            labels = torch.as_tensor(class_labels, device=self._execution_device)
            batch_size = len(labels)
        size, channels = model.config.sample_size, model.config.in_channels
        if noise is None:
            noise = torch.randn(batch_size, channels, size, size, generator=generator)
        x = noise.to(self._execution_device, model.dtype) * self.config.start
        self._set_steps(num_inference_steps or self.config.steps)
        # A clipped estimate of the image then also says in which direction the noise lies.
        offered = {"use_clipped_model_output": True, "eta": self.config.eta, "generator": generator}
        read = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in offered.items() if name in read}
        for t in self.progress_bar(self.scheduler.timesteps):
            timesteps = t.to(x.device).expand(batch_size)
            output = self._predict(model, self.scheduler.scale_model_input(x, t), timesteps, labels=labels, scale=scale)
            x = self.scheduler.step(output, t, x, **extra).prev_sample
        return ImagePipelineOutput(images=self._finish(x, output_type))

    def _set_steps(self, steps: int) -> None:
        if self.config.flow_start is None:
            self.scheduler.set_timesteps(steps)
            return
        self.scheduler.scale_model_input = lambda x, _: x  # it has none
        self.scheduler.set_timesteps(sigmas=self.config.flow_start * (1 - np.arange(steps) / steps))

    def _predict(self, model: Any, x: Any, t: Any, *, labels: torch.Tensor | None, scale: float) -> Any:
        """The network's output under classifier-free guidance; variance channels are those with the label."""
        if labels is None:
            return model(x, t).sample
        output = model(x, t, class_labels=labels).sample
        if scale == 1:
            return output
        unknown = model(x, t, class_labels=torch.full_like(labels, self.config.classes)).sample
        guided, variance = unknown + scale * (output - unknown), output[:, x.shape[1] :]
        return torch.cat([guided[:, : x.shape[1]], variance], dim=1)

    def _finish(self, x: Any, output_type: str) -> Any:
        if self.vae is not None:
            like = {"device": x.device, "dtype": x.dtype}
            mean = torch.tensor(self.vae.config.latents_mean, **like)[:, None, None]
            std = torch.tensor(self.vae.config.latents_std, **like)[:, None, None]
            x = self.vae.decode(x * std + mean).sample
        if output_type == "pt":
            return x
        pixels = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return pixels if output_type == "np" else self.numpy_to_pil(pixels)
