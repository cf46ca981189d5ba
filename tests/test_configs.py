"""Every experiment and sweep of `configs/` takes two steps, and every command of its README means something."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from data_prep import encode
from pipeline import checkpoint
from pipeline.config.load import CONFIG_ROOT, autoencoder_config, config_from, groups, validated
from pipeline.config.paths import data_directory, protocol_hash
from pipeline.config.schema import Config
from pipeline.config.schema_data import attribute_names
from pipeline.data import images
from pipeline.data.shards import Layout, Sample, finish, shard_name, write_shard
from pipeline.models.build import build_network
from pipeline.runtime.cli import table_of
from pipeline.runtime.files import write_json
from pipeline.runtime.run_dir import FINISHED, RunDir, create_run
from pipeline.train import loop
from pipeline.visualize import Kind
from slurm import plan
from slurm.sweep.runs import trial_overrides
from slurm.sweep.settings import corners, settings_from
from slurm.sweep.submit import check

EXPERIMENTS = groups()["experiment"]
SWEEPS = [name for name in groups()["sweep"] if not name.startswith("guidance")]  # those train nothing
CLASSES = 3
NARROW: dict[str, dict[str, Any]] = {
    "unet": {"width": 8, "groups": 4, "head_channels": 8, "blocks": 1},
    "simple_unet": {"width": 8, "heads": 2},
    "additive_unet": {"width": 8},
    "dit": {"width": 16, "depth": 1, "heads": 2},
    "kl_autoencoder": {"width": 8, "groups": 4, "blocks": 1},
    "bottleneck_autoencoder": {"width": 8, "groups": 4},
    "vae": {"width": 8, "groups": 4, "latent": 8},
    "stylegan": {"width": 8, "width_max": 16, "latent": 8, "deviation_group": 2},
}


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of weights is named: what sweeps are led by is measured."""
    monkeypatch.setenv("MUDI_WEIGHTS", "/weights")


def experiment_overrides(name: str) -> list[str]:
    path = ["data.source.path=/images"] if name.startswith("photos") else []
    return [f"experiment={name}", "cluster=local", *path]


