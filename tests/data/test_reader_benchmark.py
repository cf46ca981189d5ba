"""The benchmarks run, on what is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = "--model unet_tiny --autoencoder kl_autoencoder_tiny"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["reader.py", "--images", "64", "--rounds", "1"], ["ours raw", "webdataset png", "target 1.5x"]),
        (
            f"latents.py {TINY} --size 16 --images 8 --batch 4 --steps 1 --rounds 1".split(),
            ["cached latents", "encoding at every step", "target 2x"],
        ),
        (
            ["steps.py", "--rounds", "1", "--case", "unet_tiny:16:2", "--precision", "bf16"],
            ["ours", "diffusers", "target 1.25"],
        ),
        (["draws.py", "--batch", "1", "--steps", "1"], ["million numbers/s", "of a step"]),
    ],
)
def test_a_benchmark_runs(argv, expected):
    command = [sys.executable, BENCHMARKS / argv[0], *argv[1:]]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in expected)
