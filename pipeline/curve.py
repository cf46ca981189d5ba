"""The curve command: a metric over training, from samples of every checkpoint that was kept.

mudi curve RUN_DIR --metric fid sample.count=1000

`train.keep_every` says which checkpoints are kept. For each of them this samples, evaluates, and then draws all results
against the step, beside the table of numbers, in the run directory's curve/. What is there already is not done again.
Metrics that training measures of itself (`train.metric_every`) stand in metrics.jsonl and need none of this.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.compare import compare
from pipeline.config.check_training import metric_problems
from pipeline.config.load import listed
from pipeline.config.needs import metric_missing, require
from pipeline.config.schema import Config
from pipeline.evaluate import evaluate
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.run_dir import RunDir, existing_run
from pipeline.sample import sample

FOLDER = "curve"


def main(overrides: list[str], *, metric: Sequence[str] = ()) -> None:
    """`mudi curve RUN_DIR [--metric NAME ...] [key=value ...]`."""
    run, cfg = existing_run(overrides)
    require(cfg, "sample", "evaluate")
    problems = [problem for name in metric for problem in (*metric_problems(cfg, name), *metric_missing(cfg, name))]
    if problems:  # before anything is sampled
        raise UserError(listed([f"--metric: {problem}" for problem in problems]))
    print(*curve(cfg, run, metrics=metric), sep="\n")


def curve(cfg: Config, run: RunDir, *, metrics: Sequence[str] = ()) -> list[Path]:
    """Sample and evaluate every checkpoint of the run; returns the table and the picture.

    Raises:
        Incomplete: where there are no two checkpoints.
    """
    steps = [step for step in sorted(run.steps()) if step]
    if len(steps) < 2:
        raise Incomplete(
            f"{run.path} keeps the checkpoints of steps {steps}, expected two or more for a curve. Train with "
            "train.keep_every, such as '10 epochs'."
        )
    for step in steps:
        sample(cfg.model_copy(update={"sample": cfg.sample.model_copy(update={"step": step})}), run)
    evaluate(cfg, run)
    return compare([run.path], run.path / FOLDER, metrics=metrics)
