"""Why a job failed, in a few classes, and what each of them means for trying again."""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.errors import NonFiniteError, RendezvousError, UserError

if TYPE_CHECKING:  # jobs import this module before anything else: every rank would pay for pydantic
    from pipeline.config.schema_cluster import RetryConfig


RETRY, CHANGE = "retry", "change"  # as it was submitted, and with other settings


@dataclass(frozen=True)
class Policy:
    """What happens after a failure of one class: in words for `status`, and who queues the job again."""

    again: str  # "slurm" queues it again itself, "limited": by cluster.retry, "never"
    advice: str
    commands: tuple[str, ...] = (RETRY,)  # that follow the advice
    example: str = ""  # of a setting that CHANGE may change; {group}: of the job's resources, such as train


_NOT_AGAIN = "Slurm was not to queue it again (cluster.requeue is off): retry goes on from what was saved"
POLICIES = {
    "bad_config": Policy("never", "correct the setting that the message names and submit again", (CHANGE,)),
    "out_of_memory": Policy(
        "never",
        "submit the run again with a smaller train.micro_batch (results stay the same), sample.batch or "
        "evaluate.batch, or with more cluster.<job>.memory_gb",
        (CHANGE,),
        "train.micro_batch=16",
    ),
    "non_finite": Policy(
        "never",
        "submit it under another name with a lower train.optim.lr, or with train.precision=bf16 instead of fp16: "
        "what a run was trained with stays",
        (),
    ),
    "disk_full": Policy(
        "never",
        "free space, then retry; or submit it with runs_dir and data_dir on another disk",
        (RETRY, CHANGE),
        "data_dir=/other/disk/data",
    ),
    "rendezvous": Policy(
        "limited",
        "every attempt of cluster.retry.rendezvous failed: look at the named nodes, then retry, or submit the run "
        "again without them: cluster.exclude=NODE",
        (RETRY, CHANGE),
        "cluster.exclude=node07",
    ),
    "error": Policy(
        "limited",
        "read the log; if it was the file system or the network, retry; if it was a setting, submit with another one",
        (RETRY, CHANGE),
    ),
    "killed": Policy("limited", "something killed the process from outside; read the log, then retry"),
    "time_limit": Policy(
        "slurm",
        "retry goes on from what was saved; where nothing was, submit the run again with more cluster.<job>.minutes or "
        "more cluster.signal_lead_s to save in",
        (RETRY, CHANGE),
        "cluster.{group}.minutes=24:00:00",
    ),
    "preempted": Policy("slurm", _NOT_AGAIN),
    "node_failure": Policy("slurm", _NOT_AGAIN),
    "held": Policy("never", "look at its node or ask the administrators, then retry puts it back into the queue"),
    "held_by_user": Policy("never", "somebody held it: release it", ()),
    "refused": Policy(
        "never",
        "Slurm will never start it as it is: change what cluster.<job> asks for, and submit the run again with that",
        (CHANGE,),
        "cluster.{group}.gpus=1",
    ),
    "limit": Policy("never", "a limit of the site, or Slurm was away: retry later, which queues what is missing"),
    "cancelled": Policy("never", "retry queues it again; training continues from its last checkpoint"),
    "upstream": Policy("never", "see to the job that it waits for: what queues that one queues this one too", ()),
    "vanished": Policy("never", "neither queue nor files tell how it ended; read the log, then retry"),
}
EXIT_CODES = {
    2: "bad_config",
    75: "preempted",
    76: "non_finite",
    77: "out_of_memory",
    78: "rendezvous",
    137: "killed",
    143: "cancelled",
}
# A secondary failure (a peer lost its partner) says less than the one that caused it.
_TELLING = ("non_finite", "out_of_memory", "disk_full", "bad_config", "rendezvous", "error", "killed", "cancelled")
_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|not enough memory", re.IGNORECASE)
_OUTGROWN = re.compile(r"^(srun|slurmstepd\S*): error: .*(Out Of Memory|oom.kill event)", re.MULTILINE)
_ENDED = re.compile(r"^srun: error: \S+: tasks? \S+: (\w+).*", re.MULTILINE)
LOST_STEP = "slurm: srun says 0, but the step was lost: no record of their end from ranks"  # the batch script's words
_STARTING = "Starting with JobEnvironment"  # submitit's first line of each start
_OF_LAUNCHERS = re.compile(r"^(srun|slurmstepd|slurm|submitit|sbatch|scontrol)\b.*?(:| [A-Z]+ )")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Incomplete|Warning)?: ")  # a traceback's end


