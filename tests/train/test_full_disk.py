"""A disk that is really full: the error says what to do, and what was finished before is untouched."""

import os
import shutil
import subprocess

import pytest
import tiny

from pipeline import checkpoint
from pipeline.runtime.run_dir import RunDir


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB: room for a few checkpoints of the tiny model."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_while_saving(tmp_path, small_disk):
    cfg = tiny.config(tmp_path, checkpoint_every="2 steps", keep_last=50)
    tiny.prepare(cfg)
    cfg = cfg.model_copy(update={"runs_dir": small_disk / "runs"})
    (rank,) = tiny.start(cfg)
    rank.join(60)
    log = (cfg.runs_dir / "tiny.log").read_text()
    assert rank.exitcode == 1 and "No space left while writing" in log and "Free space" in log
    run = RunDir(cfg.runs_dir / "tiny")
    assert [checkpoint.read(run.checkpoint(step)).step for step in run.steps()] == run.steps() != []
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    tiny.run(cfg)
    assert run.finished()
    whole = tiny.config(tmp_path, name="whole", checkpoint_every="2 steps")
    assert tiny.fingerprint(run, 12) == tiny.fingerprint(tiny.run(whole), 12)
