"""What Slurm says: of jobs, in one squeue and one sacct for any number of them, and of the site's limits."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.runtime.errors import UserError

T = TypeVar("T")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "SPECIAL_EXIT")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING")
NEVER = "DependencyNeverSatisfied"
HELD_BY_USER = "JobHeldUser"
# Why Slurm itself holds a job back for good: a node failed while starting it, or it was queued again too often.
HELD = ("launch failed requeued held", "JobHoldMaxRequeue", "JobHeldAdmin")
# Reasons that do not pass by waiting: the job asks for what it may not have here.
_REFUSED = re.compile(
    r"Partition(Time|Node)Limit|BadConstraints|Invalid(Account|QOS)|(Account|QOS)NotAllowed|(Assoc|QOS)\w*Max\w*PerJob\w*"
)
_FIELDS = "%i|%T|%r|%N|%S|%k"  # id, state, reason, nodes, (expected) start, comment
_MARK = re.compile(r"\bmudi (\S+) (/.*)$")  # at the end of a comment: what the job makes, where its record is
_SECONDS = 60.0  # for one answer; sbatch itself tries again for a while
_AWAY = re.compile(
    r"socket timed out|unable to contact slurm controller|connection (refused|timed out|failure)|zero bytes were|"
    r"temporarily unable|transport endpoint|resource temporarily unavailable|backup controller",
    re.IGNORECASE,
)
_NO_CONTROLLER = re.compile(
    r"could not establish a configuration source|DNS SRV lookup failed|unable to process configuration", re.IGNORECASE
)
_LIMIT = re.compile(
    r"submit\w*limit|submitjob|accounting/qos policy|maxjob|job limit|too many jobs|limit of jobs", re.IGNORECASE
)
# Variables of the user that change what Slurm's commands ask and print.
_OF_COMMANDS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT")


class SlurmAway(UserError):
    """Slurm's controller does not answer: it is busy, or away."""


class NoSlurm(SlurmAway):
    """Slurm's commands, or their configuration, are not on this machine."""


class LimitReached(UserError):
    """Slurm refuses a job as long as others of the same user or account are in the queue."""


def command(*argv: str, errors: bool = False) -> str:
    """Run a command of Slurm; what it printed, with what it printed as errors where `errors` asks for it.

    Raises:
        SlurmAway, LimitReached: trying again later may help.
        UserError: every other complaint of the command.
    """
    if shutil.which(argv[0]) is None:
        raise NoSlurm(
            f"{argv[0]} is not on this machine ({socket.gethostname()}): type this on the cluster's login node, or use "
            "cluster=local."
        )
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OF_COMMANDS)}
    try:
        limit = 5 * _SECONDS if argv[0] == "sbatch" else _SECONDS
        done = subprocess.run(argv, capture_output=True, text=True, timeout=limit, check=False, env=env)
    except subprocess.TimeoutExpired as error:
        raise SlurmAway(f"{argv[0]} did not answer within {limit:.0f} s: the controller is busy or away.") from error
    if done.returncode == 0:
        return done.stdout + done.stderr * errors
    nobody = f"no Slurm controller answers {argv[0]} on {socket.gethostname()}"
    if _NO_CONTROLLER.search(done.stderr):
        raise NoSlurm(
            f"{nobody}, which has no configuration of a cluster: "
            "type this on the cluster's login node, name the configuration with SLURM_CONF=FILE, or use cluster=local."
        )
    if _AWAY.search(done.stderr):
        last = done.stderr.strip().splitlines()[-1]
        raise SlurmAway(f"{nobody} ({last}). Is the cluster up, and SLURM_CONF right?")
    said = f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}"
    if _LIMIT.search(done.stderr):
        raise LimitReached(said)
    raise UserError(said)


def patiently(act: Callable[[], T], *, seconds: float) -> T:
    """Do something that asks Slurm; where Slurm is away or a limit refuses it, again after growing waits.

    Each wait is said in a line. After about `seconds`, the refusal is raised.
    """
    end, pause = time.monotonic() + seconds, 2.0
    while True:
        try:
            return act()
        except NoSlurm:
            raise
        except (SlurmAway, LimitReached) as error:
            left = end - time.monotonic()
            if left <= 0:
                raise
            wait = min(pause, left)
            print(f"slurm: {error} Again in {wait:.0f} s, for {left:.0f} s at most.", file=sys.stderr, flush=True)
            time.sleep(wait)
            pause = min(2 * pause, 60.0)


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
    def mark(self) -> str:
        """Our part of the comment, behind the user's own: `mudi KEY RECORD`; "" where it is none of our jobs."""
        found = _MARK.search(self.comment)
        return found[0] if found else ""

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
    def refused(self) -> bool:
        """Whether it asks for what it may not have: no waiting helps."""
        return self.waits and _REFUSED.search(self.reason) is not None

    @property
    def active(self) -> bool:
        """Whether it is in the queue, with any hope of ending well."""
        return (self.waits and self.reason not in (NEVER, *HELD) and not self.refused) or self.runs


def look(ids: Collection[str], queue: Sequence[Seen] | None = None) -> dict[str, Seen]:
    """The jobs with these ids, by id; one that neither the queue nor the accounting knows is left out.

    `queue`: what `listed` said a moment ago; None: ask now.
    """
    if not ids:
        return {}
    accounted, queued = _accounting(ids), {s.id: s for s in (listed() if queue is None else queue)}
    return {i: found for i in ids if (found := _newer(queued.get(i), accounted.get(i)))}


