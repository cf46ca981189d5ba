"""Losses that are not finite: skipped by all, counted, passed over, and in the end refused with words."""

import math

import pytest
import tiny
import torch

from pipeline.checkpoint import newest_valid, read
from pipeline.monitor.recorder import read_metrics
from pipeline.objectives.denoising import Denoising
from pipeline.runtime.errors import NonFiniteError
from pipeline.runtime.run_dir import create_run
from pipeline.train import loop, session


class Poisoned(Denoising):
    """A loss that is not a number for the images of some steps, as a broken image would make it."""

    steps: range = range(0)

    def loss(self, player, networks, batch):
        """The real one, spoiled for the visits of `steps`."""
        values = super().loss(player, networks, batch)
        bad = torch.tensor([int(v) // 8 in self.steps for v in batch.visits])
        return {"loss": torch.where(bad, math.nan, 1.0) * values["loss"]}


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    def train(steps, **settings):
        monkeypatch.setattr(Poisoned, "steps", steps)
        monkeypatch.setattr(session, "build_objective", Poisoned)
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
    rows = {row["step"]: row for row in read_metrics(run.metrics) if "skipped" in row}
    assert rows[4]["skipped"] == 0 and rows[8]["skipped"] == 2
    assert all(torch.isfinite(t).all() for t in read(run.checkpoint(8)).tensors["network.denoiser"].values())


def test_many_in_a_row_go_back_and_pass_over_the_data(poisoned):
    run, code = poisoned(range(5, 8), duration="12 steps", checkpoint_every="4 steps")
    assert code == 0
    clock = read(newest_valid(run)[0]).numbers
    assert (clock["step"], clock["rollbacks"], clock["data_offset"], clock["skipped"]) == (12, 1, 4, 3)


def test_in_the_end_it_stops_and_says_what_to_do(poisoned):
    with pytest.raises(NonFiniteError, match=r"Lower train.optim.lr"):
        poisoned(range(5, 1000), duration="12 steps")


def test_two_ranks_skip_together(tmp_path):
    """Rank 1 alone meets the bad image; both skip, so their weights stay equal (DDP would not notice)."""
    cfg = tiny.config(tmp_path, optim={"lr": 1e30, "clip": None}, duration="6 steps", nonfinite_limit=100)
    tiny.prepare(cfg)
    run = tiny.run(cfg, world_size=2)
    clock = read(newest_valid(run)[0]).numbers
    assert clock["skipped"] > 0
    assert all(torch.isfinite(t).all() for t in read(newest_valid(run)[0]).tensors["network.denoiser"].values())
