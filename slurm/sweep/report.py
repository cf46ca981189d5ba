"""What became of a sweep's trials: `status` in the terminal, and the report as markdown, csv, json and plots."""

import csv
import io
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from scipy.stats import t as student

from pipeline.config.load import config_from
from pipeline.config.registry import Direction
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import atomic_path, read_json, write_json, write_text
from pipeline.runtime.numbers_text import BOLD, Measured, directions, marked
from pipeline.runtime.parts import without_launcher
from pipeline.runtime.run_dir import RunDir
from slurm.failures import POLICIES
from slurm.ledger import State
from slurm.ledger import states_of as states_of_shared
from slurm.sweep import study
from slurm.sweep.runs import known_params, run_at
from slurm.sweep.settings import Params, SweepDir, SweepSettings, number_of, shown
from slurm.sweep.submit import hours_of, shared_launches, states_of

MOST_ROWS = 60  # trials of which those that wait are shown too
BEST = 10  # trials in the report's first table
FEW_IMAGES = 10_000
WIDTH = 1200  # of pictures, about; smaller ones are enlarged
ENOUGH, STRONG, WEAK = 6, 0.8, 0.4  # trials to correlate; rank correlations
_ORDER = ("running", "waiting", "failed", "over budget", "cancelled", "blocked", "not begun", "complete")
USUAL = ("fid", "fd-domain", "is", "is-domain", "kid", "kid-domain", "accuracy-domain", "precision", "recall")
QUALITY = ("cnniqa", "cnniqa-koniq", "niqe", "brisque")  # of single images
SCALE = "sample.sampler.guidance.scale"


