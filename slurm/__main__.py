"""python -m slurm <command>: from a laptop to a cluster, with the same words.

submit    experiment=... [cluster=...] [key=value ...]   queue what is not complete; local: run it here, in order
plan      experiment=... [--sbatch DIR]                  print the graph and what follows from the config; do nothing
status    [RUN_DIR | FOLDER ...]                         every job of every run: how far, or why not and what to do
logs      RUN_DIR [JOB] [-f] [-n LINES]                  the newest log of a job, following it with -f
cancel    RUN_DIR|FOLDER ... [--job JOB]                 end what is under way; training saves first
retry     RUN_DIR|FOLDER ...                             queue again what failed, with the words of its submission
preflight cluster=... [experiment=...] [--wait SECONDS]  a minute on the partition: GPUs, network, disks, signals
sweep     submit|plan|status|report|extend|cancel ...    grids and searches: python -m slurm sweep --help
"""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.config.load import listed, run_named
from pipeline.runtime.errors import UserError, did_you_mean
from slurm import cancel, ledger, plan, preflight, status
from slurm.progress import ProgressTable
from slurm.status import summary
from slurm.submit import correct, run_here, submit_all, submit_graph
from slurm.workflows import Launch, launch_for, meant, missing_for


def submit(words: list[str]) -> int:
    """Submit an experiment, or a run directory again."""
    if not words:
        raise UserError("submit what? For example: python -m slurm submit experiment=glyphs16 cluster=local")
    return _submit(_made(words))


def _made(words: list[str]) -> Launch:
    cfg = meant(words)
    for line in correct(cfg):
        print(line)
    return launch_for(cfg, make=True)


def _submit(launch: Launch) -> int:
    plan.quantities(launch)  # raises, before anything is queued, where the ranks and the recipe do not fit
    console = console_for(sys.stdout.isatty())
    if launch.cfg.cluster.executor == "local":
        table = ProgressTable([job.name for job in launch.jobs], title=str(launch.run.path))
        code = run_here(launch, table)
        console.print(table.table())
        summary(launch, console)
        if code:
            console.print(f"Logs: {launch.run.jobs}. Submit again to go on from here.", soft_wrap=True)
        return code
    before = submit_graph(launch)
    for name, state in before.items():
        said = {"complete": "complete: skipped", "running": "running: left alone", "waiting": "in the queue already"}
        words = f"queued, to start when {', '.join(state.ids)} has ended" if state.leaving else said.get(state.word)
        console.print(f"{name}: {words or 'queued'}", highlight=False)
    status.show([launch], console)
    console.print(f"Nothing needs to stay here. Later: python -m slurm status {launch.run.path}", soft_wrap=True)
    return 0


def plan_(words: list[str]) -> int:
    """Print what `submit` would do; with --sbatch DIR, write it as scripts."""
    rest, options = options_of(words, values=("--sbatch",))
    launch = _made(rest) if "--sbatch" in options else launch_for(meant(rest), make=False)
    plan.show(launch, console_for(sys.stdout.isatty()))
    if "--sbatch" in options:
        for path in plan.write(launch, Path(options["--sbatch"])):
            print(path)
    if problems := missing_for(launch):
        raise UserError(f"submit would refuse this:\n{listed(problems)}")
    return 0


def status_(words: list[str]) -> int:
    """Show runs; 1 where a job of them failed, or one of them cannot be read."""
    runs, unread = _opened(words or [str(ledger.RUNS)])
    console = console_for(sys.stdout.isatty())
    code = status.show(runs, console)
    if len(runs) == 1:
        summary(runs[0], console)
    return max(code, unread)


def _opened(words: list[str]) -> tuple[list[Launch], int]:
    """The runs that can be read, and 1 where others cannot, which are named."""
    runs, problems = ledger.launches([Path(w) for w in words])
    for problem in problems:
        print(f"slurm: cannot read {problem}", file=sys.stderr)
    return runs, int(bool(problems))


def retry(words: list[str]) -> int:
    """Submit again what is not complete, as it was submitted."""
    if not words:
        raise UserError("retry what? For example: python -m slurm retry runs/glyphs16")
    runs, unread = _opened(words)
    remote = [launch for launch in runs if launch.cfg.cluster.executor == "slurm"]
    if remote:
        submit_all(remote)
        status.show(remote, console_for(sys.stdout.isatty()))
    return max([unread, *(_submit(launch) for launch in runs if launch not in remote)])


def logs_(words: list[str]) -> int:
    """Print a job's newest log."""
    rest, options = options_of(words, values=("-n",), flags=("-f", "--follow"))
    if not 1 <= len(rest) <= 2:
        raise UserError("logs of which run? For example: python -m slurm logs runs/glyphs16 train -f")
    follow, lines = bool({"-f", "--follow"} & options.keys()), int(number_of(options, "-n", 40))
    (launch, *_), _ = ledger.launches([Path(rest[0])])
    status.show_log(launch, rest[1] if len(rest) == 2 else None, follow=follow, lines=lines)
    return 0


def cancel_(words: list[str]) -> int:
    """Cancel runs, or one job of them."""
    rest, options = options_of(words, values=("--job",))
    if not rest:
        raise UserError("cancel what? For example: python -m slurm cancel runs/glyphs16")
    runs, unread = _opened(rest)
    said = cancel.cancel(runs, job=options.get("--job"))
    print("\n".join(said) or "nothing was under way")
    return unread


def preflight_(words: list[str]) -> int:
    """Check a cluster; 1 where something is red."""
    rest, options = options_of(words, values=("--wait",))
    if run_named(rest) is None and not any(w.startswith(("experiment=", "data=", "model=")) for w in rest):
        rest = ["data=glyphs16", "model=unet_tiny", "name=preflight", *rest]
    wait_s = number_of(options, "--wait", 300)
    return int(not preflight.preflight(meant(rest), console_for(sys.stdout.isatty()), wait_s=wait_s))


def options_of(
    words: list[str], *, values: tuple[str, ...] = (), flags: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, str]]:
    """Take options out of words: those in `values` with the word after them, those in `flags` alone.

    Raises:
        UserError: an option that is not known, or that lacks its value.
    """
    rest, found, queue = [], {}, list(words)
    while queue:
        word = queue.pop(0)
        if word in values and queue:
            found[word] = queue.pop(0)
        elif word in flags:
            found[word] = ""
        elif word.startswith("-"):
            lacks = " needs a value" if word in values else f": no such option.{did_you_mean(word, (*values, *flags))}"
            raise UserError(f"{word}{lacks}")
        else:
            rest.append(word)
    return rest, found


def number_of(options: dict[str, str], name: str, default: float) -> float:
    """An option's value as a number.

    Raises:
        UserError: where it is none, or below 0.
    """
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise UserError(f"{name}: found '{options[name]}', expected a number.")
    return value


def sweep(words: list[str]) -> int:
    """Grids and searches. Their library is loaded by those who use them."""
    from slurm.sweep import command

    return command.main(words)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "submit": submit,
    "plan": plan_,
    "status": status_,
    "logs": logs_,
    "cancel": cancel_,
    "retry": retry,
    "preflight": preflight_,
    "sweep": sweep,
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
