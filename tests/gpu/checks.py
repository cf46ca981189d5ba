"""What must hold on a GPU. `benchmarks/gpu.py` prints these checks; tests/gpu/test_correctness.py runs them as tests.

A check is a function of a `CheckContext` that yields findings: a measured figure beside its limit. Those in NEEDS_CUDA
compare a GPU with the CPU, or concern what only a GPU has; the others also run on a CPU.
"""

import contextlib
import io
import math
import shutil
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
from kinds import PROCESSES, SAMPLERS  # noqa: E402
from on_gpu import adapter  # noqa: E402
from tiny import EVERYTHING, WITH_DISCRIMINATOR  # noqa: E402

from pipeline import checkpoint  # noqa: E402
from pipeline.config.schema import Config  # noqa: E402
from pipeline.config.schema_diffusion import SamplerConfig  # noqa: E402
from pipeline.data.pictures import to_uint8  # noqa: E402
from pipeline.data.shards import open_shards  # noqa: E402
from pipeline.inference import asked_for, image_maker  # noqa: E402
from pipeline.metrics.inception_weights import load_inception, prepare  # noqa: E402
from pipeline.runtime.random import Stream, chosen, normal, philox, uniform  # noqa: E402
from pipeline.runtime.run_dir import RunDir  # noqa: E402

IMAGES = 64  # of the generated training set
SGD = {"kind": "sgd", "lr": 0.1, "warmup": "0 steps"}  # weights then differ by as much as gradients do
DROPOUT = {**adapter.SMALL, "dropout": 0.1}
ATTENTIVE = {**adapter.SMALL, "width": 64, "attention": [32, 16], "head_channels": 64}  # sums over many keys
GAME = {"kind": "stylegan", "condition": "class", "width": 16, "width_max": 32, "latent": 32, "mapping_layers": 2}
AUTOENCODER = {"kind": "kl_autoencoder", "width": 16, "multipliers": [1, 2], "blocks": 1, "groups": 8}
KINDS: dict[str, dict[str, Any]] = {  # of networks, objectives and processes: what to change of a configuration
    **{name: {"groups": {"diffusion": {"label_dropout": 0.1, **process}}} for name, process in PROCESSES.items()},
    "unet, old layout": {"model": {**adapter.SMALL, "scale_shift": False, "resample": "conv", "embedding": "fourier"}},
    "unet, classes as maps": {"model": {**adapter.SMALL, "condition_channels": 4}},
    "dit": {"model": {"kind": "dit", "condition": "class", "width": 64, "depth": 2, "heads": 2, "dropout": 0.1}},
    "simple_unet": {"model": {"kind": "simple_unet", "width": 16, "multipliers": [1, 2], "attention": [8]}},
    "additive_unet": {"model": {"kind": "additive_unet", "width": 16, "multipliers": [1, 2, 4]}},
    "checkpointed": {"model": DROPOUT, "activation_checkpointing": True},
    "muon": {"optim": {"kind": "muon", "lr": 1e-3, "warmup": "0 steps"}},
    "vae": {"model": {"kind": "vae", "condition": "class", "width": 16, "multipliers": [1, 2], "latent": 16}},
    "bottleneck": {"model": {"kind": "bottleneck_autoencoder", "width": 16, "multipliers": [1, 2]}},
    "autoencoder, discriminator": {"model": AUTOENCODER, "groups": {"autoencoder": WITH_DISCRIMINATOR}},
    "gan, everything": {"model": GAME, "groups": {"adversarial": EVERYTHING}},
    "gan, wasserstein": {
        "model": {**GAME, "equalized": True, "filtered": True},
        "groups": {"adversarial": {"loss": "wasserstein", "gradient_penalty": 10.0, "r1_gamma": 0.0}},
    },
}

GRAPHED = ("gan, everything", "gan, wasserstein", "vae", "bottleneck", "autoencoder, discriminator")


