"""What Slurm says of jobs: one squeue and one sacct call for any number of them, with or without accounting."""

import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.runtime.errors import UserError

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING")
NEVER = "DependencyNeverSatisfied"
# Why Slurm itself holds a job back for good: a node failed while starting it, or it was queued again too often.
HELD = ("launch failed requeued held", "JobHoldMaxRequeue", "JobHeldAdmin")
_FIELDS = "%i|%T|%r|%N|%S|%k"  # id, state, reason, nodes, (expected) start, comment


class SlurmAway(UserError):
    """Slurm's commands are not here, or nobody answers them."""


@dataclass(frozen=True)
class Seen:
    """One job, or one part of an array, as Slurm shows it now."""

    id: str
    state: str  # Slurm's word: PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, NODE_FAIL, ...
    reason: str = ""  # why it waits, or what a step of it ended with
    nodes: str = ""
    start: str = ""
    comment: str = ""

    @property
    def why(self) -> str:
        """Slurm's word for why it waits, and when it expects to start it, where it says so."""
        reason = "Slurm has yet to look at it" if self.reason == "None" else self.reason
        return reason + (f", expected to start {self.start.replace('T', ' ')}" if self.start[:1].isdigit() else "")

    @property
    def waits(self) -> bool:
        """Whether it has yet to start (again)."""
        return self.state in WAITING

    @property
    def runs(self) -> bool:
        """Whether it has nodes now."""
        return self.state in RUNNING

    @property
    def active(self) -> bool:
        """Whether it is in the queue, with any hope of ending well."""
        return (self.waits and self.reason not in (NEVER, *HELD)) or self.runs


def look(ids: Collection[str], queue: Sequence[Seen] | None = None) -> dict[str, Seen]:
    """The jobs with these ids, by id; one that neither the queue nor the accounting knows is left out.

    `queue`: what `mine` said a moment ago; None: ask now.
    """
    if not ids:
        return {}
    accounted, queued = _accounting(ids), {s.id: s for s in (mine() if queue is None else queue)}
    return {i: found for i in ids if (found := _newer(queued.get(i), accounted.get(i)))}


def _newer(queued: Seen | None, accounted: Seen | None) -> Seen | None:
    """The accounting lags by seconds: the queue knows better what still is there. But it does not tell exit codes."""
    if queued is None or (queued.state == "FAILED" and accounted is not None and accounted.state == "FAILED"):
        return accounted
    return queued


def mine() -> list[Seen]:
    """Everything of this user in the queue, with what ended in the last minutes; parts of arrays one by one.

    Raises:
        SlurmAway: where there is no squeue, or it cannot reach the controller.
    """
    if shutil.which("squeue") is None:
        raise SlurmAway("squeue is not on this machine: ask where Slurm is, on the cluster's login node.")
    done = _run(["squeue", "-h", "--me", "-r", "-t", "all", "-o", _FIELDS])
    if done.returncode:
        raise SlurmAway(f"squeue failed: {done.stderr.strip()}. Is the cluster up, and SLURM_CONF right?")
    return [Seen(*line.split("|", 5)) for line in done.stdout.splitlines() if line.count("|") >= 5]


def _accounting(ids: Collection[str]) -> dict[str, Seen]:
    """From sacct; {} where the cluster keeps no accounting. A step that ran out of memory is the reason of its job."""
    bases = sorted({i.partition("_")[0] for i in ids})
    if shutil.which("sacct") is None:
        return {}
    words = ["sacct", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList,Start", "-j", ",".join(bases)]
    found: dict[str, Seen] = {}
    for line in _run(words).stdout.splitlines():
        name, state, code, nodes, start = line.split("|")[:5]
        state, _, by = state.partition(" ")  # "CANCELLED by 0": Slurm itself, whose reason is a dependency, has no "by"
        code = NEVER if state == "CANCELLED" and not by else code
        job, _, step = name.partition(".")
        if not step:
            found[job] = Seen(job, state, code, nodes, start)
        elif state == "OUT_OF_MEMORY" and job in found:
            found[job] = Seen(job, found[job].state, state, found[job].nodes, found[job].start)
    return found


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise SlurmAway(f"{words[0]} did not answer within 60 s: the controller is busy or away. Try again.") from error
