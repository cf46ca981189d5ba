"""What every test may ask for."""

import os
from pathlib import Path

import pytest

# Tests run side by side; a process that takes every core for itself slows them all. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights that may lie beside the project (MUDI_SHARED, default ../shared)."""
    path = Path(os.environ.get("MUDI_SHARED", ROOT.parent / "shared")).resolve()
    if not (path / "data").is_dir():
        pytest.skip(f"needs real images: {path}/data does not exist (set MUDI_SHARED)")
    return path