@dataclass(frozen=True)
class Finding:
    """One claim with its figure. It holds where the figure is at most the limit."""

    name: str
    figure: float
    limit: float = 0.0
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds; NaN never does."""
        return self.figure <= self.limit


@dataclass(frozen=True)
class CheckContext:
    """Where checks work, on which device, and the real files that are at hand."""

    root: Path
    device: str  # "cuda" or "cpu"
    images: Path | None = None  # a tar that holds the images of the check features
    weights: Path | None = None  # a folder with Inception's weights and its check features

    def config(self, name: str, **settings: Any) -> Config:
        """An experiment, its data prepared."""
        cfg = adapter.config(self.root, name=name, **settings)
        adapter.prepare(cfg, count=IMAGES)
        return cfg


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of all tensors relative to the norm of the expected ones."""
    off = sum(float((found[k].double() - expected[k].double()).square().sum()) for k in expected)
    return math.sqrt(off / sum(float(v.double().square().sum()) for v in expected.values()))


@dataclass(frozen=True)
class Steps:
    """Losses of the first steps, the weights after them, and how these differ from the first ones."""

    losses: list[float]
    weights: dict[str, Tensor]
    change: dict[str, Tensor]

    def beside(self, expected: "Steps", name: str, *, loss: float, weights: float, change: float) -> Iterator[Finding]:
        """Losses, weights, and the change of weights: relative differences with their limits."""
        off = max(abs(a - b) for a, b in zip(self.losses, expected.losses, strict=True))
        yield Finding(f"{name}: loss", off / max(map(abs, expected.losses)), loss)
        yield Finding(f"{name}: weights", distance(self.weights, expected.weights), weights)
        yield Finding(f"{name}: change of weights", distance(self.change, expected.change), change)


def some_steps(cfg: Config, device: str, *, steps: int = 4, exact: bool = True, ddp: bool = False) -> Steps:
    """The first steps of a run."""
    with adapter.open_session(cfg, device) as s, adapter.exact_float32() if exact else contextlib.nullcontext():
        if ddp:
            adapter.use_ddp(s)
        before, data = adapter.weights(s), adapter.feed(s)
        found = [adapter.step(s, data).read().values for _ in range(steps)]
        losses = [value for values in found for name, value in values.items() if name.split("/")[-1] == "loss"]
        after = adapter.weights(s)
        data.close()
    shutil.rmtree(cfg.runs_dir / cfg.name)
    return Steps(losses, after, {name: after[name] - before[name] for name in after})


def steps_equal_the_cpus(context: CheckContext) -> Iterator[Finding]:
    """float32 without TF32: the same losses and weights as a CPU's, plain, with dropout, and by AdamW."""
    # It divides by gradients that are nothing but rounding, as those of the keys' bias are.
    adamw = {"lr": 1e-4, "warmup": "0 steps"}
    for label, model, optim, change in (
        ("sgd", adapter.SMALL, SGD, 1e-3),
        ("sgd, dropout", DROPOUT, SGD, 1e-3),
        ("adamw", adapter.SMALL, adamw, 0.1),
    ):
        cfg = context.config("step", model=model, optim=optim)
        expected, found = some_steps(cfg, "cpu"), some_steps(cfg, context.device)
        limit = 1e-5 if optim is SGD else 1e-4
        yield from found.beside(expected, f"fp32 step = CPU's ({label})", loss=1e-5, weights=limit, change=change)
    cfg = context.config("step", optim=SGD)
    expected, found = some_steps(cfg, "cpu"), some_steps(cfg, context.device, exact=False)
    name = "fp32 step as training sets TF32"
    yield from found.beside(expected, name, loss=1e-3, weights=1e-3, change=3e-2)


def every_kind_is_the_cpus(context: CheckContext) -> Iterator[Finding]:
    """float32 without TF32: losses and weights of every network, objective and process beside a CPU's."""
    for name, settings in KINDS.items():
        cfg = context.config("kind", **{"optim": {"kind": "sgd", "lr": 0.01, "warmup": "0 steps"}, **settings})
        try:
            expected, found = some_steps(cfg, "cpu"), some_steps(cfg, context.device)
        except RuntimeError as error:  # the others are tried all the same
            yield Finding(f"{name} = CPU's", math.inf, note=str(error).splitlines()[0])
            continue
        # Muon orthogonalises in bfloat16, and gradients that are rounding alone as well.
        loose = 10.0 if name == "muon" else 1.0
        yield from found.beside(expected, f"{name} = CPU's", loss=1e-4, weights=1e-4 * loose, change=1e-2 * loose)


