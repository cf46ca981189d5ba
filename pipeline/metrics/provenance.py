"""Which code and which libraries made a number."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("mudi", "torch", "numpy", "scipy", "pillow", "torchmetrics")
_ROOT = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str]:
    """Version of Python and of the packages that decide numbers, and the commit ("+" where the code was changed)."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "commit": commit()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """Short commit of the code, "unknown" where it does not stand in a git repository."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
