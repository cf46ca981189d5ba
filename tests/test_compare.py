"""Comparison of results: what may stand side by side, in which order, and what is drawn."""

import csv
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.compare import CURVES, compare, plots, read_rows, training_curves
from pipeline.runtime.errors import Incomplete, UserError
from pipeline.runtime.files import append_line, read_json, write_json


def result(run: Path, *, step: int, scale: float, value: float, data: str = "a", weights: str = "ema") -> Path:
    name = f"heun-w{scale}-{weights.replace(':', '')}"
    points = [[500, value + 1], [1000, value + 0.5]]
    path = run / "results" / f"{step:09d}-{name}.json"
    write_json(
        path,
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
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for step, scale, value in ((1000, 1.0, 9.0), (2000, 1.0, 6.0), (2000, 2.0, 4.0), (2000, 4.0, 7.0)):
        result(tmp_path / "one", step=step, scale=scale, value=value)
    result(tmp_path / "two", step=2000, scale=1.0, value=5.0)
    for width, value in ((0.1, 5.5), (0.2, 5.2)):
        result(tmp_path / "two", step=2000, scale=1.0, value=value, weights=f"power:{width}")
    return [tmp_path / "one", tmp_path / "two"]


def test_the_direction_of_a_plugins_metric_comes_with_its_number(runs: list[Path], tmp_path: Path) -> None:
    """The plug-in need not be here. A number without a direction has no best."""
    for number, path in enumerate(sorted((runs[0] / "results").glob("*.json"))):
        found = read_json(path)
        found["metrics"] |= {"of-a-plugin": number, "unknown": number}
        found["details"]["of-a-plugin"] = {"direction": "maximize", "low": number, "high": number}
        write_json(path, found)
    files = compare(runs[:1], tmp_path / "out", metrics=["of-a-plugin", "unknown"])
    rows = [line.split(" | ")[-2:] for line in files[0].read_text().splitlines() if line.startswith("| one |")]
    assert [row[0] for row in rows].count("**3 (3 to 3)**") == 1 and sum("**" in row[0] for row in rows) == 1
    assert not any("**" in row[1] for row in rows)


def measured(run: Path, name: str, value: float, images: int = 1000, **details: object) -> None:
    """A run of one set, with one number."""
    path = result(run, step=1, scale=1.0, value=1.0)
    found = read_json(path)
    found["samples"]["count"] = images
    write_json(path, found | {"metrics": {name: value}, "details": {name: details}})


def bold(root: Path, name: str) -> list[str]:
    """The runs below a folder whose number of a name is bold."""
    text = compare(sorted(root.iterdir()), root.parent / "out", metrics=[name])[0].read_text()
    return [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ") and "**" in line]


def test_distances_of_unequal_numbers_of_images_have_no_best(tmp_path: Path) -> None:
    """Their intervals overlap, and leave out that those of fewer images are too large."""
    for run, value, images in (("a", 4.3, 150), ("b", 3.6, 100), ("c", 3.5, 150)):
        measured(tmp_path / "runs" / run, "fd-domain", value, images, low=value - 1, high=value + 1)
    assert bold(tmp_path / "runs", "fd-domain") == []
    measured(tmp_path / "runs" / "b", "fd-domain", 3.6, 150, low=2.6, high=4.6)
    assert bold(tmp_path / "runs", "fd-domain") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "a", "b", "expected"),
    [
        ("kid-domain", (0.08808, {"std": 0.038}), (0.0958, {"std": 0.032}), ["a", "b"]),
        ("kid-domain", (0.01, {"std": 0.005}), (0.0958, {"std": 0.032}), ["a"]),
        ("kid-domain", (-0.3, {"std": 0.01}), (-0.1, {"std": 0.01}), ["a", "b"]),  # both count as 0
        ("kid-domain", (0.088, {}), (0.0958, {"std": 0.032}), []),  # of a subset that is the whole of both sets
        ("is-domain", (3.0, {"std": 0.1, "splits": 10}), (2.0, {"std": 0.1, "splits": 1}), []),
        ("niqe", (5.0, {"std": 1.0, "count": 100}), (5.3, {"std": 1.0, "count": 100}), ["a"]),  # of means of images
        ("accuracy-domain", (0.031, {"low": 0.009, "high": 0.11}), (0.016, {"low": 0.003, "high": 0.08}), ["a", "b"]),
        ("recall-domain", (0.5, {}), (0.25, {}), []),
        ("precision-domain", (0.9, {"low": 0.89, "high": 0.91}), (0.2, {"low": 0.1, "high": 0.3}), []),
        ("precision", (0.9, {"low": 0.89, "high": 0.91}), (0.2, {"low": 0.1, "high": 0.3}), ["a"]),
    ],
)
def test_bold_is_what_the_spread_does_not_tell_from_the_best(
    tmp_path: Path,
    name: str,
    a: tuple[float, dict[str, object]],
    b: tuple[float, dict[str, object]],
    expected: list[str],
) -> None:
    for run, (value, details) in (("a", a), ("b", b)):
        measured(tmp_path / "runs" / run, name, value, **details)  # type: ignore[arg-type]
    assert bold(tmp_path / "runs", name) == expected


