"""What a person sees of runs: a table of every job, a job's log, and what a run has to show in the end."""

import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.config.prepared import prepared_notes
from pipeline.config.schema import Config
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_json
from pipeline.runtime.numbers_text import directions, joined, legend, notes, shown
from slurm import ledger
from slurm.failures import CHANGE, POLICIES, RETRY
from slurm.ledger import State, record_of, states_of, states_without_slurm
from slurm.progress import COLOURS, last_line, newest_log, training_of
from slurm.queue import SlurmAway
from slurm.score import ScoreLaunch
from slurm.workflows import Launch, comparison, job_named, reconstruction_of, result_of, sample_set

PICTURES = {"grid.png": "Picture", "strip.png": "Strip"}  # of a sample set: images, and how they came out of noise
RESOURCES = {"reconstruct": "sample", "features": "evaluate"}  # jobs that are given those of another
BEGINS = re.compile(rf"^((?:{'|'.join(Config.model_fields)})(?:\.\w+)+)\b")
SETTING = re.compile(rf"\b((?:{'|'.join(Config.model_fields)})(?:\.\w+)+)(?:=|: found)")  # that a message names
LAUNCHER = re.compile(r"^submitit INFO .*\n?", re.MULTILINE)
POLL_SECONDS = 0.5
ASK_SECONDS = 15.0  # how often the queue is asked whether the job still lasts


# Every job


def show(runs: Sequence[Launch], console: Console) -> int:
    """Print the table; 1 where something does not go on by itself, or nobody knows how it stands."""
    try:
        found = states_of(runs)
    except SlurmAway as error:
        found = states_without_slurm(runs, str(error))
    table = Table()
    for column in ("run", "job", "state", "id", "starts", "how far, or why not"):
        table.add_column(column, justify="right" if column == "starts" else "left", overflow="fold")
    for launch, states in zip(runs, found, strict=True):
        name, stopped = launch.run.path.name, stopped_short(states)
        in_turn = launch.cfg.cluster.executor == "local" and any(s.active for s in states.values())
        for state in states.values():
            told = explain(launch, state)
            if state.job == stopped:
                told = f"nothing is under way that would submit it\n-> mudi submit {launch.run.path}"
            elif in_turn and state.status == "not submitted" and not told:
                told = "in its turn, by the submit that is at work"
            table.add_row(
                name,
                state.job,
                Text(state.status, COLOURS.get(state.status, "")),
                short_ids(state.ids),
                str(state.starts or ""),
                Text(told),
            )
            name = ""
        table.add_section()
    console.print(table)
    return int(any(stopped_short(states) or any(s.stuck for s in states.values()) for states in found))


def stopped_short(states: dict[str, State]) -> str | None:
    """The first job that nobody submitted, of a run of which other jobs were, where nothing is under way. None: none.

    So it is where a submission ended early, and where somebody ran single stages.
    """
    if any(s.active or s.stuck for s in states.values()) or not any(s.ids for s in states.values()):
        return None
    return next((s.job for s in states.values() if s.status == "not submitted"), None)


def short_ids(ids: Sequence[str]) -> str:
    """One id, or an array's as 17_[0-3]."""
    if len(ids) < 2:
        return "".join(ids)
    base = ids[0].partition("_")[0]
    return f"{base}_[0-{len(ids) - 1}]" if all(i.startswith(f"{base}_") for i in ids) else ", ".join(ids)


