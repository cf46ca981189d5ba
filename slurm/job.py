"""A job is words: a name, the words after `python -m`, what it asks for, and the jobs that it comes after."""

import shlex
from dataclasses import dataclass, field

from pipeline.config.schema_cluster import Resources


@dataclass(frozen=True)
class Job:
    """One job of a graph. The same words are printed, run on a laptop, or sent to Slurm."""

    name: str
    argv: tuple[str, ...]  # a module and its arguments: ("pipeline", "train", "runs/glyphs16")
    resources: Resources = field(default_factory=Resources)
    after: tuple[str, ...] = ()  # jobs that must have ended well
    after_any: tuple[str, ...] = ()  # jobs that must have ended, well or not

    @property
    def parents(self) -> tuple[str, ...]:
        """Every job that this one waits for."""
        return self.after + self.after_any

    def part_argv(self, part: int) -> tuple[str, ...]:
        """The words of one part, 0-based, of a job that is an array; a job of one part has its plain words."""
        if self.resources.parts == 1:
            return self.argv
        return (*self.argv, "--part", f"{part}/{self.resources.parts}")

    def command(self) -> str:
        """What a person types to run it by hand."""
        return shlex.join(("python", "-m", *self.argv))