@dataclass(frozen=True)
class Trial:
    """One trial. Numbers are means over its seeds."""

    number: int
    params: Params
    states: tuple[State, ...]  # by seed
    outcomes: tuple[Mapping[str, Any], ...]
    hours: float
    gpu_hours: float

    @property
    def status(self) -> str:
        """Pruned as soon as one seed is; complete when all are; else the status of the seed that is to be looked at."""
        statuses = [state.status for state in self.states]
        return "pruned" if "pruned" in statuses else min(statuses, key=_ORDER.index)

    @property
    def why(self) -> State:
        """The state that explains the status."""
        return next(state for state in self.states if state.status == self.status)

    @property
    def values(self) -> list[float]:
        """The metric, by seed."""
        return [o["value"] for o in self.outcomes] if self.status == "complete" else []

    @property
    def value(self) -> float | None:
        """The mean of the metric."""
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds (Student's t); None for one seed."""
        return _half(self.values)

    def metric(self, name: str) -> float | None:
        """Another metric of the results."""
        return self._mean(lambda o: o.get("metrics", {}).get(name))

    def measured(self, name: str, *, metric: str) -> Measured | None:
        """A number with its 95 % interval, over seeds or else of the one result. `metric`: the sweep's own."""
        gets: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
            metric: lambda o: o.get("value"),
            "loss": lambda o: o.get("loss", {}).get("last"),
        }
        values = self._each(gets.get(name, lambda o: o.get("metrics", {}).get(name)))
        if not values:
            return None
        mean, half, details = fmean(values), _half(values), _details(self.outcomes[0]).get(name, {})
        return mean, details if half is None else {**details, "low": mean - half, "high": mean + half}

    def loss(self, which: str) -> float | None:
        """Of validation (of training where nothing was validated): the "last" or the "best"."""
        return self._mean(lambda o: o.get("loss", {}).get(which))

    def seconds(self, stage: str) -> float | None:
        """Wall time of a stage, over all of its starts."""
        return self._mean(lambda o: o.get("seconds", {}).get(stage))

    def _mean(self, get: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        found = self._each(get)
        return fmean(found) if found else None

    def _each(self, get: Callable[[Mapping[str, Any]], float | None]) -> list[float]:
        return [value for o in self.outcomes if (value := get(o)) is not None]

    @property
    def picture(self) -> Path | None:
        """The sample grid of the first seed that has one."""
        paths = [Path(o["samples"]) / "grid.png" for o in self.outcomes if o.get("samples")]
        return next((path for path in paths if path.is_file()), None)


def _half(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean (Student's t); None for one value."""
    n = len(values)
    return float(student.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None


def _details(outcome: Mapping[str, Any]) -> Mapping[str, Any]:
    """What stands behind the numbers of a run, as its result has it; nothing where there is none."""
    samples = Path(outcome.get("samples") or "")
    try:
        name = f"{samples.parent.name.removeprefix('step-')}-{samples.name}.json"
        return dict(read_json(RunDir(samples.parents[2]).results / name).get("details", {}))
    except (IndexError, Incomplete):
        return {}


def trials_of(sweep: SweepDir, settings: SweepSettings) -> list[Trial]:
    """Every trial, in order, from outcomes and one look at the queue."""
    states, cost = states_of(sweep, settings)[0], hours_of(sweep)
    found = []
    for number in range(settings.size):
        indices = range(number * settings.seeds, (number + 1) * settings.seeds)
        hours = [cost.get(n, (0.0, 0.0)) for n in indices]
        outcomes = tuple(run_at(sweep, settings, n).outcome() for n in indices)
        params = known_params(sweep, settings, number) or {}
        own = tuple(states[n] for n in indices)
        found.append(Trial(number, params, own, outcomes, sum(h for h, _ in hours), sum(g for _, g in hours)))
    return found


def ranked(found: Sequence[Trial], settings: SweepSettings) -> list[Trial]:
    """Complete trials, the best first; of equals the first."""
    sign = 1.0 if settings.minimize else -1.0
    return sorted((t for t in found if t.value is not None), key=lambda t: (sign * (t.value or 0.0), t.number))


def metric_names(found: Sequence[Trial], settings: SweepSettings) -> list[str]:
    """Every metric of the results: the sweep's own first, then those that people look at first, then the others."""
    known = {name for t in found for o in t.outcomes for name in o.get("metrics", {})}
    return [n for n in dict.fromkeys((settings.metric, *USUAL)) if n in known] + sorted(
        known - {settings.metric, *USUAL}
    )


# Status


def show_status(sweep: SweepDir, console: Console) -> int:
    """Print the trials that have begun, counts, cost and the best; 1 where a run or the preparation failed."""
    settings = sweep.settings()
    found = trials_of(sweep, settings)
    table = Table(title=str(sweep.path), title_justify="left")
    for column in ("trial", "state", "configuration", settings.metric, "hours", ""):
        table.add_column(column, overflow="fold", justify="right" if column == "hours" else "left")
    few = len(found) <= MOST_ROWS
    for t in found:
        if t.status != "not begun" and (few or t.status != "waiting"):
            value = "" if t.value is None else f"{t.value:.4g}"
            table.add_row(f"{t.number:04d}", t.status, said(t.params), value, f"{t.hours:.2f}", _note(t))
    console.print(table)
    launches = shared_launches(sweep, settings)
    bad = False
    for launch, states in zip(launches, states_of_shared(launches), strict=True):
        for name, state in states.items():
            bad |= state.status in ("failed", "blocked")
            last = state.message.strip().splitlines()[-1:] or [""]
            cause = f" ({state.cause}: {last[0]}; logs: {launch.run.jobs / name})" if state.cause else ""
            console.print(f"once for all: {name}: {state.status}{cause}", highlight=False, soft_wrap=True)
    console.print(_totals(sweep, settings, found), highlight=False, soft_wrap=True)
    return int(bad or any(t.status == "failed" for t in found))


def _note(t: Trial) -> str:
    """For what did not end well, its cause and last words; for several seeds that differ, each one's state."""
    statuses = [state.status for state in t.states]
    each = ", ".join(statuses) if len(set(statuses)) > 1 else ""
    last = t.why.message.strip().splitlines()[-1:] or [""]
    cause = ": ".join(filter(None, [t.why.cause, last[0]])) if t.status != "complete" else ""
    return "; ".join(filter(None, [each, cause]))


def _totals(sweep: SweepDir, settings: SweepSettings, found: Sequence[Trial]) -> str:
    statuses = {t.status for t in found}
    limit = f" of {settings.gpu_hours:g}" if settings.gpu_hours is not None else ""
    gpu, hours = sum(t.gpu_hours for t in found), sum(t.hours for t in found)
    lines = [f"{_counted(found)}; {gpu:.2f}{limit} GPU hours, {hours:.2f} hours of jobs"]
    if best := ranked(found, settings)[:1]:
        lines.append(
            f"best: {best[0].number:04d} with {settings.metric} = {best[0].value:.4g} ({said(best[0].params)})"
        )
    if not statuses & {"running", "waiting"}:
        again = statuses - {"complete", "pruned"}
        lines += [f"to queue what is not complete: mudi sweep submit {sweep.path}"] if again else []
        lines += [f"report and page: mudi sweep report {sweep.path}"]
    return "\n".join(lines)


def _counted(found: Sequence[Trial]) -> str:
    statuses = sorted(t.status for t in found)
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "none"


def said(params: Params) -> str:
    """A configuration in a line."""
    return " ".join(f"{key}={value}" for key, value in shown(params).items()) or "not chosen yet"


# Report


def write(sweep: SweepDir) -> Path:
    """Write `report.md`, `trials.csv`, `trials.json`, the plots and the TensorBoard page; the report's path."""
    from slurm.sweep import pictures

    settings = sweep.settings()
    found = trials_of(sweep, settings)
    begun = [t for t in found if t.status != "not begun"]
    write_text(sweep.path / "trials.csv", table_csv(begun, settings))
    write_json(sweep.path / "trials.json", [_plain(t) for t in begun])
    best = ranked(found, settings)
    parts = [_head(settings, found)]
    if best:
        pictures.draw(sweep.path, sorted(best, key=lambda t: t.number), settings)
        parts += [_best(best, settings), _table(best, settings), _search(settings, best)]
        parts += [_loss(settings, best), _samples(sweep, settings, best)]
    parts += [_ended_badly(begun)]
    write_text(sweep.path / "report.md", "\n".join(part for part in parts if part))
    pictures.write_page(sweep, settings, [f"final/{name}" for name in metric_names(found, settings)])
    if settings.run is not None:
        argv = ["compare", str(settings.run), "--out", str(sweep.path / "comparison")]
        command, alone = [sys.executable, "-m", settings.program, *argv], without_launcher(os.environ)
        subprocess.run(command, env=alone, stdout=subprocess.DEVNULL, check=False)
    return sweep.path / "report.md"


def _plain(t: Trial) -> dict[str, Any]:
    numbers = {"value": t.value, "plus or minus": t.spread, "hours": t.hours, "gpu_hours": t.gpu_hours}
    return {"trial": t.number, "state": t.status, "params": t.params, "seeds": t.outcomes, **numbers}


def table_csv(found: Sequence[Trial], settings: SweepSettings) -> str:
    """All numbers in full, one line for each trial."""
    keys = list(dict.fromkeys(key for t in found for key in t.params))
    names = [n for n in metric_names(found, settings) if n != settings.metric]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    seeds = [f"{settings.metric} seed {n}" for n in range(settings.seeds)]
    losses = ["validation loss (last)", "validation loss (best)"]
    ends = ["hours", "GPU hours", "cause"]
    writer.writerow(["trial", "state", *keys, settings.metric, "plus or minus", *seeds, *losses, *names, *ends])
    for t in found:
        values = [*t.values, *[None] * settings.seeds][: settings.seeds]
        numbers = [t.value, t.spread, *values, t.loss("last"), t.loss("best"), *(t.metric(n) for n in names)]
        cells = ["" if x is None else x for x in numbers]
        where = [f"{t.number:04d}", t.status, *(str(t.params.get(k, "")).strip('"') for k in keys)]
        writer.writerow([*where, *cells, f"{t.hours:.4f}", f"{t.gpu_hours:.4f}", t.why.cause or ""])
    return text.getvalue()


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns of numbers stand to the right."""
    right = [all(number_of(r[n].strip("*").split(" ")[0] or "0") is not None for r in rows) for n in range(len(head))]
    rule = ["---:" if r else "---" for r in right]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)) + "\n"


def _head(settings: SweepSettings, found: Sequence[Trial]) -> str:
    hours, gpu = sum(t.hours for t in found), sum(t.gpu_hours for t in found)
    base = " ".join(settings.base if settings.run is None else (f"run={settings.run}", *settings.base))
    seeds = f"{settings.seeds} seeds each" if settings.seeds > 1 else "one seed each"
    pruning = settings.pruning
    pruned = f", pruning by {pruning.kind} on {pruning.metric}" if pruning.kind != "none" else ""
    return (
        f"# Sweep {settings.name}\n\n"
        f"- experiment: `{base}`\n"
        f"- {settings.strategy.kind} search for the {'min' if settings.minimize else 'max'}imum of {settings.metric}, "
        f"{seeds}{pruned}\n"
        f"- trials: {_counted(found)}\n"
        f"- cost: {gpu:.3g} GPU hours; {hours:.3g} hours of jobs\n"
    )


def _best(best: Sequence[Trial], settings: SweepSettings) -> str:
    rows, on_gpus = [], any(t.gpu_hours for t in best)
    for t in best[:BEST]:
        spread = "" if t.spread is None else f" ± {t.spread:.2g}"
        hours, loss = t.gpu_hours if on_gpus else t.hours, t.loss("last")
        cells = [f"{t.number:04d}", f"{t.value:.4g}{spread}", f"`{said(t.params)}`"]
        rows.append([*cells, "" if loss is None else f"{loss:.4g}", f"{hours:.3g}"])
    head = ["trial", settings.metric, "configuration", "validation loss", "GPU hours" if on_gpus else "hours"]
    return "\n".join(["## Best trials\n", markdown(head, rows), _certainty(best, settings)])


def _certainty(best: Sequence[Trial], settings: SweepSettings) -> str:
    first = best[0]
    if first.spread is None:
        return "One seed each: how far another seed would move a value was not measured (sweep.seeds=3 does).\n"
    sign = 1.0 if settings.minimize else -1.0
    edge = sign * (first.value or 0.0) + first.spread
    ties = [f"{t.number:04d}" for t in best[1:] if sign * (t.value or 0.0) - (t.spread or 0.0) <= edge]
    seeds = f"{settings.seeds} seeds; ± is half of the 95 % interval of their mean (Student's t). "
    if not ties:
        return seeds + f"No other trial's interval reaches that of trial {first.number:04d}.\n"
    more = f" and {len(ties) - 8} more" if len(ties) > 8 else ""
    names = ", ".join(ties[:8]) + more
    return seeds + f"The intervals of {names} overlap that of the best: these seeds do not tell them apart.\n"


def _table(best: Sequence[Trial], settings: SweepSettings) -> str:
    """Every complete trial as a row of settings and numbers."""
    done = sorted(
        best, key=lambda t: [(n if (n := number_of(v)) is not None else math.inf, str(v)) for v in t.params.values()]
    )
    keys = list(dict.fromkeys(key for t in done for key in t.params))
    names = [n for n in metric_names(done, settings) if n == settings.metric or n in (*USUAL, *QUALITY)]
    names = [settings.metric, *(n for n in names if n != settings.metric), "loss"]
    columns = {n: [t.measured(n, metric=settings.metric) for t in done] for n in names}
    columns = {name: found for name, found in columns.items() if any(found)}
    bold = {n: marked(n, found, direction=_direction(n, settings)) for n, found in columns.items()}
    times = {
        word: [clock(t.seconds(stage)) for t in done]
        for stage, word in (("train", "training"), ("sample", "sampling"))
        if any(t.seconds(stage) is not None for t in done)
    }
    rows = []
    for n, t in enumerate(done):
        cells = [_cell(found[n], bold=bold[name][n]) for name, found in columns.items()]
        rows.append([*(shown(t.params).get(key, "") for key in keys), *cells, *(times[name][n] for name in times)])
    head = [*(settings.columns.get(key, key.rpartition(".")[2]) for key in keys), *columns, *times]
    said = [f"{BOLD} Intervals are those over seeds; of one seed that of its result.\n" if len(done) > 1 else ""]
    said += [_convention(settings), _quality(columns), _counts(done)]
    return "\n".join(["## Settings and numbers\n", markdown(head, rows), *filter(None, said)])


def clock(seconds: float | None) -> str:
    """1:02:03."""
    whole = round(seconds or 0.0)
    return "" if seconds is None else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _convention(settings: SweepSettings) -> str:
    """What the guidance scales of the table mean."""
    if SCALE not in (d.key for d in settings.dimensions):
        return ""
    key = "sample.sampler.guidance.convention"
    convention = next((w.partition("=")[2] for w in settings.base if w.lstrip("+").startswith(f"{key}=")), None)
    if convention is None:
        cfg = config_from([*settings.base, "name=x"] if settings.run is None else [str(settings.run)])
        convention = cfg.sample.sampler.guidance.convention
    zero = {"ho": "Ho and Salimans: w = scale - 1, and 0", "cfg": "cfg: 1"}[convention]
    return f"Guidance scales are those of {zero} is the conditional model itself.\n"


def _quality(columns: Mapping[str, Any]) -> str:
    """Which way the numbers of single images go."""
    found = [name for name in QUALITY if name in columns]
    networks = ["cnniqa is the network trained on LIVE, cnniqa-koniq on KonIQ-10k."] if "cnniqa" in found else []
    return " ".join([*directions(found), *networks]) + "\n" * bool(found)


def _counts(done: Sequence[Trial]) -> str:
    counts = sorted({o["count"] for t in done for o in t.outcomes if o.get("count")})
    few = f": Frechet distances of fewer than {FEW_IMAGES} are too large, and compare only with each other"
    small = few if counts and counts[0] < FEW_IMAGES else ""
    return f"Measured on {', '.join(map(str, counts))} samples each{small}.\n" if counts else ""


def _direction(name: str, settings: SweepSettings) -> Direction | None:
    """That of the sweep's own metric is a setting."""
    return ("minimize" if settings.minimize else "maximize") if name == settings.metric else None


def _cell(found: Measured | None, *, bold: bool) -> str:
    text = "" if found is None else f"{found[0]:.4g}"
    return f"**{text}**" if bold else text


def _search(settings: SweepSettings, best: Sequence[Trial]) -> str:
    shares = study.importances([(t.params, t.value or 0.0) for t in sorted(best, key=lambda t: t.number)], settings)
    varied = [d for d in settings.dimensions if not d.finite or len(d.choices) > 1]
    lines = ["## What matters\n"]
    if len(varied) > 1 and shares:
        rows = [[key, f"{share:.2f}"] for key, share in shares.items()]
        lines += [markdown(["setting", "importance"], rows)]
        lines += ["PED-ANOVA: the share of each setting in what tells the best trials from the others.\n"]
    elif len(varied) > 1:
        lines += ["Too few complete trials to say which setting matters how much.\n"]
    pictures = ["![Metric by trial](search.png)\n", "![Metric by setting](settings.png)\n"]
    return "\n".join([*lines, *pictures, "![All settings of each trial](coordinates.png)\n"])


def _loss(settings: SweepSettings, best: Sequence[Trial]) -> str:
    """Whether the trial with the lower validation loss is the one with the better metric, in words."""
    pairs = [(loss, t.value or 0.0, t.number) for t in best if (loss := t.loss("last")) is not None]
    if settings.run is not None or settings.metric == "valid/loss" or not pairs:
        return ""
    head = f"## Does validation loss predict {settings.metric}?\n"
    picture = f"![{settings.metric} against validation loss](loss.png)\n"
    losses, values, _ = zip(*pairs, strict=True)
    if len(pairs) < ENOUGH or len(set(losses)) == 1 or len(set(values)) == 1:
        return "\n".join([head, f"{len(pairs)} trials have both numbers: too few, or too equal, to say.\n", picture])
    answer = spearmanr(losses, values)
    rho = float(answer.statistic) * (1 if settings.minimize else -1)
    if rho > STRONG:
        word = "yes: the order of the losses is nearly the order of the metric"
    elif rho > WEAK:
        word = "partly: a low loss makes a good metric likelier, and does not choose the best trial"
    else:
        word = (
            "no: choosing by loss is choosing at random" if rho > -WEAK else "no: the lower loss has the worse metric"
        )
    _, value, number = min(pairs)
    return "\n".join([head, (
        f"Spearman's rank correlation over {len(pairs)} trials is {rho:+.2f} (p = {float(answer.pvalue):.2g}; +1: the "
        f"lower loss is always the better {settings.metric}). Does loss predict {settings.metric} here? {word}. "
        f"By loss one would have chosen trial {number:04d} ({settings.metric} {value:.4g}).\n"
    ), picture])  # fmt: skip


def _samples(sweep: SweepDir, settings: SweepSettings, best: Sequence[Trial]) -> str:
    lines = []
    for word, t in (("best", best[0]), ("worst", best[-1])):
        if t.picture is not None and not (word == "worst" and len(best) == 1):
            with atomic_path(sweep.path / f"{word}.png") as partial:
                _enlarged(t.picture).save(partial, format="png")
            lines.append(f"The {word}, trial {t.number:04d}, {settings.metric} {t.value:.4g}: `{said(t.params)}`\n")
            lines.append(f"![]({word}.png)\n")
    return "\n".join(["## Samples of the best and the worst\n", *lines]) if lines else ""


def _enlarged(path: Path) -> Image.Image:
    """A grid of small images, each pixel several times as wide, so that it can be looked at."""
    with Image.open(path) as image:
        times = max(WIDTH // image.width, 1)
        return image.convert("RGB").resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _ended_badly(found: Sequence[Trial]) -> str:
    rows = []
    for t in found:
        if t.status in ("failed", "pruned", "over budget"):
            cause = t.why.cause or t.status
            advice = POLICIES[cause].advice if cause in POLICIES else ""
            last = [line for line in t.why.message.strip().splitlines() if not advice or advice not in line][-1:] or [
                ""
            ]
            rows.append([f"{t.number:04d}", cause, f"`{said(t.params)}`", last[0][:200].replace("|", "/"), advice])
    head = ["trial", "why", "configuration", "said", "advice"]
    return "\n".join(["## Trials without a value\n", markdown(head, rows)]) if rows else ""
