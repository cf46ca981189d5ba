"""Six parametrisations are six ways to say the same thing."""

import pytest
import torch
from oracles import Mixture
from torch import Tensor

from pipeline.diffusion import preconditioning as pre

DATA = Mixture()
SIGMAS = torch.tensor([0.01, 0.1, 0.5, 2.0, 30.0], dtype=torch.float64).view(-1, 1, 1, 1)


def _noise_and_signal(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """DDPM's coefficients of noise and signal."""
    alpha_bar = 1 / (1 + sigma**2)
    return (1 - alpha_bar).sqrt(), alpha_bar.sqrt()


# Networks as the papers define their targets, each answering in its own coordinates z about x0 and noise given z.
def _eps(z: Tensor, sigma: Tensor) -> Tensor:
    noise, signal = _noise_and_signal(sigma)
    return (z - signal * DATA.estimate(z, signal=signal, noise=noise)) / noise


def _x0(z: Tensor, sigma: Tensor) -> Tensor:
    noise, signal = _noise_and_signal(sigma)
    return DATA.estimate(z, signal=signal, noise=noise)


def _v(z: Tensor, sigma: Tensor) -> Tensor:
    noise, signal = _noise_and_signal(sigma)
    return signal * _eps(z, sigma) - noise * _x0(z, sigma)


def _flow(z: Tensor, sigma: Tensor) -> Tensor:
    time = sigma / (1 + sigma)
    x0 = DATA.estimate(z, signal=1 - time, noise=time)
    return (z - (1 - time) * x0) / time - x0


def _x0_flow(z: Tensor, sigma: Tensor) -> Tensor:
    time = sigma / (1 + sigma)
    return DATA.estimate(z, signal=1 - time, noise=time)


def _edm(z: Tensor, sigma: Tensor) -> Tensor:
    data, x = 0.5, z * (sigma**2 + 0.25).sqrt()
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
    return (DATA.denoise(x, sigma) - skip * x) / out


PERFECT = {"eps": _eps, "x0": _x0, "x0_flow": _x0_flow, "v": _v, "flow": _flow, "edm": _edm}


@pytest.mark.parametrize("name", PERFECT)
def test_a_perfect_network_of_any_parametrisation_gives_the_same_x0(name: str) -> None:
    x = DATA.sample((5, 1, 4, 4), torch.Generator().manual_seed(1)) + SIGMAS
    scales = pre.precondition(pre.parametrisation_of(name, 0.5), pre.log_sigma)
    denoise = pre.denoiser(lambda z, cond, _: PERFECT[name](z, (4 * cond).exp().view(-1, 1, 1, 1)), scales)
    torch.testing.assert_close(denoise(x, SIGMAS), DATA.denoise(x, SIGMAS), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0])
def test_edm_inputs_and_targets_have_unit_variance(sigma_data: float) -> None:
    row = pre.edm(SIGMAS, sigma_data=sigma_data)
    torch.testing.assert_close(row.c_in**2 * (sigma_data**2 + SIGMAS**2), torch.ones_like(SIGMAS))
    target_variance = ((1 - row.c_skip) ** 2 * sigma_data**2 + row.c_skip**2 * SIGMAS**2) / row.c_out**2
    torch.testing.assert_close(target_variance, torch.ones_like(SIGMAS))


def test_v_is_edm_with_unit_data_up_to_sign() -> None:
    v, edm = pre.v(SIGMAS), pre.edm(SIGMAS, sigma_data=1.0)
    torch.testing.assert_close(torch.stack(v), torch.stack([edm.c_skip, -edm.c_out, edm.c_in]))


def test_timestep_inverts_the_table_and_runs_evenly_between_its_entries() -> None:
    table = torch.tensor([0.01, 0.1, 1.0, 4.0, 200.0], dtype=torch.float64)
    assert pre.timestep(table, table=table).tolist() == [0, 1, 2, 3, 4]
    between = torch.tensor([(0.1 * 1.0) ** 0.5, 1e-5, 1e5], dtype=torch.float64)
    torch.testing.assert_close(pre.timestep(between, table=table), torch.tensor([1.5, 0.0, 4.0], dtype=torch.float64))
    assert pre.timestep(table.float().view(5, 1, 1, 1), table=table).shape == (5, 1, 1, 1)


def test_flow_time_is_a_thousand_times_t() -> None:
    torch.testing.assert_close(pre.flow_time(torch.tensor([0.25, 1.0, 3.0])), torch.tensor([200.0, 500.0, 750.0]))


def test_float64_sigmas_leave_images_in_float32_and_extra_channels_out() -> None:
    def network(x: Tensor, cond: Tensor, _: Tensor | None) -> Tensor:
        assert x.dtype == cond.dtype == torch.float32 and cond.shape == (3,)
        return torch.cat([x, x], dim=1).bfloat16()

    scales = pre.precondition(pre.parametrisation_of("edm", 0.5), pre.log_sigma)
    x0 = pre.denoiser(network, scales)(torch.randn(3, 2, 4, 4), torch.tensor(1.5, dtype=torch.float64))
    assert x0.dtype == torch.float32 and x0.shape == (3, 2, 4, 4)


def test_a_name_that_nobody_knows_is_an_error():
    with pytest.raises(
        ValueError, match="found the parametrisation 'vv', expected one of eps, x0, x0_flow, v, flow, edm"
    ):
        pre.parametrisation_of("vv", 0.5)
