"""The log's "speed/...": operations of an image by hand, shares of a card's peak, waits for data."""

import itertools
import time
from types import SimpleNamespace

import pytest
import tiny
import torch

from pipeline.config.paths import training_shards
from pipeline.config.plan import plan_for
from pipeline.data.reader import Reader
from pipeline.data.shards import open_shards
from pipeline.objectives.build import build_objective
from pipeline.runtime.distributed import World
from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import create_run
from pipeline.train import loop
from pipeline.train.speed import Speed, flops_per_image, peak_tflops

DIT = {"kind": "dit", "condition": "class", "width": 16, "depth": 2, "heads": 2, "patch": 2, "dropout": 0.1}
DROPOUT = {**tiny.UNET, "condition": "class", "dropout": 0.1}
BOTTLENECK = {"kind": "bottleneck_autoencoder", "width": 8, "multipliers": [1, 2], "latent_channels": 2, "groups": 4}
SIMPLE = {"kind": "simple_unet", "width": 8, "multipliers": [1, 2], "attention": [4], "heads": 1}
MODELS = {
    "unet": (tiny.UNET, {}),
    "unet-dropout": (DROPOUT, {"micro_batch": 4}),
    "unet-fp64": (tiny.UNET, {"precision": "fp64"}),
    "dit": (DIT, {}),
    "simple_unet": (SIMPLE, {}),
    "game": (tiny.GAME, {}),
    "autoencoder": (tiny.AUTOENCODER, {}),
    "bottleneck": (BOTTLENECK, {}),
    "vae": (tiny.VAE, {}),
}
TIMESTEPS = {"kind": "ddpm", "timesteps": 20, "schedule": "cosine"}
PROCESSES = {
    "uncertainty": {"learned_uncertainty": True},
    "ddpm-learned": {"parametrisation": "eps", "levels": TIMESTEPS, "learned_variance": True},
    "v-min-snr": {"parametrisation": "v", "levels": TIMESTEPS, "weighting": "min_snr"},
    "flow": {"parametrisation": "flow", "levels": {"kind": "logit_normal"}, "time_input": "flow_time"},
    "ve": {"levels": {"kind": "geometric", "sigma_min": 0.01, "sigma_max": 50.0}},
}


def session_of(cfg):
    """What is asked for speed, of a session on the CPU."""
    tiny.prepare(cfg)
    reader = Reader(open_shards(training_shards(cfg) / "train"))
    return SimpleNamespace(
        cfg=cfg,
        plan=plan_for(cfg, train_images=reader.count, world_size=1),
        train_data=reader,
        objective=build_objective(cfg, reader.manifest),
        dtype=torch.float64 if cfg.train.precision == "fp64" else torch.float32,
        device=torch.device("cpu"),
        world=World(),
        state=SimpleNamespace(progress=SimpleNamespace(step=0)),
    )


def test_operations_of_a_transformer_by_hand(tmp_path):
    width, tokens, patch, features = 16, 16, 4, 256  # 8 px in patches of 2 x 2, one channel
    outer = patch * width * tokens + features * width  # into the first layers: no gradient of what comes in
    block = tokens * width * (3 + 1 + 2 * 4) * width + 2 * tokens**2 * width + 6 * width**2
    inner = 2 * block + width**2 + 2 * width**2 + tokens * width * patch
    found = flops_per_image(session_of(tiny.config(tmp_path, model=DIT)))
    assert found == 2 * (2 * outer + 3 * inner)


@pytest.mark.parametrize("name", MODELS)
def test_operations_of_every_objective(name, tmp_path):
    model, settings = MODELS[name]
    s = session_of(tiny.config(tmp_path, model=model, **settings))
    weights = sum(p.numel() for network in s.objective.trained for p in s.objective.networks[network].parameters())
    assert flops_per_image(s) > weights  # each is used at least once


@pytest.mark.parametrize("name", PROCESSES)
def test_operations_do_not_depend_on_the_process(name, tmp_path):
    plain = tiny.config(tmp_path)
    other = tiny.revalidated(plain, diffusion=PROCESSES[name])
    assert flops_per_image(session_of(other)) == pytest.approx(flops_per_image(session_of(plain)), rel=0.02)


def test_a_discriminator_counts_though_it_joins_late(tmp_path):
    cfg = tiny.config(tmp_path, model=tiny.AUTOENCODER)
    alone = tiny.revalidated(cfg, autoencoder={"adversarial_weight": 0.0})
    assert flops_per_image(session_of(cfg)) > 1.05 * flops_per_image(session_of(alone))


def test_the_log_says_operations_and_waits_and_no_share_of_a_cpu(tmp_path):
    cfg = tiny.config(tmp_path, duration="4 steps", checkpoint_every="4 steps")
    s = session_of(cfg)
    run = create_run(cfg)
    assert loop.train(cfg, run) == 0
    rows = [row for row in read_lines(run.metrics) if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        assert row["speed/tflops"] * 1e12 == pytest.approx(row["speed/images_per_second"] * flops_per_image(s))
        assert 0 < row["speed/data_wait"] < 1 and "speed/mfu" not in row and "speed/memory_gib" not in row


def test_only_time_before_data_is_there_counts_as_a_wait(tmp_path):
    def slow():
        while True:
            time.sleep(0.05)
            yield []

    speed = Speed(session_of(tiny.config(tmp_path)))
    assert speed.row(1)["speed/data_wait"] == 0
    for _ in itertools.repeat(None, 2):
        speed.next(slow())
    row = speed.row(2)
    seconds = 8 / row["speed/images_per_second"]
    assert 0.1 <= row["speed/data_wait"] * seconds <= seconds
    assert speed.row(3)["speed/data_wait"] == 0


def test_ranks_share_the_work_and_a_known_card_has_a_share(tmp_path, monkeypatch):
    s = session_of(tiny.config(tmp_path))
    s.world = World(rank=0, size=2)
    speed = Speed(s)
    monkeypatch.setattr(speed, "_peak", 100.0)
    row = speed.row(4)
    assert row["speed/tflops"] * 2e12 == pytest.approx(row["speed/images_per_second"] * flops_per_image(s))
    assert row["speed/mfu"] == row["speed/tflops"] / 100


@pytest.mark.parametrize(
    ("card", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "tf32", 494),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5),
        ("NVIDIA A100-SXM4-40GB", "fp64", None),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("Tesla V100-SXM2-32GB", "tf32", 15.7),  # it rounds nothing
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA GeForce GTX 1080", "fp32", None),
        ("CPU", "bf16", None),
    ],
)
def test_peaks_of_cards(card, precision, peak):
    assert peak_tflops(card, precision) == peak
