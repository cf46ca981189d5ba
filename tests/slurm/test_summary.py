"""The table at the end of a run: every number with its uncertainty, and what would mislead explained once below it."""

from launching import profile, stand_in
from rich.console import Console

from pipeline.config.paths import sample_set_name
from pipeline.runtime.files import write_json
from pipeline.runtime.run_dir import COMMIT
from slurm.status import explain_numbers, show_result, summary


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
    explain_numbers([show_result(path, "samples", console)], console)
    said = console.export_text().splitlines()
    rows = {line.split()[1]: line for line in said if line.startswith("│")}
    assert "1.5 (1 to 2)" in rows["fd-domain"] and "-0.001 ± 0.003" in rows["kid-domain"]
    assert "3.1" in rows["is-domain"] and "±" not in rows["is-domain"]  # a single split has no spread
    notes = {line.partition(":")[0]: line for line in said if line.startswith("- ")}
    assert set(notes) == {"- fd-domain-infinity", "- kid-domain", "- density-domain, precision-domain"}
    assert "read it as 0" in notes["- kid-domain"] and "noise" in notes["- density-domain, precision-domain"]


def test_the_last_table_is_explained_on_a_narrow_terminal(tmp_path):
    """Which way is better, what stands behind a number and in a name, and that there are few images; each once."""
    launch = stand_in(tmp_path, profile("local"))
    sampled = launch.run.samples(3) / sample_set_name(launch.cfg)
    write_json(launch.run.checkpoint(3) / COMMIT, {"step": 3})
    metrics = {"fd-domain": 1.5, "fd-domain@valid": 1.75, "density-domain@valid": 0.73, "accuracy-domain": 0.5}
    found = {"samples": {"count": 5}, "step": 3, "metrics": metrics}
    found["details"] = {"fd-domain": {"low": 1.0, "high": 2.0}}
    found["notes"] = ["fd-domain: measured on 5 images. A Frechet distance from fewer than 10000 images is too large."]
    write_json(launch.run.results / f"000000003-{sampled.name}.json", found)
    console = Console(width=60, record=True)
    summary(launch, console)
    lines = console.export_text().splitlines()
    assert all(len(line) <= 60 for line in lines if str(tmp_path) not in line)
    said = " ".join(" ".join(lines).split())
    assert [name for name in metrics if not any(f" {name} " in line for line in lines)] == []  # none is cut
    for told in (
        "Lower is better: fd-domain. Higher is better: accuracy-domain, density-domain.",
        "In brackets: the 95% interval",
        "@valid: ",
        "-domain: in the features of a ",
        "measured on 5 images",
    ):
        assert said.count(told) == 1, (told, said)
