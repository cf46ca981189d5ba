"""What every test may ask for."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No verdict depends on how fast the machine is.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")

# Tests run side by side; a process that takes every core for itself slows them all. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _threads_stay_as_they_are() -> Iterator[None]:
    """Sums round differently with the number of threads: a test that changes it breaks another's equality of bits."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    if torch:
        after = torch.get_num_threads()
        torch.set_num_threads(before)
        assert after == before, f"this test left torch with {after} threads instead of {before}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights that may lie beside the project (MUDI_SHARED, default ../shared)."""
    path = Path(os.environ.get("MUDI_SHARED", ROOT.parent / "shared")).resolve()
    if not (path / "data").is_dir():
        pytest.skip(f"needs real images: {path}/data does not exist (set MUDI_SHARED)")
    return path
