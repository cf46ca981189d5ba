"""Memory is flat in the size of the data set."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepared import picture


def linked_folder(root: Path, count: int) -> Path:
    """`count` names of a few small files: as many directory entries, hardly any bytes."""
    originals = root / "originals"
    originals.mkdir(parents=True)
    for number in range(10):
        picture(number, width=16, height=16).save(originals / f"{number}.png")
    for number in range(count - 10):
        folder = root / f"{number // 5000:03d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:07d}.png").hardlink_to(originals / f"{number % 10}.png")
    return root


def peak_mib(root: Path, data_dir: Path, stage: str) -> float:
    """Largest resident memory of a stage and its worker processes together, in MiB, seen every 50 ms."""
    overrides = ["data=folder", f"data_dir={data_dir}", f"data.source.path={root}", "data.image_size=16"]
    command = [sys.executable, "-m", "data_prep", stage, *overrides, "data.encoding=raw"]
    command += ["--workers=2"] if stage == "shard" else []
    task, peak = subprocess.Popen(command, stderr=subprocess.DEVNULL), 0
    while task.poll() is None:
        peak = max(peak, resident(task.pid))
        time.sleep(0.05)
    assert task.returncode == 0
    return peak / 2**20


def resident(process: int) -> int:
    """Bytes of a process and all below it."""
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    return own + sum(resident(int(child)) for child in children)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_two_hundred_thousand_images_take_little_more_memory_than_two_thousand(tmp_path: Path) -> None:
    few, many = linked_folder(tmp_path / "few", 2_000), linked_folder(tmp_path / "many", 200_000)
    for stage in ("fetch", "shard", "verify"):
        small, large = peak_mib(few, tmp_path / "a", stage), peak_mib(many, tmp_path / "b", stage)
        print(f"{stage}: {small:.0f} MiB for 2,000 images, {large:.0f} MiB for 200,000")
        assert large < 1024 and large - small < 400, stage
