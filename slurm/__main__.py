"""python -m slurm <command>: from a laptop to a cluster, with the same words.

submit    experiment=... [cluster=...] [key=value ...]   queue what is not complete; local: run it here, in order
plan      experiment=... [--sbatch DIR]                  print the graph and what follows from the config; do nothing
status    [RUN_DIR | FOLDER ...]                         every job of every run: how far, or why not and what to do
logs      RUN_DIR [JOB] [-f]                             the newest log of a job, following it with -f
cancel    RUN_DIR|FOLDER ... [--job JOB]                 end what is under way; training saves first
retry     RUN_DIR|FOLDER ...                             queue again what failed, with the words of its submission
preflight cluster=... [experiment=...]                   a minute on the partition: GPUs, network, disks, signals
"""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.config.load import config_from
from pipeline.runtime.errors import UserError, did_you_mean
from slurm import plan, status
from slurm.board import Board
from slurm.local import run_here
from slurm.submit import submit_graph
from slurm.summary import summary
from slurm.workflows import Launch, launch_for


def submit(words: list[str]) -> int:
    """Submit an experiment, or a run directory again."""
    if not words:
        raise UserError("submit what? For example: python -m slurm submit experiment=glyphs16 cluster=local")
    return _submit(launch_for(config_from(words), make=True))


def _submit(launch: Launch) -> int:
    console = console_for(sys.stdout.isatty())
    if launch.cfg.cluster.executor == "local":
        board = Board([job.name for job in launch.jobs], title=str(launch.run.path))
        code = run_here(launch, board)
        console.print(board.table())
        summary(launch, console)
        if code:
            console.print(f"Logs: {launch.run.jobs}. Submit again to go on from here.", soft_wrap=True)
        return code
    before = submit_graph(launch)
    for name, state in before.items():
        said = {"complete": "complete: skipped", "running": "running: left alone", "waiting": "in the queue already"}
        console.print(f"{name}: {said.get(state.word, 'queued')}", highlight=False)
    status.show([launch], console)
    console.print(f"Nothing needs to stay here. Later: python -m slurm status {launch.run.path}", soft_wrap=True)
    return 0


def plan_(words: list[str]) -> int:
    """Print what `submit` would do."""
    plan.show(launch_for(config_from(words), make=False), console_for(sys.stdout.isatty()))
    return 0


def status_(words: list[str]) -> int:
    """Show runs; 1 where a job of them failed."""
    runs = status.launches([Path(w) for w in words] or [Path("runs")])
    console = console_for(sys.stdout.isatty())
    found = status.show(runs, console)
    if len(runs) == 1:
        summary(runs[0], console)
    return int(any(s.word in ("failed", "blocked") for states in found for s in states.values()))


def retry(words: list[str]) -> int:
    """Submit again what is not complete, as it was submitted."""
    return max(_submit(launch) for launch in status.launches([Path(w) for w in words]))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "submit": submit,
    "plan": plan_,
    "status": status_,
    "retry": retry,
}


def console_for(terminal: bool) -> Console:
    """A console for results: as wide as the terminal, or 140 columns in a log."""
    return Console(width=None if terminal else 140)


def main(words: list[str]) -> int:
    """Run a command; the exit code: 0 done, 1 something failed, 2 bad input, 130 cancelled."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        print(f"slurm: no command '{name}'.{did_you_mean(name, COMMANDS)}\n{__doc__}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[name](rest)
    except UserError as error:
        print(f"slurm {name}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
