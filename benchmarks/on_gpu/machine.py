"""The card, its software, and the speed that a share of it (MFU) is a share of."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from on_gpu.report import seconds

from pipeline.runtime.commit import commit_of
from pipeline.train.speed import peak_tflops


def header(device: str, root: Path) -> dict[str, Any]:
    """Everything that a number of this machine needs beside it."""
    found: dict[str, Any] = {
        "commit": os.environ.get("MUDI_COMMIT") or commit_of(root),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": len(os.sched_getaffinity(0)),
        "device": device,
    }
    if device == "cpu":
        return found | {"card": platform.processor() or "cpu", "measured_tflops": None, "peak_tflops": None}
    card = torch.cuda.get_device_properties(0)
    measured = matmul_tflops()
    known = peak_tflops(card.name, "bf16")
    return found | {
        "card": card.name,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver(),
        "measured_tflops": round(measured),
        "peak_tflops": known or round(measured),
        "peak_is": "data sheet, dense bf16" if known else "measured, bf16 product of 8192 x 8192",
    }


def driver() -> str:
    """The driver's version as the kernel module or nvidia-smi tells it."""
    path = Path("/proc/driver/nvidia/version")
    if path.is_file() and (match := re.search(r"\s(\d+\.\d+(\.\d+)?)\s", path.read_text())):
        return match[1]
    try:
        argv = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def matmul_tflops(size: int = 8192, repeats: int = 50) -> float:
    """Speed of a bf16 matrix product of random numbers, in TFLOP/s."""
    a, b, out = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    for _ in range(5):
        torch.mm(a, b, out=out)
    spent = seconds(lambda: [torch.mm(a, b, out=out) for _ in range(repeats)], "cuda")
    return 2 * size**3 * repeats / spent / 1e12