def class_of(error: BaseException) -> str:
    """The class of an exception, by its type and, where types do not tell, its words. Never imports torch."""
    name, words = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or _MEMORY.search(words):
        return "out_of_memory"
    for kind, named in ((NonFiniteError, "non_finite"), (RendezvousError, "rendezvous")):
        if isinstance(error, kind):
            return named
    return class_of_words(words) or ("bad_config" if isinstance(error, UserError) else "error")


def class_of_words(words: str) -> str | None:
    """The class that an error's words give away, or None. For errors that another process printed."""
    if "No space left" in words or "quota exceeded" in words.lower():
        return "disk_full"
    return "out_of_memory" if _MEMORY.search(words) else None


def outgrown(log: Path | None) -> str | None:
    """Slurm's own line at the end of a log that the kernel killed a rank for its memory, or None.

    The other ranks then say only that they have lost a partner.
    """
    found = _OUTGROWN.search(last_words(log)) if log is not None else None
    return found[0] if found else None


def lost_rank(log: Path) -> tuple[str, str] | None:
    """Class and Slurm's own line, where the first rank that a start lost was ended by a signal from outside.

    srun then ends the others, which know nothing better than that they were asked to, or have lost a partner. Of a
    step that was lost as a whole the batch script says so.
    """
    words = of_last_start(last_words(log))
    if LOST_STEP in words:
        return "killed", next(line for line in words.splitlines() if line.startswith(LOST_STEP))
    first = _ENDED.search(words)
    if first is None or first[1] in ("Terminated", "Exited", "Out"):
        return None
    return ("killed" if first[1] == "Killed" else "error"), first[0]


def class_of_exit(code: int, log: Path | None = None) -> str:
    """The class of an exit code, refined by the end of the job's log where the code alone is general."""
    by_code = EXIT_CODES.get(code, "error")
    if by_code in ("error", "bad_config", "killed") and log is not None:
        return class_of_words(last_words(log)) or by_code
    return by_code


def own_error(record: Path, job_id: str, *, size: int = 20_000) -> str:
    """The first error that a rank of the last start wrote itself; else the last line that is not the launcher's or
    srun's. srun's own last line tells only which task left with which code.
    """
    first, last = "", ""
    for log in sorted(record.glob(f"{job_id}_*_log.out"), key=lambda path: path.stat().st_mtime):
        words = of_last_start(last_words(log, size=size))
        lines = [line.rstrip() for line in words.splitlines() if line.strip() and not _OF_LAUNCHERS.match(line)]
        raised = [line for before, line in pairwise(["", *lines]) if before.startswith(" ") and _RAISED.match(line)]
        first = first or next(iter(raised), "") or next((line for line in lines if line.startswith("error: ")), "")
        last = (lines[-1] if lines else "") or last
    return first or last


def of_last_start(words: str) -> str:
    """What the last start wrote, of the end of a log that each start adds to."""
    return words.rpartition(_STARTING)[2].partition("\n")[2] if _STARTING in words else words


def last_words(log: Path, *, size: int = 4000) -> str:
    """The last lines of a log: at most `size` bytes of it; "" where there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace").strip()


def root_cause(failures: list[dict[str, object]]) -> dict[str, object] | None:
    """Of several ranks' failures, the one that explains the others: the most telling class, then the earliest."""
    order = {name: place for place, name in enumerate(_TELLING)}
    return min(failures, key=lambda f: (order.get(str(f["class"]), len(order)), float(str(f["time"]))), default=None)


def retries_allowed(name: str, retry: "RetryConfig") -> int:
    """How many times a failure of this class is queued again by the job itself."""
    return int(getattr(retry, name)) if POLICIES[name].again == "limited" else 0