def narrow_steps_are_finite(context: CheckContext) -> Iterator[Finding]:
    """20 steps in bf16 and fp16: losses and weights are numbers, near those of float32."""
    steps = 20 if context.device == "cuda" else 3
    expected = some_steps(context.config("wide"), context.device, steps=steps).losses
    for precision in ("bf16", "fp16") if context.device == "cuda" else ("bf16",):
        with adapter.open_session(context.config(precision, precision=precision), context.device) as s:
            data = adapter.feed(s)
            outcomes = [adapter.step(s, data).read() for _ in range(steps)]
            losses = [outcome.values["loss"] for outcome in outcomes]
            skipped = sum(not outcome.finite for outcome in outcomes)
            weights = adapter.weights(s)
            data.close()
        bad = sum(not math.isfinite(loss) for loss in losses) + sum(not w.isfinite().all() for w in weights.values())
        allowed = 6 if precision == "fp16" else 0  # while the loss scale comes down
        yield Finding(f"{precision}: losses and weights not finite, {steps} steps", bad, note=f"loss {losses[-1]:.4f}")
        yield Finding(f"{precision}: steps skipped", skipped, allowed)
        off = max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))
        yield Finding(f"{precision}: losses beside float32's", off, 0.05)


def an_infinite_loss_is_skipped(context: CheckContext) -> Iterator[Finding]:
    """fp16: weights stay, the loss scale halves, the next step goes on; a return to a checkpoint restores the scale."""
    cfg = context.config("scaled", precision="fp16")
    with adapter.open_session(cfg, context.device) as s, adapter.reporter(s) as report:
        data = adapter.feed(s)
        for _ in range(8):  # the scale comes down to what fits
            adapter.read(s, adapter.step(s, data))
        before, scale = adapter.weights(s), adapter.scale_of(s)
        adapter.save(report)
        with adapter.broken_loss(s):
            skipped = adapter.read(s, adapter.step(s, data))
            changed = distance(adapter.weights(s), before)
            yield Finding("fp16: a step of infinite loss is skipped", float(skipped.finite))
            yield Finding("fp16: it changes the weights by", changed)
            yield Finding("fp16: it halves the loss scale", abs(adapter.scale_of(s) / scale - 0.5))
            for _ in range(3):
                adapter.read(s, adapter.step(s, data))
        lowered = adapter.scale_of(s)
        adapter.read(s, adapter.step(s, data))
        after = adapter.weights(s)
        yield Finding("fp16: the next step changes weights again", float(distance(after, before) == 0))
        adapter.roll_back(s, report)
        note = f"{scale:g}, lowered to {lowered:g}, then {adapter.scale_of(s):g}"
        yield Finding("fp16: a rollback restores the scale", abs(adapter.scale_of(s) / scale - 1), note=note)
        yield Finding("fp16: a rollback restores the weights", distance(adapter.weights(s), before))
        data.close()


def random_numbers_are_the_cpus(context: CheckContext) -> Iterator[Finding]:
    """Words, uniform values and choices to the bit, normal values to the rounding of log and cosine."""
    numbers = torch.cat([torch.arange(50), torch.tensor([2**31, 2**32 + 5, 2**40])])
    counter = torch.randint(0, 2**32, (1000, 4), generator=torch.Generator().manual_seed(0))
    there, key = numbers.to(context.device), (0x12345678, 0x9ABCDEF0)

    def differing(found: Tensor, expected: Tensor) -> float:
        return float((found.cpu() != expected).sum())

    yield Finding("Philox words that differ", differing(philox(counter.to(context.device), key), philox(counter, key)))
    for dtype in (torch.float32, torch.float64):
        mine, expected = (uniform(7, Stream.SIGMA, n, shape=(3, 33), dtype=dtype) for n in (there, numbers))
        yield Finding(f"uniform {str(dtype)[6:]} values that differ", differing(mine, expected))
        mine, expected = (normal(7, Stream.NOISE, n, shape=(3, 64, 64), dtype=dtype).cpu() for n in (there, numbers))
        worst = float(((mine - expected).abs() / expected.abs().clamp(min=1)).max())
        yield Finding(f"normal {str(dtype)[6:]} values differ by", worst, 1e-6 if dtype == torch.float32 else 1e-12)
    mine, expected = (chosen(7, Stream.DROPOUT, n, share=0.1, shape=(99,)) for n in (there, numbers))
    yield Finding("choices that differ", differing(mine, expected))


