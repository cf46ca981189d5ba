"""Sampling beside diffusers' loop, and features of Inception beside torchmetrics'."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checks
import numpy as np
import torch
from on_gpu import adapter
from on_gpu.report import Clock, Report, guarded, release, seconds
from on_gpu.steps import model_settings, unet
from torch import Tensor

from pipeline.config.schema_diffusion import SamplerConfig
from pipeline.config.schema_metrics import InceptionConfig
from pipeline.data.shards import open_shards
from pipeline.diffusers_io.tables import Sizes, to_config
from pipeline.inference import autocast, quick_networks
from pipeline.metrics.extraction import features_of
from pipeline.metrics.inception_weights import inception_extractor, load_inception, prepare
from pipeline.objectives.build import build_objective

GUIDANCE = 2.0


def run(report: Report, clock: Clock, context: checks.CheckContext) -> None:
    """Print both tables."""
    network, size, batch, steps = sizes(context.device)
    report.say(
        f"images per second of {network} at {size} px, batch {batch}, {steps} steps (ours euler, diffusers DDIM)"
    )
    rows: list[dict[str, Any]] = []
    try:
        _compare(report, clock.part(0.7), context, rows)
    finally:  # also where the time is over in the middle of a row
        report.table(
            ("precision", "guidance", "ours", "diffusers", "ratio"),
            [
                [r["precision"], GUIDANCE if r["guided"] else "none", r["ours"], r["diffusers"], r["ratio"]]
                for r in rows
            ],
        )
    with guarded(report, "features of Inception"):
        features(report, clock, device=context.device, weights=context.weights)


def sizes(device: str) -> tuple[str, int, int, int]:
    """Network, pixels, batch, steps."""
    return ("unet_base", 64, 256, 50) if device == "cuda" else ("unet_tiny", 16, 2, 3)


def _compare(report: Report, clock: Clock, context: checks.CheckContext, rows: list[dict[str, Any]]) -> None:
    device = context.device
    network, size, batch, steps = sizes(device)
    for precision, guided in (("bf16", False), ("bf16", True), ("fp32", False), ("fp32", True)):
        if rows and clock.left() < 0:
            break
        with guarded(report, f"sampling, {precision}, {'guided' if guided else 'plain'}"):
            settings: dict[str, Any] = {"batch": batch, "precision": precision, "guided": guided, "device": device}
            sides = {
                "ours": ours(context.root, network, size, **settings),
                "diffusers": diffusers_sampling(network, size, **settings),
            }
            for make in sides.values():
                make(2)
            rate = {name: batch / seconds(lambda make=make: make(steps), device) for name, make in sides.items()}
            row = {"precision": precision, "guided": guided, **rate, "ratio": rate["ours"] / rate["diffusers"]}
            rows.append(row)
            report.add("sampling", row)
        release()


def ours(
    root: Path, network: str, size: int, *, batch: int, precision: str, guided: bool, device: str
) -> Callable[[int], Any]:
    """Our sampler, as `pipeline sample` calls it, on random weights."""
    cfg = adapter.config(root, name="sampling", model=model_settings(network), size=size, batch=2, precision=precision)
    adapter.prepare(cfg, count=16)
    train = open_shards(next((root / "data").glob(f"noise{size}-*")) / "shards" / "train")
    objective: Any = build_objective(cfg, train.manifest)
    for module in objective.networks.values():
        module.to(device).eval().requires_grad_(False)
    networks, seeds = quick_networks(objective, torch.device(device)), torch.arange(batch, device=device)
    scale = GUIDANCE if guided else 1.0

    @torch.inference_mode()
    def make(steps: int) -> Tensor:
        sampler = SamplerConfig.model_validate({"kind": "euler", "steps": steps, "guidance": {"scale": scale}})
        with autocast(cfg, torch.device(device)):
            found: Tensor = objective.generate(networks, seeds, seeds % adapter.CLASSES, sampler=sampler)
        return found

    return make


def diffusers_sampling(
    network: str, size: int, *, batch: int, precision: str, guided: bool, device: str
) -> Callable[[int], Any]:
    """The loop of DDIMPipeline around the same network; bf16 is the network's own type, as users load it."""
    import diffusers

    cfg = unet(network)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = diffusers.UNet2DModel.from_config(to_config(cfg, Sizes((3, size, size), adapter.CLASSES)))
    model = model.to(device, dtype).eval().requires_grad_(False)
    scheduler = diffusers.DDIMScheduler()
    labels = torch.arange(batch, device=device) % adapter.CLASSES
    nothing = torch.full_like(labels, adapter.CLASSES)

    @torch.no_grad()
    def make(steps: int) -> Tensor:
        scheduler.set_timesteps(steps)
        image = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
        for t in scheduler.timesteps:
            if guided:
                both = model(torch.cat([image, image]), t, class_labels=torch.cat([labels, nothing])).sample
                conditional, plain = both.chunk(2)
                output = plain + GUIDANCE * (conditional - plain)
            else:
                output = model(image, t, class_labels=labels).sample
            image = scheduler.step(output, t, image).prev_sample
        return image

    return make


def features(report: Report, clock: Clock, *, device: str, weights: Path | None) -> None:
    """Images a second of the metric pass on images in memory, and of whatever it can be compared with."""
    path = checks.inception_weights(weights)
    if path is None:
        report.say("features of Inception: no weights (--weights)")
        return
    outputs = ("768",) if path.suffix == ".npz" else ("2048",)
    extractor = {device: inception_extractor(InceptionConfig(weights=path, features=outputs), device=device)}
    count, batch = (4096, 256) if device == "cuda" else (4, 2)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)

    def pass_over(where: str, images: int) -> None:
        features_of(np.arange(images), lambda k: pixels[k], extractor[where], batch=batch, device=where)

    pass_over(device, batch)
    rates: dict[str, Any] = {"outputs": outputs, "ours": count / seconds(lambda: pass_over(device, count), device)}
    other = torchmetrics_pass(path, pixels, batch=batch, device=device)
    other(batch)
    rates["torchmetrics"] = count / seconds(lambda: other(count), device)
    if device == "cuda" and clock.left() > 10:
        extractor["cpu"] = inception_extractor(InceptionConfig(weights=path, features=outputs), device="cpu")
        rates["ours, fp32 on this machine's CPU"] = 64 / seconds(lambda: pass_over("cpu", 64), "cpu")
    report.put("features", rates)
    shown = ", ".join(f"{name} {value:.0f}" for name, value in rates.items() if name != "outputs")
    report.say(f"images per second of Inception's {'/'.join(outputs)} features, fp32: {shown}")


def torchmetrics_pass(path: Path, pixels: np.ndarray, *, batch: int, device: str) -> Callable[[int], None]:
    """torchmetrics' FID on the same images, with the same network, resize included, in place of torch-fidelity's."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    network = load_inception(path).to(device).eval()
    output = "768" if path.suffix == ".npz" else "2048"

    class Features(torch.nn.Module):
        num_features = int(output)

        @torch.inference_mode()
        def forward(self, images: Tensor) -> Tensor:
            return network(prepare(images, "tf1"), [output])[output]

    metric = FrechetInceptionDistance(feature=Features()).to(device)

    def run_over(count: int) -> None:
        for start in range(0, count, batch):
            part = torch.from_numpy(pixels[start : start + batch]).permute(0, 3, 1, 2)
            metric.update(part.to(device), real=True)

    return run_over