def narrow(cfg: Config, root: Path, *, factor: int = 1) -> dict[str, Any]:
    """Settings of the config with small images and widths, for two steps of four images; all others stay.

    `factor`: how much smaller latents are than images.
    """
    values = cfg.model_dump(mode="json")
    model = {**values["model"], **NARROW.get(values["model"]["kind"], {})}
    levels = len(model.get("multipliers", ()))
    size = max(8, 2**levels) * factor
    if cfg.autoencoder.adversarial_weight:
        size = max(size, 32)  # patches of the discriminator
    if model.get("attention"):
        model["attention"] = model["attention"] if model["attention"] is True else [size // factor >> (levels - 1)]
    values["autoencoder"]["adversarial_start"] = "0 steps"
    values["autoencoder"]["perceptual"] = {"weight": 0.0}  # its features are those of a classifier of the data
    train = {"duration": "2 steps", "global_batch": 4, "validate_every": "2 steps", "preview_every": None}
    train |= {"checkpoint_every": "2 steps", "metric_every": None, "keep_every": None}
    data = {**values["data"], "image_size": size, "encoding": "raw", "counts": None}
    data["crop"] = {**data["crop"], "size": None, "min_side": None}
    train |= {"micro_batch": None, "precision": "fp32"}  # bfloat16 without units for it is slow
    places = {"runs_dir": str(root / "runs"), "data_dir": str(root / "data")}
    return {**values, **places, "model": model, "data": data, "train": {**values["train"], **train}}


def prepare(cfg: Config) -> None:
    """Noise of the right shape as the images of `cfg`, with classes and attributes."""
    rng, names = np.random.default_rng(0), attribute_names(cfg.data) or ()
    shape = (cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    layout = Layout(encoding="raw", shape=shape)
    for split, count in (("train", 12), ("valid", 6)):
        samples = []
        for k in range(count):
            pixels = rng.integers(0, 256, (*shape[1:], shape[0]), dtype=np.uint8)
            values = tuple(int(v) for v in rng.integers(0, 2, len(names)))
            raw = images.encode(pixels, "raw")
            samples.append(Sample(f"{split}{k}", raw, "npy", label=k % CLASSES, attributes=values, pixels=pixels))
        directory = data_directory(cfg) / "shards" / split
        records = [write_shard(directory / shard_name(0), samples, layout)]
        protocol = {"name": cfg.data.name, "hash": protocol_hash(cfg.data)}
        finish(directory, records, layout, classes=list("abc"), attributes=list(names), protocol=protocol, split=split)


def with_latents(cfg: Config, root: Path) -> Config:
    """The config on latents of an untrained autoencoder of its own kind, which are made here."""
    theirs = autoencoder_config(cfg)
    small = narrow(cfg, root, factor=2 ** (len(theirs.model.multipliers) - 1))  # type: ignore[attr-defined]
    its = validated({**narrow(theirs, root), "data": small["data"]})
    prepare(its)
    network = build_network(its.model, shape=(its.data.channels, its.data.image_size, its.data.image_size))
    run = create_run(its)
    tensors = {f"{kind}.autoencoder": network.state_dict() for kind in ("network", "ema")}
    checkpoint.write(run.checkpoint(1), checkpoint.Snapshot(tensors, {"step": 1}))
    write_json(run.checkpoints / FINISHED, {"step": 1})
    made = validated({**small, "latents": {**small["latents"], "autoencoder": str(run.path), "experiment": None}})
    encode.run(made, workers=1)
    return made


def takes_two_steps(cfg: Config, root: Path) -> RunDir:
    if cfg.latents is not None:
        small = with_latents(cfg, root)
    else:
        prepare(small := validated(narrow(cfg, root)))
    torch.manual_seed(0)
    run = create_run(small)
    assert loop.train(small, run) == 0 and run.latest_step() == 2
    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_plans_and_takes_two_steps(name: str, tmp_path: Path) -> None:
    cfg = config_from(experiment_overrides(name))
    plan.derived(cfg)
    takes_two_steps(cfg, tmp_path)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_plans_and_its_last_configuration_takes_two_steps(name: str, tmp_path: Path) -> None:
    settings = settings_from([f"sweep={name}", "cluster=local", "sweep.gpu_hours=null"])
    check(settings)
    grid = settings.strategy.kind == "grid"
    tried = settings.combinations if grid else corners(settings.dimensions)
    takes_two_steps(config_from(trial_overrides(settings, tried[-1])), tmp_path)


def test_the_network_of_the_readme_is_trained(tmp_path: Path) -> None:
    """In a process of its own: what a module registers stays."""
    root = CONFIG_ROOT.parent
    text = (root / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"^mudi submit (.*plugins=\[mine\].*)$", text, re.MULTILINE)
    (tmp_path / "mine.py").write_text(code)
    two_steps = "import sys; from pathlib import Path; from test_configs import config_from, takes_two_steps; "
    two_steps += "takes_two_steps(config_from(sys.argv[1:]), Path.cwd())"
    argv = [sys.executable, "-c", two_steps, *shlex.split(command)]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The README of configs


README = (CONFIG_ROOT / "README.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.splitlines()
    if re.match(r"\| R[0-4] ", line)
]
# What the five reports measured, row by row.
EXPECTED = {
    "R0": [
        *("VAE Flowers", "VAE CelebA", *(f"Flowers {n}" for n in range(1, 9)), *(f"CelebA {n}" for n in range(1, 6))),
        *("attention", "search", "page"),
    ],
    "R1": [
        *(f"{model} {kind}" for model in range(1, 5) for kind in ("unconditional", "conditional")),
        *(f"w = {w}" for w in ("0", "0.1", "0.5", "1", "2", "4")),
        *("strip", "data"),
    ],
    "R2": [
        *(f"{data} {kind}" for data in ("MNIST", "Fashion", "CIFAR") for kind in ("unconditional", "conditional")),
        *("schedules", "first stage", "latent", "CelebA"),
    ],
    "R3": ["DDPM", "GAN", "interpolation"],
    "R4": ["version 1", "version 2", "version 3"],
}


COMMAND = re.compile(r"`((?:mudi|python -m) [^`]+)`")


def commands() -> list[str]:
    return list(dict.fromkeys(COMMAND.findall("\n".join(" ".join(row) for row in ROWS))))


def test_every_row_of_the_reports_is_in_the_readme() -> None:
    assert [row[0] for row in ROWS] == [f"{report} {name}" for report, names in EXPECTED.items() for name in names]
    for row in ROWS:
        assert len(row) == 5, row
        assert COMMAND.search(row[2]) or row[2].startswith("missing:"), row
        assert all(cell for cell in row), row


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_composes_and_plans_without_data(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chosen.txt").write_text("image_00001.jpg\n")  # a person's list of keys
    program, *argv = shlex.split(command.removeprefix("python -m "))
    if argv[0] == "submit":
        plan.derived(config_from(argv[1:]))
    elif argv[:2] == ["sweep", "submit"]:
        settings = settings_from(argv[2:])
        if settings.run is None:
            check(settings)
    else:  # on a run that is trained
        known = table_of("pipeline")
        assert program in ("mudi", "pipeline") and argv[0] in known, command
        known[argv[0]].parser("pipeline").parse_known_args(argv[1:])
        assert argv[1] == "RUN", command  # a run stands first, whatever is asked of it
        assert argv[0] != "visualize" or argv[2] in get_args(Kind), command


def test_the_rows_of_tables_are_those_of_their_sweeps() -> None:
    seen = 0
    for name, row in ((row[0], row) for row in ROWS):
        said = re.search(r"batch (\d+), (\d+) epochs, (\w+), embedding (\d+), (\d+) steps: trial (\d+)", row[2])
        if said is None:
            continue
        seen += 1
        command = COMMAND.findall(row[2])[0].partition("sweep submit ")[2]
        params = settings_from(shlex.split(command)).combinations[int(said[6])]
        assert (params["train.global_batch"], params["model.embedding_width"]) == (said[1], said[4]), name
        assert params["train.duration"].strip('"') == f"{said[2]} epochs", name
        assert params["train.optim.kind"] == said[3].lower(), name
        assert params["diffusion.levels.timesteps"] == said[5], name
        assert int(said[6]) == int(name.rpartition(" ")[2]) - 1
    assert seen == 13


def test_every_experiment_and_sweep_says_its_result() -> None:
    for path in itertools.chain((CONFIG_ROOT / "sweep").glob("*.yaml"), (CONFIG_ROOT / "experiment").glob("*.yaml")):
        head = path.read_text()
        assert re.search(r"^# Run: ", head, re.M), path
        assert re.search(r"^# Result: ", head, re.M) and re.search(r"^# Cost: ", head, re.M), path
