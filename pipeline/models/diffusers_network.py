"""A denoiser of diffusers behind the interface of ours, for networks that ours do not express."""

import torch
from torch import Tensor, nn

from pipeline.config.schema_model import DiffusersConfig
from pipeline.runtime.errors import UserError


class DiffusersNetwork(nn.Module):
    """x [B, C, H, W], noise level [B], condition -> [B, C, H, W], as the model of diffusers computes it."""

    def __init__(
        self,
        cfg: DiffusersConfig,
        shape: tuple[int, int, int],  # noqa: ARG002  # its settings say it
        *,
        classes: int = 0,
        attributes: int = 0,  # noqa: ARG002  # diffusers has none
        outputs: int | None = None,  # noqa: ARG002  # its settings say it
    ) -> None:
        """`cfg.settings` is the model's config.json. Raises `UserError` where diffusers is not installed."""
        super().__init__()
        try:
            import diffusers
        except ImportError as error:
            raise UserError("model.kind=diffusers: diffusers is not installed. Run: pip install diffusers.") from error
        self.cfg, self.classes = cfg, classes
        self.conditional = cfg.condition != "none"
        self.network = getattr(diffusers, cfg.settings["_class_name"]).from_config(cfg.settings)

    def forward(
        self, x: Tensor, noise_cond: Tensor, condition: Tensor | None = None, *, sample_indices: Tensor | None = None
    ) -> Tensor:
        """One evaluation. `sample_indices` is unused: dropout of diffusers is not keyed by images, so not trained."""
        del sample_indices
        if condition is not None:
            condition = torch.where(condition < 0, self.classes, condition)
        out: Tensor = self.network(x, timestep=noise_cond, class_labels=condition).sample
        return out
