"""How well time was used."""

from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import RunDir


def seconds_of_starts(run: RunDir) -> float:
    """Wall seconds of all starts of a run so far, each from its beginning to its last sign of life in metrics.jsonl."""
    begun = [float(row["time"]) for row in read_lines(run.starts)]
    last = dict(enumerate(begun, start=1))
    for row in read_lines(run.metrics):
        last[row["start"]] = max(last.get(row["start"], 0.0), float(row["time"]))
    return sum(last[number] - begin for number, begin in enumerate(begun, start=1))


def goodput(kept_seconds: float, wall_seconds: float) -> float:
    """Share of the wall time of all starts that was spent on steps that were kept, in [0, 1]."""
    return min(kept_seconds / wall_seconds, 1.0) if wall_seconds > 0 else 1.0
