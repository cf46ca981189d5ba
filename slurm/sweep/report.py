"""The report of a sweep: markdown, a table for other programs, plots, and the pictures of the best and the worst."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipeline.runtime.files import atomic_path, write_text
from slurm.failures import POLICIES
from slurm.sweep import plots
from slurm.sweep.analysis import importances, loss_predicts
from slurm.sweep.driver import dimensions_of
from slurm.sweep.folder import SweepDir
from slurm.sweep.measured import Measured, metric_names, ranked, table_csv
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Params, number_of, shown

BEST = 10  # trials in the first table
FEW_IMAGES = 10_000
WIDTH = 1200  # of pictures, about; smaller ones are enlarged


def write(sweep: SweepDir, found: Sequence[Measured]) -> Path:
    """Write `report.md`, `trials.csv` and the pictures beside them; the report's path."""
    settings = sweep.settings()
    write_text(sweep.path / "trials.csv", table_csv(found, settings))
    best = ranked(found, settings)
    parts = [_head(settings, found)]
    if best:
        parts += [_best(best, settings), _table(found, settings), _search(sweep, settings, found)]
        parts += [_loss(sweep, settings, found), _pictures(sweep, settings, best)]
    parts += [_ended_badly(found)]
    path = sweep.path / "report.md"
    write_text(path, "\n".join(part for part in parts if part))
    return path


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns of numbers stand to the right."""
    right = [all(number_of(r[n].strip("*").split(" ")[0] or "0") is not None for r in rows) for n in range(len(head))]
    rule = ["---:" if r else "---" for r in right]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)) + "\n"


def said(params: Params) -> str:
    """A configuration in a line."""
    return " ".join(f"{key}={value}" for key, value in shown(params).items())


def _head(settings: SweepSettings, found: Sequence[Measured]) -> str:
    counts = {word: sum(m.word == word for m in found) for word in ("complete", "pruned", "failed", "running")}
    states = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "none yet"
    hours, gpu = sum(m.hours for m in found), sum(m.gpu_hours for m in found)
    base = " ".join(settings.base if settings.run is None else (f"run={settings.run}", *settings.base))
    seeds = f", {settings.seeds} seeds each" if settings.seeds > 1 else ", one seed each"
    pruning = (
        f", pruning by {settings.pruning.kind} on {settings.pruning.metric}" if settings.pruning.kind != "none" else ""
    )
    return (
        f"# Sweep {settings.name}\n\n"
        f"- experiment: `{base}`\n"
        f"- {settings.strategy.kind} search for the {settings.direction.removesuffix('imize')}imum of {settings.metric}"
        f"{seeds}{pruning}\n"
        f"- trials: {states}\n"
        f"- cost: {gpu:.3g} GPU hours; {hours:.3g} hours of jobs\n"
    )


def _best(best: Sequence[Measured], settings: SweepSettings) -> str:
    rows, on_gpus = [], any(m.gpu_hours for m in best)
    for m in best[:BEST]:
        spread = "" if m.spread is None else f" ± {m.spread:.2g}"
        words, hours = said(m.params), m.gpu_hours if on_gpus else m.hours
        rows.append([f"{m.number:04d}", f"{m.value:.4g}{spread}", f"`{words}`", _shown(m.last_loss), f"{hours:.3g}"])
    head = ["trial", settings.metric, "configuration", "validation loss", "GPU hours" if on_gpus else "hours"]
    lines = ["## Best trials\n", markdown(head, rows)]
    return "\n".join([*lines, _certainty(best, settings)])


def _certainty(best: Sequence[Measured], settings: SweepSettings) -> str:
    first = best[0]
    if first.spread is None:
        return "One seed each: how far another seed would move a value was not measured (sweep.seeds=3 does).\n"
    sign = 1.0 if settings.direction == "minimize" else -1.0
    edge = sign * (first.value or 0.0) + first.spread
    ties = [m for m in best[1:] if sign * (m.value or 0.0) - (m.spread or 0.0) <= edge]
    seeds = f"{settings.seeds} seeds; ± is half of the 95 % interval of their mean (Student's t). "
    if not ties:
        return seeds + f"No other trial's interval reaches that of trial {first.number:04d}.\n"
    names = ", ".join(f"{m.number:04d}" for m in ties[:8])
    more = f" and {len(ties) - 8} more" if len(ties) > 8 else ""
    return seeds + f"The intervals of {names}{more} overlap that of the best: these seeds do not tell them apart.\n"


def _table(found: Sequence[Measured], settings: SweepSettings) -> str:
    """Every complete trial as a row of settings and numbers, the best of each column in bold."""
    done = sorted((m for m in found if m.value is not None), key=_order)
    keys = list(dict.fromkeys(key for m in done for key in m.params))
    names = [n for n in metric_names(done, settings) if _belongs(n, settings)]
    columns = {name: [m.value if name == settings.metric else m.metric(name) for m in done] for name in names}
    if any(m.last_loss is not None for m in done):
        columns["loss"] = [m.last_loss for m in done]
    if settings.metric not in columns:
        columns = {settings.metric: [m.value for m in done], **columns}
    rows = []
    for n, m in enumerate(done):
        words = shown(m.params)
        cells = [_bold(values, n, _higher(name, settings)) for name, values in columns.items()]
        rows.append([*(words[key] for key in keys), *cells])
    head = [*(settings.columns.get(key, key.rpartition(".")[2]) for key in keys), *columns]
    counts = {m.launch.cfg.sample.count for t in done for m in t.runs}
    small = f"Measured on {', '.join(map(str, sorted(counts)))} samples each" if counts else ""
    if counts and min(counts) < FEW_IMAGES:
        small += f": Frechet distances of fewer than {FEW_IMAGES} are too large, and compare only with each other"
    return "\n".join(["## Settings and numbers\n", markdown(head, rows), f"{small}.\n" if small else ""])


def _order(m: Measured) -> list[tuple[float, str]]:
    return [(number_of(v) if number_of(v) is not None else float("inf"), str(v)) for v in m.params.values()]  # type: ignore[misc]


def _belongs(name: str, settings: SweepSettings) -> bool:
    """What reports show: distances, inception score, accuracy; not every number that is measured."""
    plain = name.partition("@")[0]
    shown = ("fid", "fd-domain", "is", "is-domain", "kid", "kid-domain", "accuracy-domain", "precision", "recall")
    return name == settings.metric or (plain in shown and "@" not in name)


def _higher(name: str, settings: SweepSettings) -> bool:
    if name == settings.metric:
        return settings.direction == "maximize"
    return name.startswith(("is", "accuracy", "precision", "recall"))


def _bold(values: Sequence[float | None], place: int, higher: bool) -> str:
    value, known = values[place], [v for v in values if v is not None]
    if value is None:
        return ""
    best = max(known) if higher else min(known)
    return f"**{value:.4g}**" if value == best and len(known) > 1 else f"{value:.4g}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _search(sweep: SweepDir, settings: SweepSettings, found: Sequence[Measured]) -> str:
    plots.draw_search(sweep.path / "search.png", found, settings)
    varied = [d for d in dimensions_of(settings) if not d.finite or len(d.choices) > 1]
    plots.draw_settings(sweep.path / "settings.png", found, varied, settings=settings)
    lines = ["## What matters\n"]
    shares = importances(sweep, settings)
    if len(varied) == 1:
        lines = ["## The search\n"]
    elif shares:
        lines += [markdown(["setting", "importance"], [[key, f"{share:.2f}"] for key, share in shares.items()])]
        lines += ["PED-ANOVA: the share of each setting in what tells the best trials from the others.\n"]
    else:
        lines += ["Too few complete trials to say which setting matters how much.\n"]
    return "\n".join([*lines, "![Metric by trial](search.png)\n", "![Metric by setting](settings.png)\n"])


def _loss(sweep: SweepDir, settings: SweepSettings, found: Sequence[Measured]) -> str:
    lines = [f"## Does validation loss predict {settings.metric}?\n", f"{loss_predicts(found, settings)}\n"]
    if settings.run is not None:
        return ""
    if any(m.last_loss is not None and m.value is not None for m in found):
        plots.draw_losses(sweep.path / "loss.png", found, settings)
        lines += [f"![{settings.metric} against validation loss](loss.png)\n"]
    return "\n".join(lines)


def _pictures(sweep: SweepDir, settings: SweepSettings, best: Sequence[Measured]) -> str:
    lines = []
    for word, m in (("best", best[0]), ("worst", best[-1])):
        if m.pictures and not (word == "worst" and len(best) == 1):
            with atomic_path(sweep.path / f"{word}.png") as partial:
                _enlarged(m.pictures[0]).save(partial, format="png")
            words = said(m.params)
            lines += [
                f"The {word}, trial {m.number:04d}, {settings.metric} {m.value:.4g}: `{words}`\n",
                f"![]({word}.png)\n",
            ]
    return "\n".join(["## Samples of the best and the worst\n", *lines]) if lines else ""


def _enlarged(path: Path) -> Image.Image:
    """A grid of small images, each pixel several times as wide, so that it can be looked at."""
    with Image.open(path) as image:
        times = max(WIDTH // image.width, 1)
        return image.convert("RGB").resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _ended_badly(found: Sequence[Measured]) -> str:
    rows = []
    for m in found:
        if m.word in ("failed", "pruned"):
            advice = POLICIES[m.cause].advice if m.cause in POLICIES else ""
            told = [line for line in m.message.strip().splitlines() if not advice or advice not in line][-1:] or [""]
            words = said(m.params)
            rows.append([f"{m.number:04d}", m.cause, f"`{words}`", told[0][:200].replace("|", "/"), advice])
    if not rows:
        return ""
    head = ["trial", "why", "configuration", "said", "advice"]
    shown = len(head) if any(row[-1] for row in rows) else len(head) - 1
    return "\n".join(["## Trials without a value\n", markdown(head[:shown], [row[:shown] for row in rows])])
