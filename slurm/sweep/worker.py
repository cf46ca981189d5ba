"""One task of a sweep's array: one run of one trial. Train, sample, evaluate, each skipped where it is complete.

    python -m slurm.sweep.worker sweeps/NAME/jobs/array-0000/array.json [--part k/n]

Every stage is a process with the words that a person would type; every rank of the job runs this. Signals are passed on
to the stage, which saves its state. A task that is started again finds its parameters and its finished stages on the
disk and goes on from there. What came of the run is told to the study and then written, as outcome.json.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import submitit

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json, write_json
from pipeline.runtime.stopping import STOPPED, Stop
from slurm.failures import class_of, class_of_exit, last_words
from slurm.graph import Job
from slurm.progress import tail_rows
from slurm.sweep.runs import FINAL, OUTCOME, STAGES, Run, known_params, make, measured, run_at, training_values
from slurm.sweep.settings import SweepDir, SweepSettings
from slurm.workflows import Launch, sample_set

if TYPE_CHECKING:  # Optuna takes a second to load, which most tasks can do without
    from slurm.sweep import study

SECONDS = "seconds.json"  # in a run of a sweep: wall time of each stage, over all starts
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
POLL_SECONDS = 0.2
RANK_0_SECONDS = 900.0  # how long other ranks wait for what rank 0 decides or completes
BEGUN = "begun.json"  # rank 0's word to other ranks, for one start of the task


def main(argv: list[str]) -> int:
    """Run what the array's part is; the exit code."""
    array = Path(argv[0])
    part = int(argv[2].partition("/")[0]) if len(argv) > 2 else 0
    sweep = SweepDir(array.parents[2])
    settings = sweep.settings()
    run = run_at(sweep, settings, read_json(array)["runs"][part])
    try:
        return Task(run, settings).go()
    except UserError as error:
        print(f"{run.name}: {error}", file=sys.stderr)
        if rank() == 0:
            run.end("failed", cause=class_of(error), message=str(error))
        return 2


