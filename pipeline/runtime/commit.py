"""Which code this is."""

import subprocess
from pathlib import Path

from pipeline.runtime.files import read_json

ROOT = Path(__file__).resolve().parents[2]
RECORD = "snapshot.json"  # what a copy of the code says of itself: see slurm.snapshot


def commit_of(root: Path = ROOT) -> str:
    """The commit of a copy or checkout of the code, with "+" where files differ from it; "unknown" of anything else."""
    if (root / RECORD).is_file():
        record = read_json(root / RECORD)
        return f"{record['commit']}{'+' if record['dirty'] else ''}"
    try:
        head, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
        return head + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *argv: str) -> str:
    done = subprocess.run(["git", "-C", root, *argv], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
