"""Compare: results of several runs and sample sets -> one table (markdown, csv) and plots.

Numbers stand in one table only if they were measured against the same images in the same features. A run that was
measured in more networks than another one stands beside it: the table has empty cells.
"""

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.metrics.plots import Line, Point, draw_lines
from pipeline.metrics.report import ENOUGH, usual, usual_first
from pipeline.runtime.errors import Incomplete, UserError, did_you_mean
from pipeline.runtime.files import content_hash, read_json, read_lines, write_text
from pipeline.runtime.inventory import not_there
from pipeline.runtime.numbers_text import BOLD, Measured, directions, joined, legend, marked, note, shown

PANELS = 8  # metrics in a plot, at most
CURVES = 10  # sets whose distances are drawn against the number of samples, at most
MOST_POINTS = 300  # of a training curve
CURVE_NAMES = ("loss", "lr", "grad_norm", "sign", "augmented")  # alone, or of a network that has a turn of its own
TRADES = (("fid", "is"), ("fd-domain", "is-domain"), ("precision", "recall"), ("precision-domain", "recall-domain"))
SETTINGS = ("step", "weights", "sampler", "steps", "guidance", "convention", "images")
CONVENTIONS = (
    "Guidance scales: of cfg, 1 is the conditional model itself; of ho (Ho and Salimans, w = scale - 1), 0 is.\n"
)


@dataclass(frozen=True)
class Row:
    """One sample set's numbers. `measured_by`: hashes of the images and the networks, by name. `reference`: a hash that
    rows of one table share."""

    run: str
    name: str
    settings: Mapping[str, Any]  # SETTINGS, and all else that decides the images, which is shown where it differs
    metrics: Mapping[str, float]
    details: Mapping[str, Any]
    measured_by: Mapping[str, str]
    reference: str = ""


def compare(runs: Sequence[Path], out: Path, *, metrics: Sequence[str] = ()) -> list[Path]:
    """Write `comparison.md`, `comparison.csv` and plots into `out`; returns the files.

    Raises:
        Incomplete: a run has no results.
        UserError: a metric that no result has.
    """
    rows = grouped([row for run in runs for row in read_rows(run)])
    names = chosen(rows, metrics)
    files = [out / "comparison.md", out / "comparison.csv"]
    write_text(files[0], markdown(rows, names))
    write_text(files[1], table_csv(rows, names))
    for axis, title, panels in [*plots(rows, names), *training_curves(runs)]:
        path = out / f"{axis}.png"
        draw_lines(path, axis, panels, title=title)
        files.append(path)
    return files


def read_rows(run: Path) -> list[Row]:
    """The results of one run, by step and name.

    Raises:
        Incomplete: there are none.
        UserError: there is no such run.
    """
    if not run.exists():
        raise not_there(run)
    files = sorted((run / "results").glob("*.json"))
    if not files:
        raise Incomplete(f"{run}/results has no results. Run: mudi evaluate {run}")
    return [_row(run, read_json(file)) for file in files]


def _row(run: Path, result: Mapping[str, Any]) -> Row:
    made_from = result["samples"]["made_from"]
    sample = flat(made_from.get("sample", {}))
    settings = {
        "step": result["step"],
        "weights": sample.pop("weights", ""),
        "sampler": sample.pop("sampler.kind", ""),
        "steps": sample.pop("sampler.steps", ""),
        "guidance": sample.pop("sampler.guidance.scale", ""),
        "convention": sample.pop("sampler.guidance.convention", ""),
        "images": result["samples"]["count"],
    }
    for decides_no_image in ("images_per_shard", "step"):  # which step it was is known
        sample.pop(decides_no_image, None)
    others = {**sample, "seed": made_from.get("seed", "")}
    details = result["details"]
    first = next((d["reference"] for n, d in sorted(details.items()) if "@" not in n and "reference" in d), "")
    measured_by = {"first split": first}  # which names the metrics
    measured_by |= {f"images of {split}": content_hash(facts) for split, facts in result["data"].items()}
    measured_by |= {network: content_hash(protocol) for network, protocol in result["extractors"].items()}
    name = result["samples"]["set"].split("/")[-1]
    return Row(run.resolve().name, name, {**settings, **others}, result["metrics"], details, measured_by)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys; lists and None as text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str | int | float) else str(value)
    return found


