"""Saving in the background: one at a time, of the state as it was, and its failures are not lost."""

import pytest
import tiny
import torch

from pipeline import checkpoint
from pipeline.checkpoint import Snapshot
from pipeline.runtime.run_dir import RunDir
from pipeline.train.saver import Saver


def test_a_background_save_holds_the_state_of_its_step(tmp_path):
    run = RunDir(tmp_path)
    saver = Saver(run, keep_last=3, keep_every=None, background=True)
    weights = torch.zeros(1_000_000)
    for step in (1, 2, 3):
        saver.save(Snapshot({"network.net": {"w": weights}}, {"step": step}), wait=False)
        weights += 1  # training goes on while it is written
    saver.finish()
    found = [float(checkpoint.read(run.checkpoint(s)).tensors["network.net"]["w"].unique()) for s in (1, 2, 3)]
    assert found == [0.0, 1.0, 2.0]


def test_a_failed_background_save_is_raised(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    saver = Saver(RunDir(tmp_path), keep_last=3, keep_every=None, background=True)
    saver.save(Snapshot({"network.net": {"w": torch.zeros(2)}}, {"step": 1}), wait=False)
    with pytest.raises(OSError, match="checkpoints"):
        saver.finish()


def test_a_clock_on_the_wall_may_ask_for_saves_and_changes_nothing_else(tmp_path):
    never = tiny.config(tmp_path, name="never", checkpoint_every="1000 steps", keep_last=50)
    often = tiny.config(tmp_path, name="often", checkpoint_every="1000 steps", keep_last=50, checkpoint_minutes=1e-6)
    tiny.prepare(never)
    one, two = tiny.run(never), tiny.run(often, world_size=1)
    assert one.steps() == [0, 12] and len(two.steps()) > 6
    assert tiny.fingerprint(one, 12) == tiny.fingerprint(two, 12)


def test_training_with_background_saves_is_the_same_training(tmp_path):
    one = tiny.config(tmp_path, name="one")
    two = tiny.config(tmp_path, name="two", async_save=True, checkpoint_every="1 steps")
    tiny.prepare(one)
    assert tiny.fingerprint(tiny.run(one), 12) == tiny.fingerprint(tiny.run(two), 12)
