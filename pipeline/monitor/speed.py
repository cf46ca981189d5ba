"""How well time was used."""

from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import RunDir


def seconds_of_starts(run: RunDir) -> float:
    """Wall seconds of all starts of a run so far, each from its beginning to its last sign of life in metrics.jsonl.

    Every start notes those of the starts before it, for it then removes rows of steps that it trains again.
    """
    starts = read_lines(run.starts)
    if not starts:
        return 0.0
    begun = float(starts[-1]["time"])
    signs = [float(row["time"]) for row in read_lines(run.metrics) if row["start"] == len(starts)]
    return float(starts[-1].get("earlier_seconds", 0.0)) + max([begun, *signs]) - begun


def goodput(kept_seconds: float, wall_seconds: float) -> float:
    """Share of the wall time of all starts that was spent on steps that were kept, in [0, 1]."""
    return min(kept_seconds / wall_seconds, 1.0) if wall_seconds > 0 else 1.0