def unequal_tensors(one: RunDir, other: RunDir, step: int) -> float:
    """Tensors of two checkpoints that are not the same bits; all of them where names differ."""
    a, b = (checkpoint.read(run.checkpoint(step)).tensors for run in (one, other))
    flat = [{f"{file}/{name}": t for file, found in side.items() for name, t in found.items()} for side in (a, b)]
    if flat[0].keys() != flat[1].keys():
        return float(len(flat[0].keys() | flat[1].keys()))
    return float(sum(not torch.equal(flat[0][name], flat[1][name]) for name in flat[0]))


def runs_are_repeatable(context: CheckContext) -> Iterator[Finding]:
    """Resumed or started anew, as training sets the device: the same bits in every tensor of the checkpoint."""
    discriminator, game = {"groups": {"autoencoder": WITH_DISCRIMINATOR}}, {"groups": {"adversarial": EVERYTHING}}
    kinds: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("bf16", DROPOUT, {}),
        ("fp32", adapter.SMALL, {}),
        ("fp16", adapter.SMALL, {}),
        ("bf16", GAME, game),
        ("bf16", AUTOENCODER, discriminator),
        ("bf16", ATTENTIVE, {"size": 32, "batch": 64}),
    )
    for precision, model, other in kinds if context.device == "cuda" else kinds[:1]:
        settings = {"duration": "6 steps", "checkpoint_every": "3 steps", "precision": precision, "keep_last": 3}
        runs, kind = [], f"{'attention of 1024' if model is ATTENTIVE else model['kind']}, {precision}"
        names = [f"{which}-{kind.replace(', ', '-').replace(' ', '-')}" for which in ("first", "second")]
        for name in names:
            runs.append(adapter.train(context.config(name, model=model, **settings, **other), context.device))
        count = sum(len(tensors) for tensors in checkpoint.read(runs[0].checkpoint(6)).tensors.values())
        note = f"of {count}"
        yield Finding(f"two runs, {kind}: tensors that differ", unequal_tensors(*runs, 6), note=note)
        (runs[1].checkpoints / "finished.json").unlink()
        shutil.rmtree(runs[1].checkpoint(6))  # as if it had been stopped after step 3
        adapter.train(context.config(names[1], model=model, **settings, **other), context.device)
        yield Finding(f"resumed at 3 of 6, {kind}: tensors that differ", unequal_tensors(*runs, 6), note=note)


def ddp_of_one_rank_is_plain(context: CheckContext) -> Iterator[Finding]:
    """A real process group of one rank, nccl on a GPU: the same losses and weights."""
    cfg = context.config("alone", optim=SGD)
    expected = some_steps(cfg, context.device)
    backend = "cpu:gloo,cuda:nccl" if context.device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = some_steps(cfg, context.device, ddp=True)
    finally:
        if torch.distributed.is_initialized():  # a session that ends takes it apart
            torch.distributed.destroy_process_group()
    yield from found.beside(expected, f"DDP, 1 rank, {backend[-4:]} = plain", loss=1e-6, weights=1e-6, change=1e-5)


