"""Losses that are not finite: skipped by all, counted, passed over, and in the end refused with words."""

import math
import time

import pytest
import tiny
import torch

from pipeline import checkpoint
from pipeline.checkpoint import newest_valid, read
from pipeline.objectives.denoising import Denoising
from pipeline.runtime.errors import NonFiniteError
from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import create_run
from pipeline.train import loop, setup


class Poisoned(Denoising):
    """A loss that is not a number for the images of some steps, as a broken image would make it."""

    steps: range = range(0)

    def loss(self, name, networks, batch):
        """The real one, spoiled for the images of `steps`."""
        values = super().loss(name, networks, batch)
        bad = torch.tensor([int(v) // 8 in self.steps for v in batch.sample_indices])
        return {"loss": torch.where(bad, math.nan, 1.0).to(values["loss"]) * values["loss"]}


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    def train(steps, **settings):
        monkeypatch.setattr(Poisoned, "steps", steps)
        monkeypatch.setattr(setup, "build_objective", Poisoned)
        cfg = tiny.config(tmp_path, log_every="1 steps", nonfinite_limit=3, **settings)
        tiny.prepare(cfg)
        run = create_run(cfg)
        return run, loop.train(cfg, run)

    return train


def test_a_bad_step_changes_nothing_and_is_counted(poisoned):
    run, code = poisoned(range(4, 6), duration="8 steps", checkpoint_every="1 steps", keep_last=20)
    assert code == 0
    before, after = (read(run.checkpoint(step)).tensors["network.denoiser"] for step in (4, 6))
    assert all(torch.equal(before[k], after[k]) for k in before)
    rows = {row["step"]: row for row in read_lines(run.metrics) if "skipped" in row}
    assert rows[4]["skipped"] == 0 and rows[8]["skipped"] == 2
    assert all(torch.isfinite(t).all() for t in read(run.checkpoint(8)).tensors["network.denoiser"].values())


def test_many_in_a_row_go_back_and_pass_over_the_data(poisoned):
    run, code = poisoned(range(5, 8), duration="12 steps", checkpoint_every="4 steps")
    assert code == 0
    saved = read(newest_valid(run)[0]).numbers
    assert (saved["step"], saved["rollbacks"], saved["data_offset"], saved["skipped"]) == (12, 1, 4, 3)


def test_in_the_end_it_stops_and_says_what_to_do(poisoned):
    with pytest.raises(NonFiniteError, match=r"Lower train.optim.lr"):
        poisoned(range(5, 1000), duration="12 steps")


def slow_and_poisoned(cfg, rank):
    """Images of steps 6 to 8 are broken. Rank 0 saves in the background and needs a second for step 6."""
    Poisoned.steps = range(6, 9)
    setup.build_objective = Poisoned
    whole = checkpoint.write

    def slowly(directory, snapshot):
        time.sleep(snapshot.step == 6)
        whole(directory, snapshot)

    checkpoint.write = slowly if rank == 0 else whole
    return cfg


def test_ranks_return_to_the_same_checkpoint_while_it_is_being_written(tmp_path):
    """Steps 7 to 9 fail right after the save of step 6 began: a rank that looked for itself would find step 3."""
    often = {"precision": "fp64", "log_every": "1 steps", "nonfinite_limit": 3, "async_save": True}
    one, two = (tiny.config(tmp_path, name=name, duration="14 steps", **often) for name in ("one", "two"))
    tiny.prepare(one)
    expected = tiny.run(one, change=slow_and_poisoned)
    found = tiny.run(two, world_size=2, change=slow_and_poisoned)
    numbers = read(newest_valid(found)[0]).numbers
    assert (numbers["step"], numbers["rollbacks"], numbers["data_offset"]) == (14, 1, 3)
    weights = [read(newest_valid(run)[0]).tensors["network.denoiser"] for run in (expected, found)]
    assert max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0]) < 1e-9
    steps = [row["step"] for row in read_lines(found.metrics) if "loss" in row]
    assert steps == list(range(1, 15))


def test_two_ranks_skip_together(tmp_path):
    """Rank 1 alone meets the bad image; both skip, so their weights stay equal (DDP would not notice)."""
    cfg = tiny.config(tmp_path, optim={"lr": 1e30, "clip": None}, duration="6 steps", nonfinite_limit=100)
    tiny.prepare(cfg)
    run = tiny.run(cfg, world_size=2)
    saved = read(newest_valid(run)[0]).numbers
    assert saved["skipped"] > 0
    assert all(torch.isfinite(t).all() for t in read(newest_valid(run)[0]).tensors["network.denoiser"].values())
