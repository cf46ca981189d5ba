"""The table at the end of a run: every number with its uncertainty, and what would mislead explained once below it."""

from rich.console import Console

from pipeline.runtime.files import write_json
from slurm.status import show_result


def test_numbers_have_their_uncertainty_and_what_misleads_its_words(tmp_path):
    path = tmp_path / "result.json"
    metrics = {
        "fd-domain": 1.5,
        "fd-domain-infinity": -0.1,
        "kid-domain": -0.001,
        "kid": 0.2,
        "precision-domain": 0.73,
        "density-domain": 0.9,
        "is-domain": 3.1,
    }
    details = {"fd-domain": {"low": 1.0, "high": 2.0}, "kid-domain": {"std": 0.003}}
    details["is-domain"] = {"std": 0.0, "splits": 1}
    write_json(path, {"samples": {"count": 5}, "step": 3, "metrics": metrics, "details": details})
    console = Console(width=200, record=True)
    show_result(path, "samples", console)
    said = console.export_text().splitlines()
    rows = {line.split()[1]: line for line in said if line.startswith("│")}
    assert "1.5 (1 to 2)" in rows["fd-domain"] and "-0.001 ± 0.003" in rows["kid-domain"]
    assert "3.1" in rows["is-domain"] and "±" not in rows["is-domain"]  # a single split has no spread
    notes = {line.partition(":")[0]: line for line in said if line.startswith("- ")}
    assert set(notes) == {"- fd-domain-infinity", "- kid-domain", "- density-domain, precision-domain"}
    assert "read it as 0" in notes["- kid-domain"] and "noise" in notes["- density-domain, precision-domain"]
