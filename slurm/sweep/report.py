"""The report of a sweep."""

from pathlib import Path

from pipeline.runtime.files import write_text
from slurm.sweep.folder import SweepDir
from slurm.sweep.standing import standing


def write(sweep: SweepDir) -> Path:
    """Write it; its path."""
    path = sweep.path / "report.md"
    write_text(path, "\n".join(map(str, standing(sweep))) + "\n")
    return path