def test_one_table_with_every_set_and_the_best_value_in_bold(runs: list[Path], tmp_path: Path) -> None:
    files = compare(runs, tmp_path / "out")
    text = files[0].read_text()
    assert text.count("| one |") == 8 and text.count("| two |") == 6  # in two tables
    assert "**4 (3 to 5)**" in text and "**5 (4 to 6)**" in text  # 4 is in the other's interval
    assert text.count("**") == 4  # what has no interval has no best: accuracies here, and distances at infinity
    assert "do not compare with published ones" in text
    assert "All: sampler heun, steps 12, images 1000." in text  # and so no columns
    with files[1].open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["fd-domain"]) for row in table] == [9.0, 6.0, 4.0, 7.0, 5.0, 5.5, 5.2]
    assert table[2]["guidance"] == "2.0" and table[5]["weights"] == "power:0.1"


def test_the_step_is_that_of_the_samples_also_where_sampling_was_told_none(runs: list[Path], tmp_path: Path) -> None:
    """`sample.step` is null where the newest checkpoint is taken: it is no setting of the table."""
    for path in sorted((runs[0] / "results").glob("*.json")):
        found = read_json(path)
        found["samples"]["made_from"]["sample"] |= {"step": None, "first_seed": None if "w1" in path.name else 4}
        write_json(path, found)
    rows = read_rows(runs[0])
    assert [row.settings["step"] for row in rows] == [1000, 2000, 2000, 2000]
    text = compare(runs[:1], tmp_path / "out")[0].read_text()
    assert "None" not in text and " - |" in text and "| 1000 |" in text, text


def test_the_tables_have_the_legend_of_evaluation(runs: list[Path], tmp_path: Path) -> None:
    text = compare(runs, tmp_path / "out")[0].read_text()
    for told in (
        "Lower is better: fd-domain, fd-domain-infinity.",
        "Higher is better: accuracy-domain.",
        "-domain: in the features of a ",
    ):
        assert text.count(told) == 1, (told, text)


