"""One step back in time."""

import pytest
import torch
from torch import Tensor

from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, GuidanceConfig, SamplerConfig
from pipeline.diffusion import posterior, preconditioning
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import build_generator

LEVELS = DDPMLevels(kind="ddpm", timesteps=200)
SIGMAS = torch.tensor(LEVELS.sigmas, dtype=torch.float64)
BETAS = torch.tensor(LEVELS.betas, dtype=torch.float64)
ALPHA_BAR = (1 - BETAS).cumprod(dim=0)


def test_variances_are_ddpms_after_its_scaling() -> None:
    after, before = SIGMAS[:-1], SIGMAS[1:]
    scaling = ALPHA_BAR[:-1]
    beta_tilde = (1 - ALPHA_BAR[:-1]) / (1 - ALPHA_BAR[1:]) * BETAS[1:]
    torch.testing.assert_close(scaling * posterior.small_variance(before, after), beta_tilde)
    torch.testing.assert_close(scaling * posterior.large_variance(before, after), BETAS[1:])


def test_mean_and_small_variance_follow_from_bayes_rule() -> None:
    """Noise added in two independent parts: x_next = x0 + a, x = x_next + b; x_next given both ends."""
    sigma, sigma_next = torch.tensor(2.0), torch.tensor(0.8)
    near, far = 1 / sigma_next**2, 1 / (sigma**2 - sigma_next**2)
    x, x0 = torch.tensor(1.7), torch.tensor(-0.4)
    mean = posterior.posterior_mean(x, x0, sigma=sigma, sigma_next=sigma_next)
    torch.testing.assert_close(mean, (near * x0 + far * x) / (near + far))
    torch.testing.assert_close(posterior.small_variance(sigma, sigma_next), 1 / (near + far))


def test_the_learned_variance_reaches_from_small_to_large() -> None:
    process = build_process(DiffusionConfig(parametrisation="eps", levels=LEVELS, learned_variance=True))

    def network(x: Tensor, _: Tensor, __: Tensor | None) -> Tensor:
        raw = torch.tensor([-1.0, 1.0, 0.0], dtype=x.dtype).view(3, 1, 1, 1).expand_as(x)
        return torch.cat([torch.zeros_like(x), raw], dim=1)

    learned = posterior.LearnedVariance(network, process.scales)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        learned.denoise(x, SIGMAS[90]), preconditioning.denoiser(network, process.scales)(x, SIGMAS[90])
    )
    small, large = (f(SIGMAS[90], SIGMAS[80]) for f in (posterior.small_variance, posterior.large_variance))
    variance = learned.variance(SIGMAS[90], SIGMAS[80])[:, 0, 0, 0]
    torch.testing.assert_close(variance, torch.stack([small, large, (small * large).sqrt()]))


@pytest.mark.parametrize(("raw", "fixed"), [(-1.0, "small"), (1.0, "large")])
def test_a_network_that_says_small_or_large_samples_as_the_fixed_variance(raw: float, fixed: str) -> None:
    process = build_process(DiffusionConfig(parametrisation="v", levels=LEVELS, learned_variance=True))

    def network(x: Tensor, _: Tensor, __: Tensor | None) -> Tensor:
        return torch.cat([x.tanh(), torch.full_like(x, raw)], dim=1)

    noise = torch.randn(21, 2, 1, 4, 4, dtype=torch.float64)
    images = [
        build_generator(SamplerConfig(kind="ddpm", steps=20, variance=variance), process, network)(
            noise[20], lambda k: noise[k]
        )
        for variance in ("learned", fixed)
    ]
    torch.testing.assert_close(images[0], images[1])


def test_guidance_leads_the_mean_and_leaves_the_variance_of_the_condition() -> None:
    """Here the means agree, so guidance changes nothing; a variance that it moved, or took from the other, would."""
    process = build_process(DiffusionConfig(parametrisation="v", levels=LEVELS, learned_variance=True))

    def network(x: Tensor, _: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        raw = torch.where(labels == 0, -1.0, 1.0).to(x).view(-1, 1, 1, 1).expand_as(x)
        return torch.cat([x.tanh(), raw], dim=1)

    noise, label = torch.randn(21, 2, 1, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    images = [
        build_generator(
            SamplerConfig(kind="ddpm", steps=20, variance=variance, guidance=GuidanceConfig(scale=scale)),
            process,
            network,
            condition=label,
            hidden=label + 1,
        )(noise[20], lambda k: noise[k])
        for variance, scale in (("learned", 3.0), ("small", 1.0))
    ]
    torch.testing.assert_close(images[0], images[1])
