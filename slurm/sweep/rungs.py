"""Ending trainings early: at rungs a run is compared with the others, by Optuna's rule, under the sweep's lock.

A number that training measures itself (valid/loss) is read from metrics.jsonl while it trains. For one that
evaluation measures, training is asked to stop at the rung, a small sample set of that checkpoint is drawn and
evaluated, and training goes on: it resumes exactly, so a run that is not pruned ends as if nothing had been asked.
"""

from collections.abc import Callable, Sequence

from pipeline.config.paths import sample_set_name
from pipeline.runtime.files import read_json, write_json
from slurm.sweep.runs import PRUNED, Run, pick, stages, training_values
from slurm.sweep.settings import SweepSettings
from slurm.sweep.trials import open_study, report
from slurm.workflows import Launch


class Rungs:
    """The rungs of one run, as rank 0 of its training sees them."""

    def __init__(self, run: Run, launch: Launch, settings: SweepSettings) -> None:
        """Rungs that an earlier start has reported are known from the journal."""
        self._run, self._launch, self._settings = run, launch, settings
        pruning = settings.pruning
        self.active = pruning.kind != "none" and run.seed == 0 and "train" in stages(launch)
        self._by_evaluation = "/" not in pruning.metric
        self._pausing: int | None = None  # the step at which training was asked to stop
        self._size = -1
        self._known: set[int] = set()
        if self.active:
            study = open_study(run.sweep.journal, settings)
            self._known = set(study.get_trials(deepcopy=False)[run.trial].intermediate_values)

    def should_stop(self) -> bool:
        """Whether training is to be asked to stop now: it is pruned, or a rung is to be measured."""
        if not self.active:
            return False
        if self._by_evaluation:
            self._pausing = self._reached()
            return self._pausing is not None
        size = self._launch.run.metrics.stat().st_size if self._launch.run.metrics.is_file() else 0
        if size == self._size:
            return False
        self._size = size
        rows = training_values(self._launch, self._settings.pruning.metric)
        return any(self._pruned(images, value) for images, value in rows if images not in self._known)

    def paused(self) -> int | None:
        """The step at which training was stopped for a rung, told once; None where it stopped for another reason."""
        step, self._pausing = self._pausing, None
        return step

    def measure(self, step: int, run_words: Callable[[Sequence[str]], int]) -> int:
        """Sample and evaluate a rung's checkpoint and compare; 0, or the code of words that failed."""
        run, name = self._launch.run, sample_set_name(self._launch.cfg)
        words = ["sample", str(run.path), "--step", str(step), f"sample.count={self._settings.pruning.images}"]
        code = run_words(words)
        chosen = run.samples(step) / name
        code = code or run_words(
            ["evaluate", str(run.path), f"evaluate.samples={chosen.parent.name}/{name}", words[-1]]
        )
        if code:
            return code
        result = read_json(run.results / f"{step:09d}-{name}.json")
        rung = max(r for r in self._rungs(step * self._launch.cfg.train.global_batch))
        self._pruned(rung, pick(result["metrics"], self._settings.pruning.metric))
        return 0

    def _rungs(self, images: int) -> list[int]:
        """Those that a training has reached that has seen so many images."""
        first, every = (round(1000 * x) for x in (self._settings.pruning.first_kimg, self._settings.pruning.every_kimg))
        return list(range(first, images + 1, every))

    def _reached(self) -> int | None:
        """The step of the checkpoint to measure next, if its rung is reached and training has not ended: of the last
        rung the first checkpoint, which is the same however late this looks."""
        run, batch = self._launch.run, self._launch.cfg.train.global_batch
        due = [
            (rung, step)
            for step in run.steps()
            for rung in self._rungs(step * batch)[-1:]
            if rung not in self._known and not run.finished()
        ]
        return min((step for rung, step in due if rung == max(due)[0]), default=None)

    def _pruned(self, images: int, value: float) -> bool:
        with self._run.sweep.lock():
            study = open_study(self._run.sweep.journal, self._settings, repair=True)
            ends = report(study, self._run.trial, images=images, value=value)
        self._known.add(images)
        if ends:
            note = {"images": images, "value": value, "metric": self._settings.pruning.metric}
            cause = f"{note['metric']} = {value:.4g} after {images} images"
            write_json(self._run.path / PRUNED, {**note, "cause": "pruned", "message": cause})
        return ends