def test_plots_for_what_varies_and_no_others(runs: list[Path], tmp_path: Path) -> None:
    names = {path.name for path in compare(runs, tmp_path / "out")}
    drawn = {"step.png", "guidance.png", "weights.png", "number-of-samples.png"}
    assert names == {"comparison.md", "comparison.csv", *drawn}
    for name in drawn:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_lines_are_named_by_what_tells_them_apart_and_weights_without_a_width_are_levels(runs: list[Path]) -> None:
    drawn = {
        axis: (title, panels)
        for axis, title, panels in plots([r for run in runs for r in read_rows(run)], ["fd-domain"])
    }
    title, panels = drawn["weights"]
    assert title == "two, step 2000, sampler heun, steps 12, guidance 1, images 1000"
    level, line = panels["fd-domain"]
    assert (level.name, [p.y for p in level.points]) == ("two: ema", [5.0])
    assert [(p.x, p.y, p.low, p.high) for p in line.points] == [(0.1, 5.5, 4.5, 6.5), (0.2, 5.2, 4.2, 6.2)]
    assert [p.x for p in drawn["guidance"][1]["fd-domain"][0].points] == [1.0, 2.0, 4.0]


def test_of_many_sets_the_best_are_drawn_against_the_number_of_samples(tmp_path: Path) -> None:
    for step in range(1, 15):
        result(tmp_path / "many", step=step, scale=1.0, value=20.0 - step)
    ((_, title, panels),) = [
        found for found in plots(read_rows(tmp_path / "many"), []) if found[0] == "number-of-samples"
    ]
    assert title == "the best 10 of 14 sets" and len(panels["fd-domain"]) == CURVES
    assert panels["fd-domain"][0].label.endswith("(at infinity 6)")


def test_other_reference_images_stand_in_another_table(runs: list[Path], tmp_path: Path) -> None:
    result(tmp_path / "three", step=1, scale=1.0, value=1.0, data="b")
    text = compare([*runs, tmp_path / "three"], tmp_path / "out")[0].read_text()
    assert text.count("## Measured against reference") == 2 and "their numbers do not" in text
    assert "**4 (3 to 5)**" in text  # still the best of its own table


def test_a_run_with_one_metric_more_stands_in_the_same_table(runs: list[Path], tmp_path: Path) -> None:
    path = result(tmp_path / "three", step=1, scale=1.0, value=3.0)
    found = read_json(path)
    found["extractors"]["inception"] = {"version": 1}
    found["metrics"]["fid"] = 8.0
    write_json(path, found)
    text = compare([*runs, tmp_path / "three"], tmp_path / "out")[0].read_text()
    assert "## Measured against" not in text and "numbers do not" not in text
    assert "**3 (2 to 4)**" in text and "| 8 |" in text
    found["extractors"]["domain"]["version"] = 2  # now its common network is another one
    write_json(path, found)
    text = compare([*runs, tmp_path / "three"], tmp_path / "out")[0].read_text()
    assert text.count("## Measured against reference") == 2


SETS = (([0], 0.0, 1), ([1], 0.0, 1), ([1], 0.5, 1), ([1], 0.5, 2))  # classes, eta, seed


def test_sets_that_differ_in_anything_can_be_told_apart(tmp_path: Path) -> None:
    for number, (classes, eta, seed) in enumerate(SETS):
        path = result(tmp_path / "one", step=1, scale=1.0, value=3.0, weights=f"power:0.{number + 1}")
        found = read_json(path)
        made_from = found["samples"]["made_from"]
        made_from["sample"] |= {"classes": classes, "weights": "ema", "first_seed": 0}
        made_from["sample"]["sampler"] |= {"eta": eta}
        made_from["seed"] = seed
        write_json(path, found)
    files = compare([tmp_path / "one"], tmp_path / "out")
    assert "| run | classes | sampler.eta | seed |" in files[0].read_text()
    with files[1].open() as file:
        table = list(csv.DictReader(file))
    assert len({(row["classes"], row["sampler.eta"], row["seed"]) for row in table}) == 4
    assert "first_seed" not in table[0]


def test_what_misleads_is_said_below_the_table(tmp_path: Path) -> None:
    path = result(tmp_path / "one", step=1, scale=1.0, value=3.0)
    found = read_json(path)
    found["metrics"] |= {"kid-domain": -0.002, "precision-domain": 0.9}
    write_json(path, found)
    text = compare([tmp_path / "one"], tmp_path / "out")[0].read_text()
    assert "kid-domain: below 0: no difference seen" in text and "precision-domain: the domain classifier" in text