def grouped(rows: Sequence[Row]) -> list[Row]:
    """The rows with their `reference`: rows share it unless something that measured both of them is not the same."""
    groups: list[dict[str, str]] = []
    places = []
    for row in rows:
        fitting = (n for n, group in enumerate(groups) if _agree(group, row.measured_by))
        place = next(fitting, len(groups))
        if place == len(groups):
            groups.append({})
        groups[place] |= row.measured_by
        places.append(place)
    hashes = [content_hash(group)[:8] for group in groups]
    return [replace(row, reference=hashes[place]) for row, place in zip(rows, places, strict=True)]


def _agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    shared = one.keys() & other.keys()
    return any(name.startswith("images of ") for name in shared) and all(one[name] == other[name] for name in shared)


def _differing(rows: Sequence[Row]) -> list[str]:
    """Settings beside SETTINGS in which rows differ."""
    known = dict.fromkeys(name for row in rows for name in row.settings if name not in SETTINGS)
    return [name for name in known if len({str(row.settings.get(name, "")) for row in rows}) > 1]


def chosen(rows: Sequence[Row], asked: Sequence[str]) -> list[str]:
    """The metrics to show: those asked for, or all, the usual ones first."""
    known = sorted({name for row in rows for name in row.metrics})
    for name in asked:
        if name not in known:
            raise UserError(f"--metric: found '{name}', expected one of {', '.join(known)}.{did_you_mean(name, known)}")
    if asked:
        return list(dict.fromkeys(asked))
    return usual_first(known)


