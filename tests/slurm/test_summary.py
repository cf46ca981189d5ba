"""The table at the end of a run: every number with its uncertainty, and what would mislead explained in its row."""

from rich.console import Console

from pipeline.runtime.files import write_json
from slurm.status import show_result


def test_numbers_have_their_uncertainty_and_what_misleads_its_words(tmp_path):
    path = tmp_path / "result.json"
    metrics = {"fd-domain": 1.5, "fd-domain-infinity": -0.1, "kid-domain": -0.001, "kid": 0.2, "precision-domain": 0.73}
    details = {"fd-domain": {"low": 1.0, "high": 2.0}, "kid-domain": {"std": 0.003}}
    write_json(path, {"samples": {"count": 5}, "step": 3, "metrics": metrics, "details": details})
    console = Console(width=200, record=True)
    show_result(path, "samples", console)
    rows = {line.split()[1]: line for line in console.export_text().splitlines() if line.startswith("│")}
    assert "1.5 (1 to 2)" in rows["fd-domain"]
    assert "-0.001 ± 0.003" in rows["kid-domain"] and "read it as 0" in rows["kid-domain"]
    assert "read it as 0" in rows["fd-domain-infinity"] and "noise" in rows["precision-domain"]
    assert "read it" not in rows["kid"]
