"""What the commands of `python -m slurm` do: see `pipeline.runtime.commands` for their arguments and options."""

import os
import sys
from pathlib import Path

from rich.console import Console

from pipeline.config.load import config_from, listed, run_named
from pipeline.config.overrides import key_of
from pipeline.config.paths import run_directory
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir, refuse_others
from slurm import cancel, ledger, plan, preflight, status
from slurm.access import taken_back
from slurm.progress import ProgressTable
from slurm.score import launch_for_score
from slurm.status import summary
from slurm.submit import correct, run_here, submit_all
from slurm.workflows import Launch, launch_for, meant, missing_for, trained_autoencoder

INTERRUPTED = 130  # of `run_here`: by Ctrl-C or SIGTERM


def submit(overrides: list[str], *, until: str | None = None, only: str | None = None) -> int:
    """Submit experiments, or a run directory again; or some of its jobs."""
    every = each_experiment(overrides)
    meanings = [meant(one) for one in every]  # of several, none is submitted where one has a mistake
    with taken_back(_places(meanings), keep=lambda run: bool(ledger.submissions(RunDir(run)))):
        return _submit([_made(one, until=until, only=only) for one in every])


def _places(every: list[Config]) -> list[Path]:
    """The run directories that submitting makes where they are not there."""
    owns = [own for cfg in every if (own := trained_autoencoder(cfg)) is not None]
    return [run_directory(cfg).resolve() for cfg in (*every, *owns)]


def submit_score(
    arguments: list[str],
    *,
    size: int | None = None,
    json: Path | None = None,
    csv: Path | None = None,
    cache: Path | None = None,
) -> int:
    """Score two sets of images as a job."""
    launch = launch_for_score(arguments, size=size, result=json, table=csv, cache=cache)
    print(f"result: {launch.result}")
    return _submit([launch])


def each_experiment(overrides: list[str]) -> list[list[str]]:
    """One list of overrides for each experiment of `experiment=a,b`.

    Raises:
        UserError: several with one name.
    """
    place = next(
        (n for n, override in enumerate(overrides) if override.startswith("experiment=") and "," in override), None
    )
    if place is None:
        return [overrides]
    if named := [override for override in overrides if override.startswith("name=")]:
        raise UserError(
            f"{named[0]}: found several experiments in {overrides[place]}, expected one, as each has its name."
        )
    names = overrides[place].removeprefix("experiment=").strip("[]").split(",")
    return [
        [*overrides[:place], f"experiment={name.strip()}", *overrides[place + 1 :]] for name in names if name.strip()
    ]


def _made(overrides: list[str], *, until: str | None = None, only: str | None = None) -> Launch:
    cfg = meant(overrides)
    if problems := missing_for(launch_for(cfg, make=False, until=until, only=only)):  # before settings of a run change
        raise UserError(listed(problems))
    for line in correct(cfg):
        print(line)
    launch = launch_for(cfg, make=True, until=until, only=only)
    said = {key_of(override) for override in (*overrides, *launch.overrides) if "=" in override}
    gone = [w for w in ledger.overrides_of(launch.run.path) if not w.startswith("cluster.") and key_of(w) not in said]
    if gone:
        print(f"{launch.run.path}: not as in its last submission, {' '.join(gone)}, but as the run was made")
    return launch


def _submit(launches: list[Launch]) -> int:
    for launch in launches:
        rows = plan.quantities(launch)  # raises, before anything is queued, where the ranks and the recipe do not fit
        for name, said in rows.items():
            if name.endswith(plan.WARNINGS):
                print(f"{launch.run.path.name}: {name}: {said}")
    here = [launch for launch in launches if launch.cfg.cluster.executor == "local"]
    queued = [launch for launch in launches if launch not in here]
    if queued:
        _queue(queued)
    return max((_run_here(launch) for launch in here), default=0)


def _run_here(launch: Launch) -> int:
    console = _console()
    table = ProgressTable([job.name for job in launch.jobs], title=str(launch.run.path))
    code = run_here(launch, table)
    console.print(table.table())
    summary(launch, console)
    if code:
        then = _goes_on(launch) if code == INTERRUPTED else "Submit again to go on from here."
        console.print(f"Logs: {launch.run.jobs}. {then}", highlight=False, soft_wrap=True)
        for state in ledger.states(launch.run, launch.complete()).values():
            if table.rows[state.job].status == "failed":  # in this call: others may have ended for other settings
                advice = f"{state.job}: {status.what_to_do(launch, state)}"
                console.print(advice, highlight=False, markup=False, soft_wrap=True)
    return code


