"""Which code and which libraries made a number."""

import platform
from importlib.metadata import PackageNotFoundError, version

from pipeline.runtime.commit import commit_of

_PACKAGES = ("mudi", "torch", "numpy", "scipy", "pillow", "torchmetrics")


def versions() -> dict[str, str]:
    """Version of Python and of the packages that decide numbers, and the commit ("+" where the code was changed)."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "commit": commit_of()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
