"""A job is a command line: what stands after `python -m`, what it asks for, and the jobs that it comes after."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.schema_cluster import Resources
from pipeline.runtime.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Job:
    """One job of a graph. The same command line is printed, run on a laptop, or sent to Slurm."""

    name: str
    argv: tuple[str, ...]  # a module and its arguments: ("pipeline", "train", "runs/glyphs16")
    resources: Resources = field(default_factory=Resources)
    after: tuple[str, ...] = ()  # jobs that must have ended well
    after_any: tuple[str, ...] = ()  # jobs that must have ended, well or not
    makes: tuple[Path, ...] = ()  # the run directory or folder that it fills; of an array: one, or one for each part

    @property
    def parents(self) -> tuple[str, ...]:
        """Every job that this one waits for."""
        return self.after + self.after_any

    def part_argv(self, part: int) -> tuple[str, ...]:
        """The command of one part, 0-based, of a job that is an array; a job of one part has its plain command."""
        if self.resources.parts == 1:
            return self.argv
        return (*self.argv, "--part", f"{part}/{self.resources.parts}")

    def command(self) -> str:
        """What a person types to run it by hand."""
        return shlex.join(("python", "-m", *self.argv))


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each after its parents, otherwise as given.

    Raises:
        UserError: two jobs of one name, a parent that is not there, or a circle, which it spells out.
    """
    by_name = {job.name: job for job in jobs}
    if len(by_name) != len(jobs):
        twice = sorted({j.name for j in jobs if sum(k.name == j.name for k in jobs) > 1})
        raise UserError(f"Two jobs are called {' and '.join(twice)}: names in a graph are unique.")
    for job in jobs:
        for parent in job.parents:
            if parent not in by_name:
                raise UserError(
                    f"Job {job.name} comes after {parent}, which is not in the graph.{did_you_mean(parent, by_name)}"
                )
    done: list[Job] = []
    for job in jobs:
        _visit(job, by_name, (), done)
    return done


def _visit(job: Job, by_name: dict[str, Job], path: tuple[str, ...], done: list[Job]) -> None:
    if job in done:
        return
    if job.name in path:
        raise UserError(f"Jobs wait for each other in a circle: {' -> '.join((*path, job.name))}.")
    for parent in job.parents:
        _visit(by_name[parent], by_name, (*path, job.name), done)
    done.append(job)


def ancestors(jobs: Sequence[Job], name: str) -> set[str]:
    """The names of the jobs that `name` waits for, directly or through others."""
    return {job.name for job in jobs if name in downstream(jobs, job.name)}


def downstream(jobs: Sequence[Job], name: str) -> list[str]:
    """The names of the jobs that wait for `name`, directly or through others, in order."""
    reached = {name}
    for job in ordered(jobs):
        if reached & set(job.parents):
            reached.add(job.name)
    return [job.name for job in ordered(jobs) if job.name in reached and job.name != name]
