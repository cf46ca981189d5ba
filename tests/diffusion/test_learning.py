"""A small network learns the mixture by every parametrisation, and samples from it are the mixture again."""

from typing import Any

import pytest
import torch
from oracles import Mixture
from torch import Tensor, nn

from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, SamplerConfig
from pipeline.diffusion import variational
from pipeline.diffusion.build import Process, build_balance, build_process
from pipeline.diffusion.build_sampler import build_generator
from pipeline.diffusion.posterior import LearnedVariance
from pipeline.diffusion.preconditioning import denoiser

DATA = Mixture(weights=(0.6, 0.4), means=(-0.5, 0.5), stds=(0.1, 0.2))
COSINE = DDPMLevels(kind="ddpm", schedule="cosine", timesteps=200)


class PixelNetwork(nn.Module):
    """Every pixel on its own, as in the data; noise known by ln(sigma) / 4."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(7, 48, 1), nn.SiLU(), nn.Conv2d(48, 48, 1), nn.SiLU(), nn.Conv2d(48, outputs, 1)
        )

    def forward(self, x: Tensor, cond: Tensor, _: Tensor | None = None) -> Tensor:
        """x [B, 1, H, W], cond [B] -> [B, outputs, H, W]."""
        angles = cond[:, None] * torch.tensor([1.0, 3.0])
        known = torch.cat([cond[:, None], cond[:, None] ** 2, angles.sin(), angles.cos()], dim=1)
        planes: Tensor = self.inner(torch.cat([x, known[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1))
        return planes


def _trained(cfg: DiffusionConfig, *, steps: int = 400) -> tuple[PixelNetwork, Process]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network, process, balance = PixelNetwork(1 + cfg.learned_variance), build_process(cfg), build_balance(cfg)
    optimiser = torch.optim.Adam([*network.parameters(), *balance.parameters()], lr=0.02)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        x0 = DATA.sample((256, 1, 2, 4), generator).float()
        sigma = process.draw_sigma(torch.rand(256, generator=generator)).view(-1, 1, 1, 1)
        noise = torch.randn(x0.shape, generator=generator)
        loss = balance(process.loss(network, x0, sigma=sigma, noise=noise), sigma).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval(), process


@torch.no_grad()
def _distance(network: PixelNetwork, process: Process, **sampler: Any) -> float:
    """Wasserstein-1 between samples and data."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(64, 1, 8, 8, generator=generator)
    generate = build_generator(SamplerConfig.model_validate(sampler), process, network)
    samples = generate(noise, lambda _: torch.randn(noise.shape, generator=generator)).flatten().sort().values
    truth = DATA.sample((64 * 64 * 16,), generator).sort().values[8::16]
    return float((samples - truth).abs().mean())


@pytest.mark.parametrize(("settings", "steps"), [
    ({"parametrisation": "edm"}, 300),
    ({"parametrisation": "edm", "learned_uncertainty": True}, 300),
    ({"parametrisation": "v", "weighting": "min_snr"}, 400),
    ({"parametrisation": "flow", "levels": {"kind": "logit_normal"}, "time_input": "log_sigma"}, 500),
    ({"parametrisation": "x0", "levels": {"kind": "log_normal", "sigma_min": 0.03}}, 400),  # errors grow as 1 / sigma
    ({"parametrisation": "eps", "levels": {"kind": "ddpm", "schedule": "linear"}, "time_input": "log_sigma"}, 700),
], ids=["edm", "edm-uncertainty", "v-min_snr", "flow", "x0", "eps-ddpm"])  # fmt: skip
def test_every_parametrisation_learns_the_data(settings: dict[str, Any], steps: int) -> None:
    network, process = _trained(DiffusionConfig.model_validate(settings), steps=steps)
    assert _distance(network, process, kind="heun", steps=32, sigmas={"kind": "exponential"}) < 0.08


def test_a_learned_variance_shortens_the_code() -> None:
    network, process = _trained(DiffusionConfig(
        parametrisation="eps", levels=COSINE, time_input="log_sigma", learned_variance=True, vlb_share=0.01
    ))  # fmt: skip
    assert process.table is not None
    x0 = DATA.sample((16, 1, 16, 16), torch.Generator().manual_seed(3)).float()

    def noise(t: int) -> Tensor:
        return torch.randn(x0.shape, generator=torch.Generator().manual_seed(t))

    learned = LearnedVariance(network, process.scales)
    with torch.no_grad():
        bits = {
            place: float(
                variational.bits_per_dimension(
                    denoiser(network, process.scales), x0, process.table, noise=noise, place=lambda p=place: p
                ).total.mean()
            )
            for place in (0.0, 1.0)
        }
        best = variational.bits_per_dimension(learned.denoise, x0, process.table, noise=noise, place=learned.place)
    assert best.total.mean() < min(bits.values())
    assert _distance(network, process, kind="ddpm", variance="learned", steps=100, sigmas={"kind": "ddpm"}) < 0.06