def rank() -> int:
    """This process among those of the job."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def ranks() -> int:
    """How many processes the job has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Task:
    """One start of a run's task, as one of its ranks."""

    def __init__(self, run: Run, settings: SweepSettings) -> None:
        """Opens nothing."""
        self.run, self.settings = run, settings
        self.launch: Launch
        self.reporter: study.Reporter | None = None
        self._seen = -1  # size of metrics.jsonl when it was last read

    def go(self) -> int:
        """Until the run has ended (0), a stage fails (its code), or the job is to be started again (75)."""
        if not self._begin():
            return 0
        with Stop() as stop:
            for job in self.launch.jobs:
                while job.name in STAGES and not self._complete(job):
                    code = self._stage(job, stop)
                    if self._pruned():
                        return self._finish()
                    if stop.asked:
                        return stop.hand_over()
                    if code:
                        return self._failed(job, code)
                    self._wait_until_complete(job)
        return self._finish()

    def _begin(self) -> bool:
        """Whether there is anything to do: the run has not ended, and the budget allows it. Rank 0 decides."""
        note, start = self.run.path / BEGUN, _start()
        if rank() == 0:
            goes = self._decide()
            if ranks() > 1:
                write_json(note, {"start": start, "goes": goes})
        else:
            _wait(lambda: note.is_file() and read_json(note)["start"] == start, "rank 0 to begin")
            goes = bool(read_json(note)["goes"])
        if goes:
            self.launch = self.run.launch()
        return goes

    def _decide(self) -> bool:
        status = self.run.outcome().get("status")
        if status == "pruned":
            self._tell(None)  # an earlier start may have been killed before it did
        if status in FINAL:
            return False
        if self._first_was_pruned():
            return False
        over = ""
        if self.settings.gpu_hours is not None or self.settings.until is not None:
            from slurm.sweep import submit

            over = submit.over_budget(self.run.sweep, self.settings)
        if over or self.run.sweep.cancelled.exists():
            self.run.end("over budget" if over else "cancelled", message=over or "")
            print(f"{self.run.name}: not started: {over or 'the sweep is cancelled'}", file=sys.stderr)
            return False
        params = known_params(self.run.sweep, self.settings, self.run.trial)
        if params is None or self.settings.needs_study:
            from slurm.sweep import study

            params = study.params_of(self.run.sweep, self.settings, self.run.trial)
        make(self.settings, params, self.run)
        (self.run.path / OUTCOME).unlink(missing_ok=True)
        if self.settings.pruning.kind != "none" and self.run.seed == 0:
            from slurm.sweep import study

            self.reporter = study.Reporter(self.run.sweep, self.settings, self.run.trial)
        return True

    def _complete(self, job: Job) -> bool:
        self.launch = self.run.launch() if job.name != STAGES[0] else self.launch
        return self.launch.complete()[job.name]

    def _stage(self, job: Job, stop: Stop) -> int:
        print(f"{self.run.name}: {job.name}", file=sys.stderr, flush=True)
        argv = list(job.argv[1:])
        if job.name == "evaluate" and (samples := sample_set(self.launch)) is not None:
            argv.append(f"evaluate.samples={samples.parent.name}/{samples.name}")  # what this trial sampled, alone
        process, begun = start(self.settings.program, argv), time.monotonic()
        told = False
        while process.poll() is None:
            if stop.asked and not told:
                process.send_signal(stop.signal or signal.SIGUSR2)
                told = True
            if job.name == "train" and not told and rank() == 0 and self._is_to_end():
                process.send_signal(signal.SIGUSR2)
                told = True
            time.sleep(POLL_SECONDS)
        if rank() == 0:
            self._took(job.name, time.monotonic() - begun)
        if job.name == "train" and self.reporter is not None and not self._pruned():
            for images, value in self._unreported():  # of the last moments
                self.reporter.report(images, value)
        return code_of(process.returncode, told=told)

    def _took(self, stage: str, seconds: float) -> None:
        """Note how long a stage has run, beside what its earlier starts did."""
        known = self._seconds()
        write_json(self.run.path / SECONDS, {**known, stage: known.get(stage, 0.0) + seconds})

    def _seconds(self) -> dict[str, float]:
        path = self.run.path / SECONDS
        return dict(read_json(path)) if path.is_file() else {}

    def _is_to_end(self) -> bool:
        """Whether training is to stop because the trial is pruned: by what this run reports, which is that of the
        first seed, or what the run of the first seed has reported."""
        if self.settings.pruning.kind == "none":
            return False
        if self.run.seed > 0:
            return self._first_was_pruned()
        for images, value in self._unreported():
            if self.reporter is not None and self.reporter.report(images, value):
                message = f"{self.settings.pruning.metric} = {value:.4g} after {images} images"
                self.run.end("pruned", cause="pruned", message=message)
                return True
        return False

    def _first_was_pruned(self) -> bool:
        first = Run(self.run.sweep, self.run.trial, 0).outcome() if self.run.seed > 0 else {}
        if first.get("status") == "pruned":
            self.run.end(**first)
        return first.get("status") == "pruned"

    def _unreported(self) -> list[tuple[int, float]]:
        """(images seen, value) of what training has recorded since the last look."""
        metrics = self.launch.run.metrics
        size = metrics.stat().st_size if metrics.is_file() else -1
        if size == self._seen or self.reporter is None:
            return []
        self._seen = size
        values = training_values(self.launch, self.settings.pruning.metric, tail_rows(metrics))
        return [(images, value) for images, value in values if images not in self.reporter.known]

    def _pruned(self) -> bool:
        return self.run.outcome().get("status") == "pruned"

    def _failed(self, job: Job, code: int) -> int:
        if rank() == 0 and code != STOPPED:
            log = Path(submitit.JobEnvironment().paths.stdout)
            self.run.end("failed", cause=class_of_exit(code, log), message=last_words(log, size=1000), stage=job.name)
        return code

    def _wait_until_complete(self, job: Job) -> None:
        """Other ranks may have a share of the stage still to do."""
        _wait(lambda: self.run.launch().complete()[job.name], f"{job.name} of {self.run.path} to be complete")

    def _finish(self) -> int:
        """Tell the study, then write the outcome: a task that is killed between the two tells it the same again."""
        if rank() == 0:
            if self._pruned():
                self._tell(None)
            else:
                found = measured(self.launch, self.settings)
                self._tell(found["value"])
                self.run.end("complete", **found, seconds=self._seconds())
            from slurm.sweep import pictures

            pictures.write_run(self.run, self.settings)
        return 0

    def _tell(self, value: float | None) -> None:
        """Tell the study the run's value (None: pruned), where a search or a pruner needs to know."""
        if not self.settings.needs_study:
            return
        from slurm.sweep import study

        reporter = self.reporter or study.Reporter(self.run.sweep, self.settings, self.run.trial)
        if value is None:
            reporter.tell_pruned()
        else:
            reporter.tell(self.run.seed, value)


def _start() -> str:
    """One start of this job, as all of its ranks name it."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _wait(good: Callable[[], bool], what: str) -> None:
    """Poll until it is so.

    Raises:
        RuntimeError: it never was.
    """
    end = time.monotonic() + (RANK_0_SECONDS if ranks() > 1 else 30.0)
    while not good():
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(POLL_SECONDS)


def code_of(returncode: int, *, told: bool) -> int:
    """A process's exit code as a shell gives it; one that a signal of ours ended before it could listen has stopped."""
    if returncode == -signal.SIGUSR2 or (told and returncode == -signal.SIGTERM):
        return STOPPED
    return 128 - returncode if returncode < 0 else returncode


def start(program: str, argv: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a stage. It ends with this process: an orphan would go on writing beside the run's next start."""
    return subprocess.Popen([sys.executable, "-u", "-m", program, *argv], preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
