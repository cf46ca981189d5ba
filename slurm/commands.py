"""What the commands of `python -m slurm` do: see `pipeline.runtime.commands` for their words and options."""

import os
import sys
from pathlib import Path

from rich.console import Console

from pipeline.config.load import listed, run_named
from pipeline.runtime.errors import UserError
from slurm import cancel, ledger, plan, preflight, status
from slurm.progress import ProgressTable
from slurm.status import summary
from slurm.submit import correct, run_here, submit_all, submit_graph
from slurm.workflows import Launch, launch_for, meant, missing_for


def submit(words: list[str]) -> int:
    """Submit an experiment, or a run directory again."""
    return _submit(_made(words))


def _made(words: list[str]) -> Launch:
    cfg = meant(words)
    for line in correct(cfg):
        print(line)
    return launch_for(cfg, make=True)


def _submit(launch: Launch) -> int:
    plan.quantities(launch)  # raises, before anything is queued, where the ranks and the recipe do not fit
    console = _console()
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


def plan_(words: list[str], *, sbatch: Path | None = None) -> None:
    """Print what `submit` would do; write it as scripts into the folder `sbatch`."""
    launch = launch_for(meant(words), make=False) if sbatch is None else _made(words)
    plan.show(launch, _console())
    for path in plan.write(launch, sbatch) if sbatch is not None else ():
        print(path)
    if problems := missing_for(launch):
        raise UserError(f"submit would refuse this:\n{listed(problems)}")


def status_(words: list[str]) -> int:
    """Show runs; 1 where a job of them failed, or one of them cannot be read."""
    runs, unread = _opened(words or [str(ledger.RUNS)])
    console = _console()
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
    runs, unread = _opened(words)
    remote = [launch for launch in runs if launch.cfg.cluster.executor == "slurm"]
    if remote:
        submit_all(remote)
        status.show(remote, _console())
    return max([unread, *(_submit(launch) for launch in runs if launch not in remote)])


def logs_(words: list[str], *, follow: bool = False, lines: int = 40) -> None:
    """Print a job's newest log."""
    if len(words) > 2:
        raise UserError(f"logs: found {' '.join(words)}, expected one run directory and one job.")
    (launch, *_), _ = ledger.launches([Path(words[0])])
    status.show_log(launch, words[1] if len(words) == 2 else None, follow=follow, lines=lines)


def cancel_(words: list[str], *, job: str | None = None) -> int:
    """Cancel runs, or one job of them."""
    runs, unread = _opened(words)
    print("\n".join(cancel.cancel(runs, job=job)) or "nothing was under way")
    return unread


def preflight_(words: list[str], *, wait: float = 300.0) -> int:
    """Check a cluster; 1 where something is red."""
    if run_named(words) is None and not any(w.startswith(("experiment=", "data=", "model=")) for w in words):
        words = ["data=glyphs16", "model=unet_tiny", "name=preflight", *words]
    return int(not preflight.preflight(meant(words), _console(), wait_s=wait))


def _console() -> Console:
    """For results: as wide as the terminal, or as COLUMNS says; 140 columns in a log."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
