"""Comparison of results: what may stand side by side, in which order, and what is drawn."""

import csv
from pathlib import Path

import pytest

from pipeline.compare import compare, main, read_rows
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import write_json


def result(run: Path, *, step: int, scale: float, value: float, data: str = "a", weights: str = "average") -> None:
    name = f"heun-w{scale}-{weights.replace(':', '')}"
    points = [[500, value + 1], [1000, value + 0.5]]
    write_json(
        run / "results" / f"{step:09d}-{name}.json",
        {
            "step": step,
            "samples": {
                "set": f"step-{step:09d}/{name}",
                "count": 1000,
                "made_from": {
                    "sample": {
                        "weights": weights,
                        "sampler": {"kind": "heun", "steps": 12, "guidance": {"scale": scale}},
                    }
                },
            },
            "data": {"train": {"sha256": data}},
            "extractors": {"domain": {"version": 1}},
            "metrics": {"fd-domain": value, "accuracy-domain": 1 / (1 + value), "fd-domain-infinity": value},
            "details": {"fd-domain": {"low": value - 1, "high": value + 1}, "fd-domain-infinity": {"points": points}},
        },
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for step, scale, value in ((1000, 1.0, 9.0), (2000, 1.0, 6.0), (2000, 2.0, 4.0), (2000, 4.0, 7.0)):
        result(tmp_path / "one", step=step, scale=scale, value=value)
    result(tmp_path / "two", step=2000, scale=1.0, value=5.0)
    result(tmp_path / "two", step=2000, scale=1.0, value=5.5, weights="power:0.1")
    return [tmp_path / "one", tmp_path / "two"]


def test_one_table_with_every_set_and_the_best_value_in_bold(runs: list[Path], tmp_path: Path) -> None:
    files = compare(runs, tmp_path / "out")
    text = files[0].read_text()
    assert text.count("| one |") == 4 and text.count("| two |") == 2
    assert "**4 (3 to 5)**" in text and "**5 (4 to 6)**" in text  # 4 is in the other's interval
    assert text.count("**") == 8  # two distances, one accuracy, one distance without an interval
    assert "do not compare with published ones" in text
    with files[1].open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["fd-domain"]) for row in table] == [9.0, 6.0, 4.0, 7.0, 5.0, 5.5]
    assert table[2]["guidance"] == "2.0" and table[5]["weights"] == "power:0.1"


def test_plots_for_what_varies_and_no_others(runs: list[Path], tmp_path: Path) -> None:
    names = {path.name for path in compare(runs, tmp_path / "out")}
    drawn = {"step.png", "guidance.png", "weights.png", "number-of-samples.png"}
    assert names == {"comparison.md", "comparison.csv", *drawn}
    for name in drawn:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_other_reference_images_stand_in_another_table(runs: list[Path], tmp_path: Path) -> None:
    result(tmp_path / "three", step=1, scale=1.0, value=1.0, data="b")
    text = compare([*runs, tmp_path / "three"], tmp_path / "out")[0].read_text()
    assert text.count("## Measured against standard") == 2 and "their numbers do not compare" in text
    assert "**4 (3 to 5)**" in text  # still the best of its own table


def test_a_metric_can_be_chosen_and_misspelt(runs: list[Path], tmp_path: Path) -> None:
    text = compare(runs, tmp_path / "out", metrics=["accuracy-domain"])[0].read_text()
    assert "accuracy-domain" in text and "fd-domain |" not in text
    with pytest.raises(UserError, match="Did you mean 'fd-domain'"):
        compare(runs, tmp_path / "out", metrics=["fd-domian"])


def test_a_run_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="has no results"):
        read_rows(tmp_path)


def test_the_command_line_writes_beside_the_first_run(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(r) for r in runs]) == 0
    assert "| run | step |" in capsys.readouterr().out
    assert (runs[0].parent / "comparison" / "comparison.md").is_file()