def explain(launch: Launch, state: State) -> str:
    """A line or two: progress of what runs, the reason of what waits, cause and advice for what failed."""
    told = (
        [f"{state.ended} of {len(state.ids)} parts done"] if len(state.ids) > 1 and state.status != "complete" else []
    )
    trained = launch.trains(state.job)
    training = (
        training_of(trained) if trained is not None and state.status not in ("blocked", "not submitted") else None
    )
    if training is not None:
        told += [training.text(running=state.status == "running")] if state.status != "complete" else []
        told += [goodput_of(training.goodput)] if training.goodput is not None else []
    told += ["cancelled: it saves and ends"] if state.leaving else []
    told += [state.message] if state.status in ("running", "suspended") and state.message else []
    if state.status == "running":
        log = None if told else ledger.log_now(launch.run, state.job)
        told += [last_line(log)[:100]] if log is not None else []
        return " ".join(filter(None, [", ".join(filter(None, told)), state.nodes and f"on {state.nodes}"]))
    if state.status == "waiting":
        parents = ", ".join(job_named(launch, state.job).parents)
        told += [f"waits for {parents}" if state.message.startswith("Dependency") and parents else state.message]
    told += [state.message] if state.status in ("unknown", "not submitted") else []
    line = ", ".join(filter(None, told))
    if state.cause is None:
        return line
    last = state.message.strip().splitlines()[-1:] or [""]
    why = last[0] if last[0].startswith(state.cause) else f"{state.cause}: {last[0]}"
    return "\n".join(filter(None, [line, why[:800], what_to_do(launch, state)]))


def goodput_of(share: float) -> str:
    """Goodput in words."""
    return f"goodput {share:.0%} (share of its time in steps that count)"


def what_to_do(launch: Launch, state: State) -> str:
    """The advice for a job that did not end well, and in a line each the commands that follow it."""
    if state.cause is None:
        return f"-> {state.advice}"
    wanted, example = POLICIES[state.cause].commands, POLICIES[state.cause].example
    what, group = str(launch.run.path), RESOURCES.get(state.job, state.job)
    if isinstance(launch, ScoreLaunch):
        what = " ".join(("score", *launch.sets))
        example = example if example.startswith("cluster.") else "evaluate.batch=64"
    commands = {RETRY: f"mudi retry {launch.run.path}"}
    commands[CHANGE] = f"mudi submit {what} {example.format(group=group)} (an example)"
    if state.cause in ("bad_config", "error"):  # of the settings in a message, the one that it begins with is wrong
        named = BEGINS.search(state.message) or SETTING.search(state.message)
        value = f"{named[1]}= and another value" if named else "the setting and another value"
        commands[CHANGE] = f"mudi submit {what} (followed by {value})"
    return "\n   ".join([f"-> {state.advice}", *(commands[name] for name in wanted)])


# A job's log


def log_of(launch: Launch, job: str | None) -> tuple[str, Path]:
    """The job (the named one, or the one whose log was written last) and its newest log.

    Raises:
        UserError: where there is no such job, or no log yet.
    """
    if job is not None:
        job_named(launch, job)
    names = [job] if job else [j.name for j in launch.jobs]
    found = [(log.stat().st_mtime, name, log) for name in names if (log := newest_log(record_of(launch.run, name)))]
    if not found:
        raise UserError(f"{launch.run.path} has no log {f'of {job} ' if job else ''}yet: nothing of it has started.")
    _, name, log = max(found)
    return name, log


def _log_once_started(launch: Launch, job: str | None) -> tuple[str, Path]:
    said = False
    while True:
        try:
            return log_of(launch, job)
        except UserError:
            states = states_of([launch])[0]
            if not any(state.active for name, state in states.items() if job in (None, name)):
                raise
        if not said:
            print(f"==> {job or launch.run.path} has yet to start: waiting", file=sys.stderr)
            said = True
        time.sleep(ASK_SECONDS)


def show_log(launch: Launch, job: str | None, *, follow: bool, lines: int) -> None:
    """Print the last `lines` of a log and, with `follow`, what comes until the job has ended.

    What has yet to start has no log: with `follow`, it is waited for.
    """
    name, newest = _log_once_started(launch, job) if follow else log_of(launch, job)
    log: Path | None = newest
    first: int | None = lines
    while log is not None:
        print(f"==> {log} <==", file=sys.stderr)
        with log.open(errors="replace") as file:
            print("".join(deque(filter(None, map(_of_job, file)), maxlen=first)), end="", flush=True)
            log = _followed(launch, name, file, log=log) if follow else None
        first = None


