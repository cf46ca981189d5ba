"""A toy game on the one loop: an encoder-decoder against a critic. It stands for every two-player objective."""

import torch
from torch import Tensor, nn

from pipeline.config.schema import Config
from pipeline.data.shards import Manifest
from pipeline.runtime.random import Stream, normal


class TwoPlayers:
    """The maker turns noise into images, the critic tells them from real ones (hinge loss)."""

    def __init__(self, cfg: Config, manifest: Manifest) -> None:
        """Small perceptrons on flattened images."""
        self.seed, self.shape = cfg.seed, manifest.layout.shape
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.networks: dict[str, nn.Module] = {
            "maker": nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, size), nn.Tanh()),
            "critic": nn.Sequential(nn.Linear(size, 16), nn.SiLU(), nn.Linear(16, 1)),
        }
        self.players, self.averaged = ("critic", "maker"), ("maker",)

    def loss(self, player, networks, batch):
        """Hinge loss of the critic; the maker wants to be taken for real."""
        z = normal(self.seed, Stream.LATENT, batch.visits, shape=(4,), dtype=batch.images.dtype)
        made = networks["maker"](z)
        if player == "maker":
            return {"loss": -networks["critic"](made)[:, 0]}
        real = networks["critic"](batch.images.flatten(1))[:, 0]
        fake = networks["critic"](made.detach())[:, 0]
        return {"loss": (1 - real).relu() + (1 + fake).relu(), "real": real}

    def validate(self, networks, batch) -> dict[str, Tensor]:
        """The critic's opinion of real images."""
        return {"real": networks["critic"](batch.images.flatten(1))[:, 0]}

    def generate(self, networks, seeds, labels, *, sampler) -> Tensor:  # noqa: ARG002 (neither classes nor a sampler)
        """Images of the maker."""
        z = normal(self.seed, Stream.LATENT, seeds, shape=(4,))
        return networks["maker"](z).reshape(-1, *self.shape).to(torch.float32)
