"""From one seed to more."""

import math
from functools import partial

import pytest
import torch
from oracles import Gaussian, Mixture
from torch import Tensor

from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, SamplerConfig, SigmaSchedule
from pipeline.diffusion import editing
from pipeline.diffusion.build import build_process
from pipeline.diffusion.build_sampler import Sampler, build_sampler

DATA = Mixture()
GENERATOR = torch.Generator().manual_seed(0)
FIRST, SECOND = torch.randn(2, 3, 1, 32, 32, generator=GENERATOR, dtype=torch.float64)


def _sampler(kind: str = "heun", steps: int = 40) -> Sampler:
    cfg = SamplerConfig(kind=kind, steps=steps, sigmas=SigmaSchedule(kind="exponential"))
    return build_sampler(cfg, build_process(DiffusionConfig()))


def test_spherical_interpolation_keeps_the_length_and_the_ends() -> None:
    between = editing.spherical(FIRST, SECOND, torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(between[0], FIRST)
    torch.testing.assert_close(between[-1], SECOND)
    assert between.shape == (5, 3, 1, 32, 32)
    lengths = between.flatten(2).norm(dim=2) / 32
    assert (lengths - 1).abs().max() < 0.05
    middle = editing.linear(FIRST, SECOND, torch.tensor([0.5], dtype=torch.float64))
    assert middle.std().item() == pytest.approx(math.sqrt(0.5), abs=0.03)


def test_spherical_interpolation_between_equal_noises_is_that_noise() -> None:
    between = editing.spherical(FIRST, FIRST, torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(between, FIRST.expand(3, *FIRST.shape), rtol=1e-6, atol=1e-6)


def test_starting_from_an_image_at_no_noise_is_the_image_and_at_all_noise_forgets_it() -> None:
    image, sampler = Mixture().sample((3, 1, 32, 32), GENERATOR), _sampler()
    rest, x = sampler.from_image(image, FIRST, sigma=0.004)
    torch.testing.assert_close(rest(DATA.denoise, x), image, rtol=0, atol=0.02)
    everything, x = sampler.from_image(image, FIRST, sigma=80.0)
    assert len(everything.sigmas) == len(sampler.sigmas)
    far = everything(DATA.denoise, x)
    torch.testing.assert_close(far, sampler(DATA.denoise, 80 * FIRST), rtol=0, atol=0.3)
    agreement = torch.corrcoef(torch.stack([far.flatten(), image.flatten()]))[0, 1]
    assert abs(float(agreement)) < 0.05


def test_more_noise_keeps_less_of_the_image() -> None:
    image, sampler, data = torch.full((3, 1, 32, 32), 0.9, dtype=torch.float64), _sampler(), Gaussian(mean=0.0)
    kept = []
    for sigma in (0.1, 0.5, 3.0):
        rest, x = sampler.from_image(image, FIRST, sigma=sigma)
        kept.append(float(rest(data.denoise, x).mean()) / 0.9)
        assert kept[-1] == pytest.approx(0.5 / math.sqrt(0.25 + sigma**2), abs=0.05)  # the ODE's own contraction
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("sigma", [0.0, 81.0])
def test_a_start_outside_the_schedule_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="expected above 0 and at most"):
        _sampler().from_image(FIRST, SECOND, sigma=sigma)


def test_the_largest_start_that_a_refusal_names_is_none_that_is_refused() -> None:
    process = build_process(DiffusionConfig(levels=DDPMLevels(kind="ddpm", schedule="cosine", timesteps=500)))
    sampler = build_sampler(SamplerConfig(), process)
    with pytest.raises(ValueError, match="at most") as refused:
        sampler.from_image(FIRST, SECOND, sigma=1e5)
    sampler.from_image(FIRST, SECOND, sigma=float(str(refused.value).split()[-1].removeprefix("schedule's")))


@pytest.mark.parametrize("kind", ["euler", "heun", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_inpainting_keeps_the_known_and_fills_the_rest_from_the_data(kind: str) -> None:
    known, mask = torch.full((3, 1, 32, 32), -0.25, dtype=torch.float64), torch.zeros(32, 32, dtype=torch.float64)
    mask[:, :16] = 1
    sampler = _sampler(kind)
    fresh = torch.randn(40, *known.shape, generator=GENERATOR, dtype=torch.float64)
    result = sampler(editing.inpainted(DATA.denoise, known, mask=mask), sampler.start(FIRST), lambda k: fresh[k])
    torch.testing.assert_close(result[..., :16], known[..., :16], rtol=0, atol=1e-12)
    assert result[..., 16:].std().item() == pytest.approx(float(DATA.sample((10000,), GENERATOR).std()), rel=0.2)


def test_a_strip_runs_from_the_mean_of_the_data_to_the_result() -> None:
    sampler = _sampler()
    noisy, seen = editing.strip(lambda denoise: sampler(denoise, sampler.start(FIRST)), DATA.denoise, frames=6)
    assert seen.shape == (6, 3, 1, 32, 32)
    mean = sum(w * m for w, m in zip(DATA.weights, DATA.means, strict=True))
    assert (seen[0] - mean).abs().max() < 0.1  # at sigma_max nothing but the mean is known
    torch.testing.assert_close(seen[-1], sampler(DATA.denoise, sampler.start(FIRST)))
    torch.testing.assert_close(noisy[-1], seen[-1])
    torch.testing.assert_close(noisy[0], sampler.start(FIRST) / math.sqrt(1 + sampler.sigmas[0].item() ** 2))
    assert all(0.5 < frame.std() < 1.2 for frame in noisy)  # visible at every noise level
    with pytest.raises(ValueError, match="at least 2"):
        editing.strip(partial(_identity, FIRST), DATA.denoise, frames=1)


def _identity(x: Tensor, _: object) -> Tensor:
    return x
