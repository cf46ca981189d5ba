"""The TensorBoard page of a sweep."""

from slurm.sweep.folder import SweepDir


def write(sweep: SweepDir) -> None:
    """Write it."""