def markdown(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Tables for each reference, the best of a column in bold, and what a reader should know."""
    parts = [f"# Comparison\n\n{BOLD} The legend stands below.\n"]
    references = list(dict.fromkeys(row.reference for row in rows))
    for reference in references:
        group = [row for row in rows if row.reference == reference]
        if len(references) > 1:
            parts.append(f"## Measured against reference {reference}\n")
        known = [n for n in names if any(n in row.metrics for row in group)]
        first = usual()
        shown_first = [n for n in known if n in first] or known
        same = {s: row for s in SETTINGS if len({str(r.settings[s]) for r in group}) == 1 for row in group[:1]}
        said = ", ".join(f"{s} {_shown(row.settings[s])}" for s, row in same.items() if row.settings[s] != "")
        if said and len(group) > 1:
            parts.append(f"All: {said}.\n")
        columns = [*(s for s in SETTINGS if s not in same or len(group) == 1), *_differing(group)]
        parts.append(_table(group, shown_first, columns))
        if other := [n for n in known if n not in shown_first]:
            parts.append("Other metrics\n\n" + _table(group, other, columns))
    return "\n".join([*parts, *_remarks(rows, references, names)])


def _remarks(rows: Sequence[Row], references: Sequence[str], names: Sequence[str]) -> list[str]:
    details = joined(row.details for row in rows)
    parts = ["".join(f"- {said}\n" for said in (*directions(names), *legend(names, details)))]
    if len(references) > 1:
        parts.append(
            f"The {len(references)} references are other images or other features: their numbers do not compare.\n"
        )
    if any(row.settings["convention"] for row in rows):
        parts.append(CONVENTIONS)
    noted = {n: said for row in rows for n, value in row.metrics.items() if n in names and (said := note(n, value))}
    parts += [f"{name}: {said}.\n" for name, said in noted.items()]
    counts = sorted({int(row.settings["images"]) for row in rows})
    if len(counts) > 1:
        parts.append(
            f"Sets of {', '.join(map(str, counts))} images: Frechet distances compare only at equal numbers.\n"
        )
    if counts[0] < ENOUGH:
        parts.append(
            f"Frechet distances from fewer than {ENOUGH} images are too large, more so for fewer, and do not compare "
            "with published ones. KID has no such bias.\n"
        )
    return parts


def _table(rows: Sequence[Row], names: Sequence[str], columns: Sequence[str]) -> str:
    head = ["run", *columns, *names]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    bold = {name: marked(name, [_measured(row, name) for row in rows]) for name in names}
    for number, row in enumerate(rows):
        cells = [row.run, *(_shown(row.settings.get(s, "")) for s in columns)]
        for name in names:
            text = shown(*pair) if (pair := _measured(row, name)) else ""
            cells.append(f"**{text}**" if bold[name][number] else text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _measured(row: Row, name: str) -> Measured | None:
    details = {"images": [row.settings["images"]], **row.details.get(name, {})}
    return (row.metrics[name], details) if name in row.metrics else None


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "-" if text == "None" else text


def table_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """All numbers in full, one line for each sample set."""
    text, settings = io.StringIO(), [*SETTINGS, *_differing(rows)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "set", "reference", *settings, *names])
    for row in rows:
        values = [row.metrics.get(name, "") for name in names]
        writer.writerow([row.run, row.name, row.reference, *(row.settings.get(s, "") for s in settings), *values])
    return text.getvalue()


def plots(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, str, dict[str, list[Line]]]]:
    """(axis, title, metric -> lines) for each setting that varies while the others stay: a line joins what differs in
    it. What all lines of a plot have in common is its title."""
    found = []
    drawn = sorted(names, key=lambda name: "@" in name or name.endswith("-infinity"))[:PANELS]  # sorting is stable
    for axis in ("step", "guidance", "weights", "steps", "images"):
        groups = _groups(rows, axis)
        title, labels = _labels(list(groups))
        panels: dict[str, list[Line]] = {}
        for name in drawn:
            lines = [line for key, group in groups.items() for line in _lines(group, name, axis, label=labels[key])]
            if lines:
                panels[name] = lines
        if panels:
            found.append((axis, title, panels))
    if traded := _trade_off(rows, names):
        found.append(("trade-off", *traded))
    growth = _growth(rows)
    return [*found, ("number-of-samples", *growth)] if growth else found


def _groups(rows: Sequence[Row], axis: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows that differ in `axis` alone, where there are two places on it: by what they have in common."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    names = [s for s in (*SETTINGS, *_differing(rows)) if s != axis]
    for row in rows:
        others = (f"{s} {_shown(row.settings[s])}" for s in names if row.settings.get(s, "") != "")
        groups.setdefault((f"reference {row.reference}", row.run, *others), []).append(row)
    return {k: g for k, g in groups.items() if len({_place(row.settings[axis]) for row in g} - {None}) > 1}


def _labels(keys: Sequence[tuple[str, ...]]) -> tuple[str, dict[tuple[str, ...], str]]:
    """What all keys share, and of each what the others do not share. The reference shows only where it differs."""
    shared = set(keys[0]).intersection(*keys) if keys else set()
    title = ", ".join(word for word in keys[0] if word in shared and not word.startswith("reference ")) if keys else ""
    return title, {key: ", ".join(word for word in key if word not in shared) or key[1] for key in keys}


def _lines(group: Sequence[Row], name: str, axis: str, *, label: str) -> Iterator[Line]:
    """A line through the places on the axis; what has none is a level of its own."""
    points = {}
    for row in group:
        if name not in row.metrics:
            continue
        details, place = row.details.get(name, {}), _place(row.settings[axis])
        point = Point(0.0 if place is None else place, row.metrics[name], details.get("low"), details.get("high"))
        if place is None:
            yield Line(label, (point,), level=str(row.settings[axis]))
        else:
            points[place] = point
    if len(points) > 1:
        yield Line(label, tuple(points[x] for x in sorted(points)))


def _trade_off(rows: Sequence[Row], names: Sequence[str]) -> tuple[str, dict[str, list[Line]]] | None:
    """What guidance buys with what: distance against the inception score, precision against recall. A line joins the
    scales of one checkpoint, which stand beside its points."""
    groups = _groups(rows, "guidance")
    title, labels = _labels(list(groups))
    panels: dict[str, list[Line]] = {}
    for up, right in TRADES:
        for key, group in groups.items():
            those = [row for row in group if {up, right} <= row.metrics.keys() & set(names)]
            those.sort(key=lambda row: _place(row.settings["guidance"]) or 0.0)
            points = [
                Point(r.metrics[right], r.metrics[up], text=_shown(r.settings["guidance"])) for r in those
            ]  # the scale says which way it goes
            if len(points) > 1:
                panels.setdefault(f"{up} (up), {right} (right)", []).append(Line(labels[key], tuple(points)))
    return (f"guidance scales; {title}" if title else "guidance scales", panels) if panels else None


def training_curves(runs: Sequence[Path]) -> Iterator[tuple[str, str, dict[str, list[Line]]]]:
    """Loss, validation, rate and in-loop metrics of the runs, against the step; none where nothing was trained."""
    panels: dict[str, list[Line]] = {}
    for run in runs:
        found: dict[str, list[Point]] = {}
        for row in read_lines(run / "metrics.jsonl"):
            for name, value in row.items():
                if name.rpartition("/")[2] in CURVE_NAMES or name.startswith(("valid/", "in_loop/")):
                    found.setdefault(name, []).append(Point(float(row["step"]), float(value)))
        for name, points in found.items():
            every = -(-len(points) // MOST_POINTS)
            panels.setdefault(name, []).append(Line(run.resolve().name, (*points[:-1:every], points[-1])))
    first = [name for name in ("loss", "valid/loss", "discriminator/loss", "generator/loss") if name in panels]
    shown = [*first, *(name for name in sorted(panels) if name not in first)][:PANELS]
    if shown:
        yield "training", "", {name: panels[name] for name in shown}


def _place(value: Any) -> float | None:
    """Where a setting stands on an axis. An EMA's relative width is in its name; other weights have no place."""
    try:
        return float(value.rpartition(":")[2]) if isinstance(value, str) else float(value)
    except ValueError:
        return None


def _growth(rows: Sequence[Row]) -> tuple[str, dict[str, list[Line]]] | None:
    """Frechet distances against the number of samples, from the points behind each `-infinity`; the best sets'."""
    panels: dict[str, list[Line]] = {}
    most = 0
    for name in dict.fromkeys(n for row in rows for n in row.details if n.endswith("-infinity")):
        those = sorted((row for row in rows if name in row.details), key=lambda row: row.metrics[name])
        most = max(most, len(those))
        for row in those[:CURVES]:
            points = tuple(Point(float(n), float(v)) for n, v in row.details[name]["points"])
            label = f"{row.run}, step {row.settings['step']}, {row.name} (at infinity {row.metrics[name]:.4g})"
            panels.setdefault(name.removesuffix("-infinity"), []).append(Line(label, points))
    title = f"the best {CURVES} of {most} sets" if most > CURVES else ""
    return (title, panels) if panels else None


def _runs_in(path: Path) -> list[Path]:
    """The run itself; of a folder of runs, all that have results. What is neither is left to be said later."""
    if (path / "config.yaml").is_file() or (path / "results").is_dir():
        return [path]
    return sorted(found.parent for found in path.glob("*/results") if any(found.glob("*.json"))) or [path]


def main(paths: list[str], *, out: Path | None = None, metric: Sequence[str] = ()) -> None:
    """`mudi compare`."""
    runs = [run for path in paths for run in _runs_in(Path(path))]
    files = compare(runs, out or runs[0].resolve().parent / "comparison", metrics=metric)
    print(files[0].read_text())
    print("\n".join(["written:", *map(str, files)]), file=sys.stderr)