def two_ranks_are_one(context: CheckContext) -> Iterator[Finding]:
    """Two processes that share the GPU, and the global batch, come to the weights of one: by DDP, and as a graph.

    Not sharded: gloo, the only backend that lets two processes share a GPU, ends with a segmentation fault where FSDP's
    weights are gathered (torch 2.11, `wait_tensor` of a CUDA tensor). Sharding takes a GPU for each rank.
    """
    settings = {"duration": "4 steps", "checkpoint_every": "4 steps", "optim": SGD}
    alone = adapter.train(context.config("one", **settings), context.device)
    for name, way in {"ddp": {"cuda_graph": False}, "graph": {"cuda_graph": True}}.items():
        together = adapter.train_on_ranks(context.config(f"two-{name}", **settings, **way), context.device, ranks=2)
        expected, found = (checkpoint.read(run.checkpoint(4)).tensors["network.denoiser"] for run in (alone, together))
        yield Finding(f"two ranks ({name}) = one: weights", distance(found, expected), 1e-6)


def samples_are_the_cpus(context: CheckContext) -> Iterator[Finding]:
    """float32: the images of the first seeds by every sampler differ by one grey level at most."""
    run = adapter.train(
        cfg := context.config("sampled", duration="6 steps", checkpoint_every="6 steps"), context.device
    )
    data = open_shards(next((context.root / "data").glob("noise16-*")) / "shards" / "train")
    seeds = torch.arange(8)
    for name, settings in SAMPLERS.items():
        sampler = SamplerConfig.model_validate({"steps": 6, **settings})
        asked = cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"sampler": sampler})})
        pixels = []
        for device in (context.device, "cpu"):
            with adapter.using(device):
                make = image_maker(asked, run, data.manifest, step=6)
            with adapter.exact_float32():
                pixels.append(to_uint8(make(seeds, asked_for(asked, seeds, data))).astype(int))
        off = np.abs(pixels[0] - pixels[1])
        note = f"{(off > 0).mean():.2%} of them differ"
        yield Finding(f"samples of {name} beside the CPU's, grey levels", float(off.max()), 1, note)


def waits(context: CheckContext, name: str, **settings: Any) -> tuple[int, str]:
    """Whether three steps after warm-up make the host wait for the device, and where first."""
    with adapter.open_session(context.config(name, **settings), context.device) as s:
        data = adapter.feed(s)
        for _ in range(4):
            adapter.step(s, data)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                adapter.step(s, data)
        except RuntimeError as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if str(ROOT / "pipeline") in f.filename] or list(frames)
            return 1, f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].line}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
            data.close()
    return 0, ""


def steps_do_not_wait(context: CheckContext) -> Iterator[Finding]:
    """Three steps without one operation that synchronises (torch's own debug mode)."""
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("bf16", {"precision": "bf16"}),
        ("bf16, dropout", {"precision": "bf16", "model": DROPOUT}),
        ("bf16, flip and colour", {"precision": "bf16", "flip": True, "augmentation": {"brightness": 0.2}}),
        ("fp16", {"precision": "fp16"}),
        ("bf16, gan", {"precision": "bf16", **KINDS["gan, everything"]}),
        ("bf16, autoencoder", {"precision": "bf16", **KINDS["autoencoder, discriminator"]}),
        ("bf16, vae", {"precision": "bf16", **KINDS["vae"]}),
        ("bf16, muon", {"precision": "bf16", **KINDS["muon"]}),
    )
    for number, (label, settings) in enumerate(kinds):
        found, where = waits(context, f"waits-{number}", **settings)
        yield Finding(f"3 steps wait for the device ({label})", found, note=where)


def a_graph_is_eager(context: CheckContext) -> Iterator[Finding]:
    """train.cuda_graph=true: the same losses and weights, also where a step is of two micro-batches, where two networks
    take turns, and where some steps have penalties."""
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        ", dropout, accumulated": {"model": DROPOUT, "micro_batch": 8},
        **{f", {name}": KINDS[name] for name in GRAPHED},
        ", gan, accumulated": {**KINDS["gan, everything"], "micro_batch": 8},
    }
    for label, settings in kinds.items():
        found = []
        for graph in (False, True):
            cfg = context.config("graph", precision="bf16", optim=SGD, cuda_graph=graph, **settings)
            found.append(some_steps(cfg, context.device, steps=8, exact=False))
        yield from found[1].beside(found[0], f"graph = eager, bf16{label}", loss=1e-6, weights=1e-6, change=1e-5)