def _goes_on(launch: Launch) -> str:
    """From where the same command goes on."""
    jobs = [job.name for job in launch.jobs if launch.trains(job.name) and not launch.complete()[job.name]]
    run = launch.trains(jobs[0]) if jobs else None
    if run is None or (step := run.latest_step()) is None:
        return "The same command goes on from here."
    batch = config_from([str(run.path)]).train.global_batch
    return f"{jobs[0]}: saved at step {step} ({step * batch / 1000:g} kimg). The same command goes on from there."


def _queue(launches: list[Launch]) -> None:
    console = _console()
    for launch, before in zip(launches, submit_all(launches), strict=True):
        run = f"{launch.run.path.name}/" if len(launches) > 1 else ""
        wanted = {job.name for job in launch.wanted()}
        for name, state in before.items():
            said = {
                "complete": "complete: skipped",
                "running": "running: left alone",
                "waiting": "in the queue already",
            }
            text = (
                f"queued, to start when {', '.join(state.ids)} has ended" if state.leaving else said.get(state.status)
            )
            text = text or ("queued" if name in wanted else "not asked")
            console.print(f"{run}{name}: {text}", highlight=False)
    status.show(launches, console)
    runs = " ".join(str(launch.run.path) for launch in launches)
    console.print(f"Nothing needs to stay here. Later: mudi status {runs}", soft_wrap=True)


def plan_(overrides: list[str], *, sbatch: Path | None = None) -> None:
    """Print what `submit` would do; write it as scripts into the folder `sbatch`.

    Raises:
        UserError: what `submit` would refuse, in place of the plan.
    """
    launch = launch_for(meant(overrides), make=False) if sbatch is None else _made(overrides)
    if problems := missing_for(launch):
        raise UserError(f"submit would refuse this:\n{listed(problems)}")
    refuse_others(launch.cfg)
    plan.show(launch, _console(), overrides=overrides)
    for path in plan.write(launch, sbatch) if sbatch is not None else ():
        print(path)


def status_(arguments: list[str]) -> int:
    """Show runs; 1 where a job of them failed, or one of them cannot be read."""
    runs, unread = _opened(arguments or [str(ledger.RUNS)])
    console = _console()
    code = status.show(runs, console)
    if len(runs) == 1:
        summary(runs[0], console)
    return max(code, unread)


def _opened(arguments: list[str]) -> tuple[list[Launch], int]:
    """The runs that can be read, and 1 where others cannot, which are named."""
    runs, problems = ledger.launches([Path(w) for w in arguments])
    for problem in problems:
        print(f"slurm: cannot read {problem}", file=sys.stderr)
    return runs, int(bool(problems))


def retry(arguments: list[str]) -> int:
    """Submit again what is not complete, as it was submitted."""
    runs, unread = _opened(arguments)
    remote = [launch for launch in runs if launch.cfg.cluster.executor == "slurm"]
    if remote:
        submit_all(remote)
        status.show(remote, _console())
    return max([unread, *(_submit([launch]) for launch in runs if launch not in remote)])


def logs_(arguments: list[str], *, follow: bool = False, lines: int = 40) -> None:
    """Print a job's newest log."""
    if len(arguments) > 2:
        raise UserError(f"logs: found {' '.join(arguments)}, expected one run directory and one job.")
    (launch, *_), _ = ledger.launches([Path(arguments[0])])
    status.show_log(launch, arguments[1] if len(arguments) == 2 else None, follow=follow, lines=lines)


def cancel_(arguments: list[str], *, job: str | None = None) -> int:
    """Cancel runs, or one job of them."""
    runs, unread = _opened(arguments)
    print("\n".join(cancel.cancel(runs, job=job)) or "nothing was under way")
    return unread


def preflight_(overrides: list[str], *, wait: float = 300.0) -> int:
    """Check a cluster; 1 where something is red."""
    if run_named(overrides) is None and not any(w.startswith(("experiment=", "data=", "model=")) for w in overrides):
        overrides = ["data=glyphs16", "model=unet_tiny", "name=preflight", *overrides]
    return int(not preflight.preflight(meant(overrides), _console(), wait_s=wait))


def _console() -> Console:
    """For results: as wide as the terminal, or as COLUMNS says; 140 columns in a log."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
