"""Error of every sampler against calls of the network, where the right answer is known; and what sampling costs itself.

    python benchmarks/samplers.py

The data is a mixture of normals on the line, whose best denoiser is exact, so all error is the sampler's. The error is
the distance between the distributions of result and data (Wasserstein-1, pixels in [-1, 1]); the last row is what as
many true samples have, below which nothing can be seen. No network, no download; half a minute on one core.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracles import Mixture  # noqa: E402

from pipeline.config.schema_diffusion import DDPMLevels, DiffusionConfig, SamplerConfig  # noqa: E402
from pipeline.diffusion.build import build_process  # noqa: E402
from pipeline.diffusion.build_sampler import build_sampler  # noqa: E402

DATA = Mixture()
IMAGES = (256, 1, 16, 16)
PIXELS = 256 * 16 * 16
CALLS = (8, 16, 32, 64, 128, 256)
SAMPLERS: dict[str, dict[str, Any]] = {
    "euler = DDIM": {"kind": "euler"},
    "heun": {"kind": "heun"},
    "dpmpp_2m": {"kind": "dpmpp_2m"},
    "unipc (2)": {"kind": "unipc", "order": 2},
    "unipc (3)": {"kind": "unipc", "order": 3},
    "heun, churn 10": {"kind": "heun", "churn": {"amount": 10.0}},
    "dpmpp_2m_sde": {"kind": "dpmpp_2m_sde"},
    "ddpm (small)": {"kind": "ddpm"},
    "langevin": {"kind": "langevin"},
}


def settings_for(calls: int, settings: dict[str, Any]) -> SamplerConfig:
    """The sampler with the most steps that `calls` allow."""
    steps = {"heun": (calls + 1) // 2, "langevin": calls // 2}.get(settings["kind"], calls)
    return SamplerConfig.model_validate(settings | {"steps": steps})


def distance(result: Tensor) -> float:
    """Wasserstein-1 distance between the distribution of `result` and the data."""
    ordered = result.flatten().sort().values
    share = (torch.arange(len(ordered), dtype=ordered.dtype) + 0.5) / len(ordered)
    normal = torch.special.ndtri(share) * 80
    return float((ordered - DATA.flow(normal, 80.0, 0.0)).abs().mean())


def error(settings: dict[str, Any], calls: int) -> float:
    """Error of one sampler with at most `calls` calls, on EDM's sigma schedule from 80 to 0.002."""
    sampler = build_sampler(settings_for(calls, settings), build_process(DiffusionConfig()))
    generator = torch.Generator().manual_seed(0)
    x = sampler.start(torch.randn(IMAGES, generator=generator, dtype=torch.float64))
    result = sampler(DATA.denoise, x, lambda _: torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return distance(result)


def accuracy_table() -> None:
    """Samplers by calls."""
    print(f"Wasserstein-1 distance to the data, {PIXELS} pixels, by calls of the network")
    print(f"{'':16}" + "".join(f"{calls:>10}" for calls in CALLS))
    for name, settings in SAMPLERS.items():
        print(f"{name:16}" + "".join(f"{error(settings, calls):10.5f}" for calls in CALLS), flush=True)
    floor = distance(DATA.sample((PIXELS,), torch.Generator().manual_seed(1)))
    print(f"{'true samples':16}" + f"{floor:10.5f}" * len(CALLS))


def seconds(run: Callable[[], Tensor], *, repeats: int = 5) -> float:
    """Best of several runs, which is the one least disturbed by others on the machine."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def cost_table(*, steps: int = 50, shape: tuple[int, ...] = (16, 3, 32, 32)) -> None:
    """Time of the sampler around a network that costs nothing, beside the schedulers of diffusers."""
    try:
        import diffusers
    except ImportError:
        print("\nCost beside diffusers: skipped, the package is not installed")
        return
    process = build_process(DiffusionConfig(parametrisation="eps", levels=DDPMLevels(kind="ddpm")))
    common = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}
    rivals = {
        "ddim": diffusers.DDIMScheduler(**common, clip_sample=False),
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(**common),
        "unipc": diffusers.UniPCMultistepScheduler(**common),
    }
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    print(f"\nMilliseconds of {steps} steps on {list(shape)} around a network that costs nothing, one thread")
    print(f"{'':16}{'ours':>10}{'diffusers':>12}{'ratio':>8}")
    for kind, scheduler in rivals.items():
        cfg = SamplerConfig.model_validate({"kind": kind, "steps": steps, "sigmas": {"kind": "ddpm"}})
        sampler = build_sampler(cfg, process)

        def diffusers_sample(scheduler: Any = scheduler) -> Tensor:
            scheduler.set_timesteps(steps)
            x = noise
            for t in scheduler.timesteps:
                x = scheduler.step(x, t, x).prev_sample
            return x

        def ours(sampler: Any = sampler) -> Tensor:
            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                s = process.scales(sigma)
                z = s.c_in * x
                result: Tensor = s.c_skip * x + s.c_out * z
                return result

            result: Tensor = sampler(denoise, sampler.start(noise))
            return result

        mine, other = seconds(ours), seconds(diffusers_sample)
        print(f"{kind:16}{1e3 * mine:10.1f}{1e3 * other:12.1f}{mine / other:8.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    accuracy_table()
    cost_table()
