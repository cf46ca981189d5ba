"""Sharded training is unsharded training: same weights, same checkpoints, on any number of ranks; a part on each."""

import functools
import json
import math
import os
import shutil
import signal

import pytest
import tiny
import torch
from safetensors.torch import load_file

from data_prep import reference
from pipeline.checkpoint import newest_valid, read
from pipeline.config.load import config_from
from pipeline.config.schema_metrics import DomainConfig
from pipeline.objectives.denoising import Denoising
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir, create_run
from pipeline.runtime.sharding import rows
from pipeline.train import loop, setup

STEPS = 12
SAVINGS = {"sharding": "fsdp", "micro_batch": 2, "activation_checkpointing": True}
MODEL = {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": [8], "head_channels": 8, "groups": 4}
UNEVEN = {  # ranks have unequal parts of everything that evaluation does: validation images, blocks of samples
    "precision": "fp64",
    "duration": f"{STEPS} steps",
    "validate_every": "4 steps",
    "validate_images": 7,
    "early_stop": {"patience": "100 steps"},
    "preview_every": "6 steps",
    "metric_every": "6 steps",
    "metric_images": 70,
    "checkpoint_every": "6 steps",
}


def config(root, name, **train):
    """Everything that a run may do beside its steps; losses are balanced by a part that the network does not call."""
    cfg = tiny.config(root, name=name, model=MODEL, **{**UNEVEN, **train})
    cfg = tiny.revalidated(cfg, diffusion={"learned_uncertainty": True})
    domain = DomainConfig(width=8, features=8, max_images=60)
    return cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update={"domain": domain})})


def held(s, gradients):
    """How many numbers this rank holds, and how many there are, of weights, gradients, EMA and moments."""
    network, moments = s.objective.networks["denoiser"], s.state.optimizers["denoiser"].state.values()
    names = [name for name, _ in network.named_parameters()]  # buffers are whole on every rank
    found = {
        "weights": list(network.parameters()),
        "gradients": gradients,
        "ema": [s.state.emas["ema.denoiser"][name] for name in names],
        "power": [s.state.emas["power-0.1.denoiser"][name] for name in names],
        "first": [state["exp_avg"] for state in moments],
        "second": [state["exp_avg_sq"] for state in moments],
    }
    return {kind: (sum(rows(t).numel() for t in ts), sum(t.numel() for t in ts)) for kind, ts in found.items()}


def watched(cfg, rank, *, die_at=None):
    """Writes down what each rank holds after its last step. `die_at`: all ranks are killed before the step after it."""
    step, norm = loop.launch_step, loop._gradient_norm
    gradients = []

    def gradient_norm(network):
        gradients[:] = [p.grad for p in network.parameters()]
        return norm(network)

    def launch_step(s, *args, **kwargs):
        if s.state.progress.step == die_at:
            s.saver.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        launched = step(s, *args, **kwargs)
        if launched.step == STEPS:
            (cfg.runs_dir / f"{cfg.name}-held-{rank}.json").write_text(json.dumps(held(s, gradients)))
        return launched

    loop.launch_step, loop._gradient_norm = launch_step, gradient_norm
    return cfg