def _newer(queued: Seen | None, accounted: Seen | None) -> Seen | None:
    """The accounting lags by seconds: the queue knows better what still is there. But it does not tell exit codes."""
    if queued is None or (queued.state == "FAILED" and accounted is not None and accounted.state == "FAILED"):
        return accounted
    return queued


def listed(users: Collection[str] = ()) -> list[Seen]:
    """Everything of this user and of those named in the queue, with what ended in the last minutes; arrays in parts.

    Raises:
        SlurmAway: where there is no squeue, or it cannot reach the controller.
    """
    try:
        argv = ["-u", ",".join(sorted({str(os.geteuid()), *users}))]
        said = command("squeue", "-h", *argv, "-r", "-t", "all", "-o", _FIELDS)
    except SlurmAway:
        raise
    except UserError as error:
        raise SlurmAway(f"{error}. Is the cluster up, and SLURM_CONF right?") from error
    return [Seen(*line.split("|", 5)) for line in said.splitlines() if line.count("|") >= 5]


def queued_script(script: str) -> str | None:
    """The id of the job that sbatch made of a script; None where there is none."""
    said = command("squeue", "-h", "-u", str(os.geteuid()), "-t", "all", "-o", "%F|%o")
    return next((line.partition("|")[0] for line in said.splitlines() if line.partition("|")[2] == script), None)


def _accounting(ids: Collection[str]) -> dict[str, Seen]:
    """From sacct; {} where the cluster keeps no accounting. A step that ran out of memory is the reason of its job."""
    bases = sorted({i.partition("_")[0] for i in ids})
    try:
        said = command("sacct", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList,Start", "-j", ",".join(bases))
    except UserError:
        return {}
    found: dict[str, Seen] = {}
    for line in said.splitlines():
        name, state, code, nodes, start = line.split("|")[:5]
        state, _, by = state.partition(" ")  # "CANCELLED by 0": Slurm itself, whose reason is a dependency, has no "by"
        code = NEVER if state == "CANCELLED" and not by else code
        job, _, step = name.partition(".")
        if not step:
            found[job] = Seen(job, state, code, nodes, start)
        elif state == "OUT_OF_MEMORY" and job in found:
            found[job] = Seen(job, found[job].state, state, found[job].nodes, found[job].start)
    return found


@dataclass(frozen=True)
class Limits:
    """What a site allows; None where it sets no limit, or does not say."""

    array_size: int | None = None  # tasks of one array (MaxArraySize)
    submitted: int | None = None  # jobs in the queue, of this user: the least of all limits of association and QOS
    longest: Mapping[str, int] | None = None  # minutes of one start, by partition; "" is the default partition
    silent: str = ""  # why nothing is known, where Slurm was not there to tell

    def __str__(self) -> str:
        if self.silent:
            return f"not known: {self.silent}"
        said = [f"arrays of {self.array_size} tasks"] * (self.array_size is not None)
        said += [f"{self.submitted} jobs in the queue"] * (self.submitted is not None)
        said += [f"{minutes} min in partition {name}" for name, minutes in (self.longest or {}).items() if name]
        return "at most " + ", ".join(said) if said else "none that Slurm tells"


def limits() -> Limits:
    """The site's limits, from scontrol and sacctmgr, as far as they are here and answer."""
    try:
        config = command("scontrol", "show", "config")
    except NoSlurm:
        return Limits(silent=f"Slurm is not on this machine ({socket.gethostname()})")
    except UserError:
        return Limits(silent=f"Slurm did not answer on {socket.gethostname()}")
    size = re.search(r"MaxArraySize\s*=\s*(\d+)", config)
    longest: dict[str, int] = {}
    for line in _said("scontrol", "show", "partition", "-o").splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        minutes = minutes_of(fields.get("MaxTime", ""))
        if minutes is not None:
            names = [fields["PartitionName"], *([""] if fields.get("Default") == "YES" else [])]
            longest |= dict.fromkeys(names, minutes)
    return Limits(int(size[1]) if size else None, min(_submit_limits(), default=None), longest)


def _submit_limits() -> Iterator[int]:
    user = _said("id", "-un").strip() or str(os.geteuid())
    rows = _said("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=MaxSubmitJobs,GrpSubmitJobs,QOS")
    names: set[str] = set()
    for line in rows.splitlines():
        most, group, qos = line.split("|")[:3]
        yield from (int(value) for value in (most, group) if value.isdigit())
        names |= set(filter(None, qos.split(",")))
    if names:
        argv = ["show", "qos", ",".join(sorted(names)), "format=MaxSubmitJobsPerUser,GrpSubmitJobs"]
        for line in _said("sacctmgr", "-nP", *argv).splitlines():
            yield from (int(value) for value in line.split("|") if value.isdigit())


def _said(*argv: str) -> str:
    try:
        return command(*argv)
    except UserError:
        return ""


def minutes_of(limit: str) -> int | None:
    """Slurm's D-HH:MM:SS, HH:MM:SS or MM:SS in minutes, rounded down; None where it is none."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days or len(parts) == 3:
        hours, minutes, *_ = [*parts, 0, 0]
        return 1440 * int(days or 0) + 60 * hours + minutes
    return parts[0]
