"""One run of a trial inside its job: train, sample, evaluate, one after the other, each skipped where it is complete.

    python -m slurm.sweep.trial sweeps/NAME/jobs/batch-0000/batch.json [--part k/n]

Every stage is a process with the words that a person would type; every rank of the job runs this. Signals are passed
on to the stage, which saves its state; started again, the run goes on where it was. When the run has ended, the
search goes on from here: the next trials are chosen and submitted.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.runtime.parts import without_launcher
from pipeline.runtime.stopping import STOPPED, Stop
from slurm.job import Job
from slurm.sweep.batches import read_batch
from slurm.sweep.folder import SweepDir
from slurm.sweep.rungs import Rungs
from slurm.sweep.runs import STAGES, Run, is_own
from slurm.workflows import sample_set

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
POLL_SECONDS = 0.2
RANK_0_SECONDS = 900.0  # how long other ranks wait for a stage to be complete that rank 0 completes


def main(words: list[str]) -> int:
    """Run what the batch's part is; the exit code."""
    batch = read_batch(Path(words[0]))
    number = int(words[2].partition("/")[0]) if len(words) > 2 else 0
    sweep = SweepDir(batch.folder.parents[1])
    trial, _, seed = batch.runs[number].partition("-s")
    run = Run(sweep, int(trial), int(seed))
    code = Chain(run).go()
    if code == 0 and rank() == 0 and "SLURM_JOB_ID" in os.environ:
        advance(sweep)
    return code


def advance(sweep: SweepDir) -> None:
    """Go on with the search. A failure here is not the run's: the job that waits for this one does it again."""
    from slurm.sweep.command import advance_

    try:
        advance_([str(sweep.path)])
    except Exception:
        traceback.print_exc()


def rank() -> int:
    """This process among those of the job."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


class Chain:
    """The stages of one run."""

    def __init__(self, run: Run) -> None:
        """`run` was made by whoever submitted it."""
        self.run, self.launch = run, run.launch()
        self.settings = run.sweep.settings()
        self.rungs = Rungs(run, self.launch, self.settings)

    def go(self) -> int:
        """Until the last stage is complete (0), one fails (its code), or the job is to be started again (75)."""
        with Stop() as stop:
            for job in self.launch.jobs:
                while is_own(job.name) and not self._complete(job) and not self.run.final():
                    code, rung = self._stage(job, stop), self.rungs.paused()
                    if stop.asked:
                        return stop.hand_over()
                    if self.run.final():
                        return 0
                    if code == STOPPED and rung is not None:
                        if failed := self.rungs.measure(rung, self._wait_for):
                            return failed
                        continue
                    if code:
                        return code
                    self._wait_until_complete(job)
        return 0

    def _complete(self, job: Job) -> bool:
        self.launch = self.run.launch() if job.name != STAGES[0] else self.launch
        return self.launch.complete()[job.name]

    def _stage(self, job: Job, stop: Stop) -> int:
        print(f"{self.run.name}: {job.name}", file=sys.stderr, flush=True)
        process = start(self.settings.program, self._words(job))
        told = False
        while process.poll() is None:
            if stop.asked and not told:
                process.send_signal(stop.signal or signal.SIGUSR2)
                told = True
            if job.name == "train" and not told and rank() == 0 and self.rungs.should_stop():
                process.send_signal(signal.SIGUSR2)
                told = True
            time.sleep(POLL_SECONDS)
        return code_of(process.returncode, told=told)

    def _words(self, job: Job) -> list[str]:
        """The stage's words: evaluate what this trial sampled alone. Ranks share the images by their environment."""
        words = list(job.argv[1:])
        if job.name == "evaluate" and (samples := sample_set(self.launch)) is not None:
            words += [chosen_set(samples)]
        return words

    def _wait_for(self, words: Sequence[str]) -> int:
        """Run other words of the program to their end. Only this rank runs them, so they do the whole work."""
        process = start(self.settings.program, words, env=without_launcher(os.environ))
        return code_of(process.wait(), told=False)

    def _wait_until_complete(self, job: Job) -> None:
        """Other ranks may have a share of the stage still to do.

        Raises:
            RuntimeError: the stage's words ended well and what they make is not there.
        """
        end = time.monotonic() + (RANK_0_SECONDS if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 30.0)
        while not self.run.launch().complete()[job.name]:
            if time.monotonic() > end:
                raise RuntimeError(f"{job.name} of {self.run.path} ended well, but what it makes is not complete.")
            time.sleep(POLL_SECONDS)


def chosen_set(samples: Path) -> str:
    """The word that has evaluation measure this sample set alone."""
    return f"evaluate.samples={samples.parent.name}/{samples.name}"


def code_of(returncode: int, *, told: bool) -> int:
    """A process's exit code as a shell gives it; one that a signal of ours ended before it could listen has stopped."""
    if returncode == -signal.SIGUSR2 or (told and returncode == -signal.SIGTERM):
        return STOPPED
    return 128 - returncode if returncode < 0 else returncode


def start(program: str, words: Sequence[str], *, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start a stage. It ends with this process: an orphan would go on writing beside the run's next start."""
    return subprocess.Popen([sys.executable, "-u", "-m", program, *words], env=env, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