def compiled_is_eager(context: CheckContext) -> Iterator[Finding]:
    """train.compile=true: the same losses and weights up to the rounding of fused sums."""
    found = []
    for compile_it in (False, True):
        torch._dynamo.reset()
        cfg = context.config("compiled", model=DROPOUT, optim=SGD, compile=compile_it, cuda_graph=False)
        found.append(some_steps(cfg, context.device))
    yield from found[1].beside(found[0], "compiled = eager (dropout)", loss=1e-4, weights=1e-4, change=1e-2)


def inception_weights(folder: Path | None) -> Path | None:
    """Inception's file in a folder of weights."""
    names = [p for p in sorted(folder.glob("*inception*")) if "check" not in p.name] if folder else []
    return next((p for p in names if p.suffix in (".npz", ".pth")), None)


def inception_gives_known_features(context: CheckContext) -> Iterator[Finding]:
    """The features of real images beside an independent implementation's, and beside the CPU's."""
    path = inception_weights(context.weights)
    if path is None:
        return
    pixels, expected = _known_images(context)
    network = load_inception(path)
    outputs = [name for name in ("64", "192", "768") if name in network.outputs]
    found = []
    with torch.inference_mode(), adapter.exact_float32():
        for device, part in (("cpu", pixels[:8]), (context.device, pixels)):
            output = network.to(device).eval()(prepare(part.to(device), "tf1"), outputs)
            found.append({name: output[name].float().cpu() for name in outputs})
    for name in outputs:
        yield Finding(f"Inception {name} beside the CPU's", _relative(found[1][name][:8], found[0][name]), 1e-4)
        if name in expected:
            known = torch.from_numpy(expected[name])
            note = f"{len(known)} images"
            yield Finding(f"Inception {name} beside known features", _relative(found[1][name], known), 1e-4, note)


def _known_images(context: CheckContext) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Images uint8 [B, 3, H, W] with known features by output; noise, and none, where the files are not there."""
    files = sorted(context.weights.glob("*check_features.npz")) if context.weights else []
    if not files or context.images is None or not context.images.is_file():
        noise = np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64), dtype=np.uint8)
        return torch.from_numpy(noise), {}
    with np.load(files[0]) as file:
        arrays = {name: file[name] for name in file.files}
    with tarfile.open(context.images) as tar:
        members = {Path(m.name).name: m for m in tar.getmembers()}
        names = arrays["names"].tolist()
        if any(name not in members for name in names):
            return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64), dtype=np.uint8)), {}
        data = [tar.extractfile(members[name]).read() for name in names]  # type: ignore[union-attr]
    images = np.stack([np.asarray(Image.open(io.BytesIO(item)).convert("RGB")) for item in data])
    known = {name.removeprefix("dim"): array for name, array in arrays.items() if name.startswith("dim")}
    return torch.from_numpy(images).permute(0, 3, 1, 2), known


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


Check = Callable[[CheckContext], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (  # the most important first, what compiles last
    steps_equal_the_cpus,
    random_numbers_are_the_cpus,
    narrow_steps_are_finite,
    steps_do_not_wait,
    an_infinite_loss_is_skipped,
    runs_are_repeatable,
    a_graph_is_eager,
    ddp_of_one_rank_is_plain,
    samples_are_the_cpus,
    inception_gives_known_features,
    every_kind_is_the_cpus,
    two_ranks_are_one,
    compiled_is_eager,
)
NEEDS_CUDA: frozenset[Check] = frozenset(
    {
        steps_equal_the_cpus,
        random_numbers_are_the_cpus,
        steps_do_not_wait,
        an_infinite_loss_is_skipped,
        samples_are_the_cpus,
        inception_gives_known_features,
        a_graph_is_eager,
        every_kind_is_the_cpus,
        two_ranks_are_one,
        compiled_is_eager,
    }
)