def _followed(launch: Launch, job: str, file: TextIO, *, log: Path) -> Path | None:
    """Print what is added to a log; the log of the job's next submission, or None when nothing of it is under way."""
    asked = 0.0
    while True:
        text = file.read()
        print(_of_job(text), end="", flush=True)
        newest = newest_log(record_of(launch.run, job))
        if not text and newest is not None and _submission_of(newest) != _submission_of(log):
            return newest
        if not text and time.monotonic() - asked > ASK_SECONDS:
            asked = time.monotonic()
            state = states_of([launch])[0][job]
            if not state.active:
                print(_of_job(file.read()), end="", flush=True)
                print(f"==> {job}: {state.status} {state.cause or ''}", file=sys.stderr)
                return None
        time.sleep(POLL_SECONDS)


def _of_job(text: str) -> str:
    """The text without the launcher's lines, but for its warnings and errors."""
    return LAUNCHER.sub("", text)


def _submission_of(log: Path) -> str:
    """The id of the job, or of the array, that writes it."""
    return log.name.partition("_")[0]


# Results


def summary(launch: Launch, console: Console) -> None:
    """Print results as a table, the pictures' paths, and the TensorBoard command."""
    if isinstance(launch, ScoreLaunch):
        if all(launch.complete().values()):
            result = read_json(launch.result)
            _show_numbers(result, str(launch.result), console)
            explain_numbers([result], console)
        return
    results: list[dict[str, Any]] = []
    samples = sample_set(launch)
    reconstruction = reconstruction_of(launch.autoencoder)
    if any(job.name == "reconstruct" for job in launch.jobs) and reconstruction.is_file():
        results.append(show_result(reconstruction, "reconstructions", console))
        console.print(f"Picture:     {reconstruction.with_suffix('.png')}", highlight=False, soft_wrap=True)
    path = None if samples is None else result_of(launch, samples)
    if path is None or not path.is_file():  # as while a run is trained further: the newest that there is
        path = max(_results_of_samples(launch), key=lambda path: path.stat().st_mtime_ns, default=None)
    if path is not None:
        results.append(show_result(path, "samples", console))
    explain_numbers(results, console)
    for name, what in PICTURES.items():
        if samples is not None and (samples / name).is_file():
            console.print(f"{what + ':':12} {samples / name}", highlight=False, soft_wrap=True)
    if comparison(launch).is_file():
        console.print(f"Comparison:  {comparison(launch)}", highlight=False, soft_wrap=True)
    for said in prepared_notes(launch.cfg):
        console.print(f"Data:        {said}", highlight=False, markup=False, soft_wrap=True)
    if launch.run.tensorboard.is_dir():
        command = f"{sys.executable} -m tensorboard.main --logdir {launch.run.tensorboard}"
        console.print(f"TensorBoard: {command}", highlight=False, soft_wrap=True)


def _results_of_samples(launch: Launch) -> list[Path]:
    return [path for path in launch.run.results.glob("*.json") if not path.stem.endswith("-reconstruction")]


def show_result(path: Path, what: str, console: Console) -> dict[str, Any]:
    """Print the numbers of a result file, which it returns, as a table below a line that says what they are of."""
    result: dict[str, Any] = read_json(path)
    _show_numbers(result, f"{result['samples']['count']} {what} of step {result['step']} ({path})", console)
    return result


def _show_numbers(result: dict[str, Any], title: str, console: Console) -> None:
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right")
    metrics = dict(sorted(result["metrics"].items()))
    for name, value in metrics.items():
        table.add_row(name, shown(value, result.get("details", {}).get(name, {})))
    console.print(table)


def explain_numbers(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print once what the tables above mean, and what a reader of them should know."""
    metrics = {name: value for result in results for name, value in sorted(result["metrics"].items())}
    details = joined(result.get("details", {}) for result in results)
    cautions = [said for result in results for said in result.get("notes", notes(result["metrics"]))]
    for line in [*directions(metrics), *legend(metrics, details), *(f"- {said}" for said in dict.fromkeys(cautions))]:
        console.print(line, highlight=False, markup=False)
