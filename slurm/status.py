"""How runs stand: every job of every run asked for, from disk, one squeue and one sacct."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.config.load import CONFIG_FILE
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.files import read_lines
from slurm import ledger
from slurm.adopt import adopt_its_own, written_by_hand
from slurm.board import COLOURS
from slurm.ledger import LEDGER, State
from slurm.queue import SlurmAway, mine
from slurm.watching import last_line, newest_log, training_of
from slurm.workflows import Launch, job_named, launch_of_run

RUNS = Path("runs")  # where runs lie unless a config says otherwise


def runs_under(paths: Sequence[Path]) -> list[Path]:
    """Run directories among `paths` and directly below them, in order of names.

    Raises:
        UserError: where one of them is not there, or there is no run at all.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
            near = f" Did you mean {RUNS / path}?" if (RUNS / path).is_dir() else near
            raise UserError(f"{path} is not a directory. Give a run directory or a folder of them.{near}")
        inside = [path] if (path / "config.yaml").is_file() else sorted(p.parent for p in path.glob("*/config.yaml"))
        found += inside
    if not found:
        raise UserError(f"No run (a directory with a config.yaml) in {', '.join(map(str, paths))}.")
    return found


def last_words_of(run: Path) -> tuple[str, ...]:
    """The overrides that the newest submission of a run was made with."""
    row = _submitted_last(run)
    return tuple(row["words"]) if row else ()


def _submitted_last(run: Path) -> dict[str, Any] | None:
    """The ledger's newest row of a submission with words of its own; else of scripts that were written."""
    rows = [row for row in read_lines(run / "jobs" / LEDGER) if "words" in row]
    return max(rows, key=lambda row: (row["event"] == "submitted", row["time"]), default=None)


def launches(paths: Sequence[Path]) -> tuple[list[Launch], list[str]]:
    """The runs, each as it was submitted last, and a line for each that cannot be read.

    Raises:
        UserError: where none of them can be read.
    """
    found: list[Launch] = []
    problems: list[str] = []
    for path in runs_under(paths):
        try:
            launch = as_submitted(path)
            launch.complete()  # reads what its jobs have made
            found.append(launch)
        except (UserError, OSError, ValueError) as error:
            problems.append(f"{path / CONFIG_FILE}: {error}")
    if not found:
        raise UserError("\n".join(problems))
    return found, problems


def as_submitted(path: Path) -> Launch:
    """A run with the words of its last submission; relative paths in its config start where it was submitted."""
    row = _submitted_last(path)
    return launch_of_run(path, last_words_of(path), cwd=Path(row["cwd"]) if row else None)


def states_of(runs: Sequence[Launch]) -> list[dict[str, State]]:
    """The states of every job of every run; Slurm is asked once for all of them, where anything may be there."""
    complete = [(launch, launch.complete()) for launch in runs]
    known = [ledger.submissions(launch.run) for launch in runs]
    by_hand = any(written_by_hand(launch.run) for launch, done in complete if not all(done.values()))
    queue = mine() if by_hand or ledger.open_ids((launch.run, done) for launch, done in complete) else []
    for number, launch in enumerate(runs):
        if adopt_its_own(launch, queue):
            known[number] = ledger.submissions(launch.run)
    return ledger.states_of_all([(launch.run, launch.complete) for launch in runs], known, queue)


def show(runs: Sequence[Launch], console: Console) -> int:
    """Print the table; 1 where a job failed or is blocked, or nobody knows how it stands."""
    try:
        found = states_of(runs)
    except SlurmAway as error:
        found = _without_slurm(runs, str(error))
    table = Table()
    for column in ("run", "job", "state", "id", "starts", "how far, or why not"):
        table.add_column(column, justify="right" if column == "starts" else "left", overflow="fold")
    for launch, states in zip(runs, found, strict=True):
        name = launch.run.path.name
        for state in states.values():
            table.add_row(
                name,
                state.job,
                Text(state.word, COLOURS.get(state.word, "")),
                short_ids(state.ids),
                str(state.starts or ""),
                Text(explain(launch, state)),
            )
            name = ""
        table.add_section()
    console.print(table)
    return int(any(s.word in ("failed", "blocked", "unknown") for states in found for s in states.values()))


def _without_slurm(runs: Sequence[Launch], why: str) -> list[dict[str, State]]:
    """What the disk tells of jobs; of those that Slurm has, where nothing on the disk says how they ended: unknown."""
    found = []
    for launch in runs:
        known = ledger.submissions(launch.run)
        states = ledger.states(launch.run, launch.complete(), {})
        for name, state in states.items():
            if state.cause in ("vanished", "upstream") and known[name].executor == "slurm":
                states[name] = replace(state, word="unknown", cause=None, message=why)
        found.append(states)
    return found


def short_ids(ids: Sequence[str]) -> str:
    """One id, or an array's as 17_[0-3]."""
    if len(ids) < 2:
        return "".join(ids)
    base = ids[0].partition("_")[0]
    return f"{base}_[0-{len(ids) - 1}]" if all(i.startswith(f"{base}_") for i in ids) else ", ".join(ids)


def explain(launch: Launch, state: State) -> str:
    """A line or two: progress of what runs, the reason of what waits, cause and advice for what failed."""
    told = [f"{state.ended} of {len(state.ids)} parts done"] if len(state.ids) > 1 and state.word != "complete" else []
    trained = launch.trains(state.job)
    training = training_of(trained) if trained is not None and state.word not in ("blocked", "not submitted") else None
    if training is not None:
        told += [training.words(running=state.word == "running")] if state.word != "complete" else []
        told += [f"goodput {training.goodput:.0%}"] if training.goodput is not None else []
    told += ["cancelled: it saves and ends"] if state.leaving else []
    if state.word == "running":
        log = None if told else newest_log(ledger.record_of(launch.run, state.job))
        told += [last_line(log)[:100]] if log is not None else []
        return " ".join(filter(None, [", ".join(filter(None, told)), state.nodes and f"on {state.nodes}"]))
    if state.word == "waiting":
        parents = ", ".join(job_named(launch, state.job).parents)
        told += [f"waits for {parents}" if state.message.startswith("Dependency") and parents else state.message]
    told += [state.message] if state.word == "unknown" else []
    line = ", ".join(filter(None, told))
    if state.cause is None:
        return line
    last = state.message.strip().splitlines()[-1:] or [""]
    why = last[0] if last[0].startswith(state.cause) else f"{state.cause}: {last[0]}"
    return f"{line}{chr(10) if line else ''}{why[:300]}\n-> {state.advice}"