def same(one: RunDir, other: RunDir) -> bool:
    """All tensors of the last checkpoints within 1e-9, and what was validated and measured on the way."""
    for path in sorted(one.checkpoint(STEPS).glob("*.safetensors")):
        a, b = load_file(path), load_file(other.checkpoint(STEPS) / path.name)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=0, atol=1e-9)
    for a, b in zip(tiny.history(one), tiny.history(other), strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    numbers = [read(run.checkpoint(STEPS)).numbers for run in (one, other)]
    assert numbers[0]["best_step"] == numbers[1]["best_step"] > 0
    assert numbers[0]["best"] == pytest.approx(numbers[1]["best"], rel=1e-9)
    return True


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the data, and a reference for metrics in training."""
    cfg = config(tmp_path_factory.mktemp("fsdp"), "data")
    tiny.prepare(cfg)
    reference.run(cfg)
    return cfg.data_dir.parent


@pytest.fixture(scope="module")
def single(root):
    """The run of one process, which is never sharded, whatever is set."""
    return alone(config(root, "single", sharding="fsdp"))


@pytest.fixture(scope="module")
def two(root):
    """The sharded run of two ranks, which also accumulate gradients and recompute activations."""
    return tiny.run(config(root, "two", **SAVINGS), world_size=2, change=watched)


@pytest.fixture(scope="module")
def killed(root):
    """The same, killed after step 7 of 12."""
    cfg = config(root, "killed", **SAVINGS)
    for rank in (ranks := tiny.start(cfg, world_size=2, change=functools.partial(watched, die_at=7))):
        rank.join()
    codes = [rank.exitcode for rank in ranks]
    assert -signal.SIGKILL in codes and 0 not in codes  # one may notice first that the other is gone
    return RunDir(cfg.runs_dir / cfg.name)


def resumed(killed, name, *, world_size, **train):
    """A copy of the killed run, taken to its end."""
    cfg = config(killed.path.parent.parent, name, **train)
    shutil.copytree(killed.path, cfg.runs_dir / name)
    return alone(cfg) if world_size == 1 else tiny.run(cfg, world_size=world_size)


def alone(cfg):
    """Train in this process."""
    run = create_run(cfg)
    assert loop.train(cfg, run) == 0
    return run


def test_two_ranks_train_and_evaluate_as_one_process(single, two):
    assert same(single, two)


def test_each_rank_holds_its_share(two):
    """Weights, gradients, EMA and moments. A tensor of an odd number of rows is divided as evenly as it can be."""
    ranks = [json.loads((two.path.parent / f"two-held-{rank}.json").read_text()) for rank in range(2)]
    for kind in ("weights", "gradients", "ema", "power", "first", "second"):
        (first, whole), (second, _) = (rank[kind] for rank in ranks)
        assert first + second == whole > 5_000
        assert first < 0.55 * whole


def test_killed_and_resumed_is_uninterrupted(two, killed):
    found = resumed(killed, "again", **SAVINGS, world_size=2)
    assert tiny.fingerprint(found, STEPS) == tiny.fingerprint(two, STEPS)
    assert tiny.history(found) == tiny.history(two)


@pytest.mark.parametrize(("sharding", "world_size"), [("fsdp", 4), ("none", 1)])
def test_another_number_of_ranks_goes_on(single, killed, sharding, world_size):
    """Nor does it matter whether these are sharded: it is a setting that may differ from the run's."""
    assert same(single, resumed(killed, f"on-{world_size}", sharding=sharding, world_size=world_size))


def in_bf16(root, sharding):
    """A transformer under autocast, without an EMA."""
    cfg = tiny.config(
        root,
        name=sharding,
        model={"kind": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 2, "dropout": 0.1},
        sharding=sharding,
        precision="bf16",
        log_every="1 steps",
        duration="4 steps",
        validate_every="2 steps",
    )
    return tiny.revalidated(cfg, sample={"weights": "network"}, train={"ema": {"half_life": None}})


def test_float32_weights_are_rounded_where_they_are_used(root):
    """In bf16, in training and in evaluation. What is validated are the weights themselves: there is no EMA."""
    expected = tiny.history(alone(in_bf16(root, "none")))
    found = tiny.history(tiny.run(in_bf16(root, "fsdp"), world_size=2))
    assert len(found) == 6
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=1e-2)


class Poisoned(Denoising):
    """A loss that is not a number for one image of steps 6 to 8, which is rank 1's of two."""

    def loss(self, name, networks, batch):
        """The real one, spoiled."""
        values = super().loss(name, networks, batch)
        bad = torch.tensor([int(v) % 8 == 7 and int(v) // 8 in range(5, 8) for v in batch.sample_indices])
        return {**values, "loss": torch.where(bad, math.nan, 1.0) * values["loss"]}


def poisoned(cfg, rank):
    """Its objective; any rank."""
    del rank
    setup.build_objective = Poisoned
    return cfg


def test_what_is_not_finite_is_skipped_by_all_and_returned_from(root, monkeypatch):
    """Rank 1 alone meets the bad image. Three such steps in a row go back to the last checkpoint."""
    settings = {"nonfinite_limit": 3, "checkpoint_every": "4 steps", "async_save": False, "sharding": "fsdp"}
    settings |= {"metric_every": None, "preview_every": None, "duration": "10 steps"}
    several = tiny.run(config(root, "several", **settings), world_size=2, change=poisoned)
    monkeypatch.setattr(setup, "build_objective", Poisoned)
    expected, found = (read(newest_valid(run)[0]) for run in (alone(config(root, "one", **settings)), several))
    assert (found.numbers["skipped"], found.numbers["rollbacks"]) == (3, 1)
    assert found.numbers["data_offset"] == expected.numbers["data_offset"] == 4
    for name, tensor in expected.tensors["network.denoiser"].items():
        torch.testing.assert_close(found.tensors["network.denoiser"][name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.optim.kind=muon"], "train.optim.kind=muon: expected adam or adamw"),
        (["train.optim.kind=sgd"], "train.optim.kind=sgd: expected adam or adamw"),
        (["train.precision=fp16"], "train.precision=fp16: its loss scale was not tried"),
        (["train.cuda_graph=true"], "train.cuda_graph=true: a graph does not hold"),
        (["train.compile=true"], "train.compile=true: it was not tried"),
        (["model=stylegan_tiny"], "model.kind=stylegan: only a diffusion model"),
        (["model=vae"], "model.kind=vae: only a diffusion model"),
    ],
    ids=str,
)
def test_what_cannot_be_sharded_is_refused(overrides, said):
    with pytest.raises(UserError, match=r"train\.sharding: found fsdp with") as raised:
        config_from(["experiment=glyphs16", "train.sharding=fsdp", *overrides])
    assert said in str(raised.value)