def test_a_metric_can_be_chosen_and_misspelt(runs: list[Path], tmp_path: Path) -> None:
    text = compare(runs, tmp_path / "out", metrics=["accuracy-domain"])[0].read_text()
    assert "accuracy-domain" in text and "fd-domain |" not in text
    with pytest.raises(UserError, match="Did you mean 'fd-domain'"):
        compare(runs, tmp_path / "out", metrics=["fd-domian"])


def test_a_run_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="has no results"):
        read_rows(tmp_path)


def test_a_run_that_does_not_exist_is_said_not_to(runs: list[Path]) -> None:
    with pytest.raises(UserError, match=rf"twoo does not exist\. Did you mean '{runs[1]}'\?"):
        read_rows(runs[1].with_name("twoo"))


def test_the_command_line_writes_beside_the_first_run(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["compare", str(runs[0]), "--metric", "fd-domain", *map(str, runs[1:])]) == 0
    )  # options may stand anywhere
    assert main(["compare", *(str(r) for r in runs)]) == 0
    assert "| run | step |" in capsys.readouterr().out
    assert (runs[0].parent / "comparison" / "comparison.md").is_file()


def test_a_folder_of_runs_stands_for_those_with_results(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (runs[0].parent / "untrained" / "results").mkdir(parents=True)
    assert main(["compare", str(runs[0].parent)]) == 0
    table = capsys.readouterr().out
    assert main(["compare", *map(str, runs)]) == 0
    assert table == capsys.readouterr().out and "| one |" in table and "| two |" in table


def test_guidance_is_a_trade_whose_points_carry_their_scale(runs: list[Path], tmp_path: Path) -> None:
    for path in sorted((runs[0] / "results").glob("000002000-*.json")):
        found = read_json(path)
        found["metrics"] |= {"is-domain": 10 - found["metrics"]["fd-domain"]}
        write_json(path, found)
    drawn = {axis: panels for axis, _, panels in plots(read_rows(runs[0]), ["fd-domain", "is-domain"])}
    ((title, (line,)),) = drawn["trade-off"].items()
    assert title == "fd-domain (up), is-domain (right)"
    assert [(p.text, p.x, p.y) for p in line.points] == [("1", 4.0, 6.0), ("2", 6.0, 4.0), ("4", 3.0, 7.0)]
    assert tmp_path / "out" / "trade-off.png" in compare(runs, tmp_path / "out")


def test_training_is_drawn_from_what_it_logged(runs: list[Path], tmp_path: Path) -> None:
    for step in range(1, 1001):
        append_line(runs[0] / "metrics.jsonl", {"step": step, "loss": 1 / step, "speed/mfu": 1.0})
    append_line(runs[0] / "metrics.jsonl", {"step": 1000, "valid/loss": 0.5})
    ((axis, _, panels),) = training_curves(runs)
    assert axis == "training" and list(panels) == ["loss", "valid/loss"]
    (line,) = panels["loss"]
    assert len(line.points) <= 301 and (line.points[-1].x, line.points[-1].y) == (1000, 0.001)
    assert tmp_path / "out" / "training.png" in compare(runs, tmp_path / "out")


def test_of_a_game_both_losses_and_what_moves_its_augmentation_are_drawn(runs: list[Path]) -> None:
    logged = {
        "discriminator/sign": 0.6,
        "discriminator/augmented": 0.1,
        "generator/loss": 2.0,
        "discriminator/loss": 1.0,
    }
    for step in (1, 2):
        append_line(runs[0] / "metrics.jsonl", {"step": step, **logged, "discriminator/real": 1.0, "speed/mfu": 1.0})
    ((_, _, panels),) = training_curves(runs)
    assert list(panels) == ["discriminator/loss", "generator/loss", "discriminator/augmented", "discriminator/sign"]
