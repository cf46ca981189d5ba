"""Saving in the background: one at a time, of the state as it was, and its failures are not lost."""

import pytest
import tiny
import torch

from pipeline import checkpoint
from pipeline.checkpoint import Snapshot
from pipeline.runtime.run_dir import RunDir, create_run
from pipeline.train.state import Saver


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


def test_a_copy_holds_no_tensor_of_an_earlier_one(tmp_path):
    """After a rollback to the first step the optimiser has no moments: the next save must not bring back old ones."""
    saver = Saver(RunDir(tmp_path), keep_last=3, keep_every=None, background=True)
    for step, names in ((1, ("w", "m")), (2, ("w",))):
        tensors = {name: torch.full((2,), float(step)) for name in names}
        saver.save(Snapshot({"optimizer.net": tensors}, {"step": step}), wait=False)
    saver.finish()
    found = [checkpoint.read(RunDir(tmp_path).checkpoint(s)).tensors["optimizer.net"] for s in (1, 2)]
    assert [{name: float(t[0]) for name, t in tensors.items()} for tensors in found] == [{"w": 1, "m": 1}, {"w": 2}]


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
    one = tiny.config(tmp_path, name="one", async_save=False)
    two = tiny.config(tmp_path, name="two", checkpoint_every="1 steps")
    assert two.train.async_save
    tiny.prepare(one)
    assert tiny.fingerprint(tiny.run(one), 12) == tiny.fingerprint(tiny.run(two), 12)


def test_how_a_run_saves_may_be_said_anew(tmp_path):
    run = create_run(tiny.config(tmp_path, async_save=False))
    assert create_run(tiny.config(tmp_path, async_save=True)) == run
