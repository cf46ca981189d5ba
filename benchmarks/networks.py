"""Forward and backward of our U-Net against diffusers' UNet2DModel: the same weights, images and noise levels.

Rounds of the two alternate, so that whatever else the machine does hits both; the ratio is of median times.

    python benchmarks/networks.py                                # two sizes on the CPU
    python benchmarks/networks.py --device cuda --precision bf16 --model unet_base --size 64 --batch 128
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter

from pipeline.config.schema_model import ModelConfig, UNetConfig
from pipeline.diffusers_io.tables import Sizes, to_config, to_weights
from pipeline.models.build import build_network, count_parameters

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "model"
CLASSES = 10


def main() -> None:
    """Print one line a size: parameters, images per second of both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a file of configs/model; default: two sizes")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    chosen = [(options.model, (options.channels, options.size, options.size), options.batch)]
    usual = [("unet_glyphs16", (1, 16, 16), 128), ("unet_small", (3, 32, 32), 16)]
    threads = torch.get_num_threads()
    print(f"{options.device}, {options.precision}, {threads} threads, torch {torch.__version__}, forward and backward")
    for name, shape, batch in chosen if options.model else usual:
        compare(name, shape, batch=batch, rounds=options.rounds, device=options.device, precision=options.precision)


def compare(name: str, shape: tuple[int, int, int], *, batch: int, rounds: int, device: str, precision: str) -> None:
    """Time both networks on the same batch and print a line."""
    import diffusers

    cfg = TypeAdapter(ModelConfig).validate_python(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
    assert isinstance(cfg, UNetConfig), f"{name} is no unet"
    cfg = cfg.model_copy(update={"dropout": 0.0, "condition": "class"})
    sizes = Sizes(shape, CLASSES)
    torch.manual_seed(0)
    ours = build_network(cfg, shape=shape, classes=CLASSES).to(device)
    diffusers_model = diffusers.UNet2DModel.from_config(to_config(cfg, sizes)).to(device)
    diffusers_model.load_state_dict(to_weights(cfg, sizes, ours.state_dict()))
    x, noise_cond = torch.randn(batch, *shape, device=device), torch.rand(batch, device=device) * 1000
    labels = torch.arange(batch, device=device) % CLASSES

    def own_step() -> Any:
        return ours(x, noise_cond, labels)

    def diffusers_step() -> Any:
        return diffusers_model(x, noise_cond, class_labels=labels).sample

    times: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for number in range(rounds + 2):
        for key, step in (("ours", own_step), ("diffusers", diffusers_step)):
            seconds = timed(step, device=device, precision=precision)
            if number >= 2:  # the first rounds choose algorithms
                times[key].append(seconds)
    speed = {key: batch / statistics.median(values) for key, values in times.items()}
    print(
        f"{name} {shape[1]} px, batch {batch}, {count_parameters(ours) / 1e6:.2f} M: ours {speed['ours']:.0f} img/s, "
        f"diffusers {speed['diffusers']:.0f} img/s, ratio {speed['ours'] / speed['diffusers']:.2f}",
        flush=True,
    )


def timed(step: Callable[[], Any], *, device: str, precision: str) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = step().float().square().mean()
    loss.backward()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
