"""How the trials of a sweep stand, from disk and queue, without changing anything."""

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from slurm import ledger
from slurm.queue import look
from slurm.sweep.batches import Held, held, total
from slurm.sweep.check import size_of
from slurm.sweep.driver import trials_of
from slurm.sweep.folder import SweepDir
from slurm.sweep.runs import Run, runs_of, stages, value_of
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import words_of
from slurm.sweep.trials import WORDS


@dataclass(frozen=True)
class Row:
    """One trial."""

    name: str
    word: str  # complete, pruned, failed, running, waiting
    words: tuple[str, ...]
    value: float | None
    hours: float
    note: str = ""


def standing(sweep: SweepDir) -> list[Row]:
    """Every trial, in order."""
    settings = sweep.settings()
    found = trials_of(sweep)
    opened = [run for t in found if t.state == TrialState.RUNNING for run in runs_of(sweep, t.number, settings.seeds)]
    words, cost = _words(settings, opened), held(sweep)
    return [_row(sweep, t, settings=settings, words=words, cost=cost) for t in found]


def _words(settings: SweepSettings, runs: Sequence[Run]) -> dict[str, str]:
    """A word for every run of the open trials."""
    launches = {run: run.launch() for run in runs if run.path.is_dir()}
    complete = {run: stages(launch) for run, launch in launches.items()}
    seen = look(ledger.open_ids((run.records, done) for run, done in complete.items()))
    words = {run.name: "waiting" for run in runs}
    for run, done in complete.items():
        if value_of(launches[run], settings) is not None:
            words[run.name] = "complete"
            continue
        states = ledger.states(run.records, done, seen)
        current = next((name for name, there in done.items() if not there), list(done)[-1])
        state = states[current]
        words[run.name] = current if state.word == "running" else state.word
        if state.cause:
            words[run.name] += f" ({state.cause})"
    return words


def _row(
    sweep: SweepDir, trial: FrozenTrial, *, settings: SweepSettings, words: dict[str, str], cost: dict[str, Held]
) -> Row:
    name, said = f"{trial.number:04d}", words_of(trial.params)
    names = [run.name for run in runs_of(sweep, trial.number, settings.seeds)]
    hours = total(cost, names).hours
    if trial.state != TrialState.RUNNING:
        last = str(trial.user_attrs.get("message", "")).strip().splitlines()[-1:] or [""]
        cause = trial.user_attrs.get("cause", "")
        value = trial.value if trial.state == TrialState.COMPLETE else None
        return Row(name, WORDS[trial.state], said, value, hours, f"{cause}: {last[0]}" if cause else "")
    running = [words.get(n, "waiting") for n in names]
    word = "running" if any(w in ("train", "sample", "evaluate", "complete") for w in running) else "waiting"
    return Row(name, word, said, None, hours, ", ".join(running))


def totals(sweep: SweepDir, rows: Sequence[Row]) -> str:
    """Counts, cost and the best so far, in lines."""
    settings = sweep.settings()
    counts = {word: sum(row.word == word for row in rows) for word in dict.fromkeys(row.word for row in rows)}
    counts["not begun"] = size_of(settings) - len(rows)
    said = ", ".join(f"{n} {word}" for word, n in counts.items() if n > 0)
    limit = f" of {settings.gpu_hours:g}" if settings.gpu_hours is not None else ""
    cost = total(held(sweep))
    lines = [f"{said or 'no trial yet'}; {cost.gpu_hours:.2f}{limit} GPU hours, {cost.hours:.2f} hours of jobs"]
    best = best_of(rows, settings)
    if best is not None and best.value is not None:
        lines.append(f"best: {best.name} with {settings.metric} = {best.value:.4g} ({' '.join(best.words)})")
    if sweep.cancelled.is_file():
        lines.append(f"cancelled; to go on: python -m slurm sweep submit {sweep.path}")
    return "\n".join(lines)


def best_of(rows: Sequence[Row], settings: SweepSettings) -> Row | None:
    """The best complete trial; of equals the first."""
    sign = 1.0 if settings.direction == "minimize" else -1.0
    done = [row for row in rows if row.value is not None]
    return min(done, key=lambda row: sign * (row.value or 0.0), default=None)
