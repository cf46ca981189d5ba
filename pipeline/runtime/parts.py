"""Who does which share of a job: the tasks of one job, the parts of an array, processes started by hand. Torch-free."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import missing_folders, remove_empty, sweep_partial

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # of torchrun, accelerate and our own jobs
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
STALE_SECONDS = 86_400.0  # no writer leaves its file untouched for so long


@dataclass(frozen=True)
class World:
    """This process among the tasks of its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files."""
        return self.rank == 0


def world_from(env: Mapping[str, str]) -> World:
    """Read a launcher's environment. Slurm's counts only inside a step with several tasks, not in the batch shell."""
    if "RANK" in env:
        names = TORCHRUN
    elif "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        names = SRUN
    else:
        return World()
    rank, size, local_rank, local_size = (env.get(name) or default for name, default in zip(names, "0101", strict=True))
    return World(int(rank), int(size), int(local_rank), int(local_size.split("(")[0].split(",")[0]))


def this_world() -> World:
    """This process among the tasks of its job, from its environment."""
    return world_from(os.environ)


def without_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that one task starts and that does its whole work alone."""
    return {name: value for name, value in env.items() if name not in (*TORCHRUN, *SRUN)}


def one_task_only(job: str) -> bool:
    """Whether this process is to do a job whose work tasks cannot share: of several, ranks above 0 do nothing.

    Raises:
        UserError: on rank 0 of several tasks.
    """
    world = this_world()
    if world.size > 1 and world.main:
        raise UserError(
            f"{job}: started as {world.size} tasks, expected one, as they cannot share this work. Start it by itself, "
            "without torchrun or the -n of srun."
        )
    return world.size == 1


class Part(NamedTuple):
    """Share `number` of so many equal ones: every piece whose place % `of` is `number`."""

    number: int = 0
    of: int = 1

    def for_task(self, world: World) -> "Part":
        """This task's share of the part."""
        return Part(world.rank + world.size * self.number, world.size * self.of)

    def has(self, place: int) -> bool:
        """Whether the piece of work at a place belongs to this part."""
        return place % self.of == self.number


WHOLE = Part()


def parse_part(text: str) -> Part:
    """`3/8`, counted from 0; `array`: the place of this task in its Slurm job array.

    Raises:
        UserError: for anything else.
    """
    given = text
    if text == "array":
        if "SLURM_ARRAY_TASK_COUNT" not in os.environ:
            raise UserError("--part=array: this is no task of a Slurm job array. Submit it with sbatch --array=0-7.")
        first, task = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "ID"))
        text = f"{task - first}/{os.environ['SLURM_ARRAY_TASK_COUNT']}"
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--part: found '{given}', expected K/N with 0 <= K < N, such as 3/8, or array.")
    return Part(int(number), int(count))


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Write into a directory that other processes may write into at the same time. It is made where it is missing,
    and removed where it is empty in the end.

    What killed writers left under temporary names is swept, here and one level below, where nobody else writes: each
    writer holds a shared lock on the directory, which the kernel releases when its holder dies. Some network file
    systems have no locks on directories; what is a day old is swept there.
    """
    missing = missing_folders(directory)
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sweep(directory)
            fcntl.flock(handle, fcntl.LOCK_SH)
        except BlockingIOError:  # another process writes here, or sweeps, which takes a moment
            fcntl.flock(handle, fcntl.LOCK_SH)
        except OSError:
            _sweep(directory, older_than_s=STALE_SECONDS)
        yield
    finally:
        os.close(handle)
        remove_empty(missing)


def _sweep(directory: Path, *, older_than_s: float = 0.0) -> None:
    for folder in [directory, *(path for path in directory.iterdir() if path.is_dir())]:
        sweep_partial(folder, older_than_s=older_than_s)
