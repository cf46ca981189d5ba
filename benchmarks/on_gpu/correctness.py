"""The checks of tests/gpu/checks.py, a line each."""

from typing import Any

import checks
from on_gpu.report import Clock, Report, guarded, release


def run(report: Report, clock: Clock, context: checks.CheckContext) -> None:
    """Print every finding with its figure and limit."""
    for check in checks.CHECKS:
        name = check.__name__.replace("_", " ")
        if context.device != "cuda" and check in checks.NEEDS_CUDA:
            note(report, {"name": name, "ok": None, "note": "needs CUDA"})
            continue
        if clock.left() < 0:
            note(report, {"name": name, "ok": None, "note": "no time left"})
            continue
        with guarded(report, name):
            for found in check(context):
                row = {"name": found.name, "figure": found.figure, "limit": found.limit}
                note(report, {**row, "ok": found.ok, "note": found.note})
        release()


def note(report: Report, row: dict[str, Any]) -> None:
    """One line, and its row in the results."""
    report.add("checks", row)
    if row["ok"] is None:
        report.say(f"{row['name']:<60} -     {row['note']}")
        return
    verdict = "ok" if row["ok"] else "FAIL"
    report.say(f"{row['name']:<52} {row['figure']:>9.3g} <= {row['limit']:<8.3g} {verdict:<5} {row['note']}"[:120])
