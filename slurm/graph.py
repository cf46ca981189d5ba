"""Jobs in an order in which each comes after all that it waits for."""

from collections.abc import Sequence

from pipeline.runtime.errors import UserError, did_you_mean
from slurm.job import Job


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
