"""What people read: every number once, in its place, and every caution once."""

import pytest

from pipeline.config.registry import METRICS as REGISTERED
from pipeline.config.registry import metric
from pipeline.metrics.report import blocks, caution, meanings, usual_first
from pipeline.runtime.numbers_text import directions, joined, legend, shown

METRICS = {
    "fd-domain": 1.5,
    "fd-domain@valid": 2.5,
    "fd-domain-infinity": -0.1,
    "kid-domain": -0.001,
    "kid-domain@valid": -0.002,
    "accuracy-attributes": 0.75,
    "niqe": 4.0,
}
FACTS = {"reference": "train", "images": [500, 700], "dimensions": 64}
DETAILS = {
    "fd-domain": {**FACTS, "low": 1.0, "high": 2.0},
    "fd-domain@valid": {**FACTS, "reference": "valid", "images": [500, 60]},
    "fd-domain-infinity": {"points": [], "reference": "train"},
    "kid-domain": {**FACTS, "std": 0.003},
    "kid-domain@valid": {**FACTS, "std": 0.004},
    "accuracy-attributes": {
        "low": 0.7,
        "high": 0.8,
        "count": 500,
        "by_attribute": {"Smiling": {"value": 0.75, "low": 0.7, "high": 0.8, "count": 500, "classifier": 0.9}},
    },
    "niqe": {"std": 1.0, "count": 500, "held_out": 3.5},
}
RESULT = {"metrics": METRICS, "details": DETAILS, "data": {"train": {"count": 700}, "valid": {"count": 60}}}


def test_splits_stand_side_by_side_and_what_is_of_the_samples_alone_below() -> None:
    compared, alone, attributes = blocks(RESULT)
    assert compared.columns == ("metric", "against train, 700 images", "against valid, 60 images")
    assert compared.rows[0] == ("fd-domain", "1.5 (1 to 2)", "2.5")
    assert compared.rows[1] == ("kid-domain", "-0.001 ± 0.003, counts as 0", "-0.002 ± 0.004, counts as 0")
    assert compared.rows[2] == ("fd-domain-infinity", "-0.1, counts as 0", "")
    assert alone.rows[0][:2] == ("accuracy-attributes", "0.75 (0.7 to 0.8)")
    assert alone.rows[1] == ("niqe", "4 ± 1", "500 images, held-out images: 3.5")
    assert attributes.rows == (("Smiling", "0.75 (0.7 to 0.8)", "500", "0.9"),)


def test_every_caution_comes_once_and_names_its_metrics() -> None:
    few, singular, extrapolated, negative = caution(500, METRICS, DETAILS)
    assert few.startswith("fd-domain, fd-domain@valid, fd-domain-infinity: measured on 500 images")
    assert singular.startswith("fd-domain@valid (64): on one side fewer images than the dimensions in brackets.")
    assert extrapolated.startswith("fd-domain-infinity: below 0")
    assert negative.startswith("kid-domain, kid-domain@valid: below 0")
    (noise,) = caution(10_000, {"precision-domain": 0.9, "precision": 0.9}, {})
    assert noise.startswith("precision-domain: the domain classifier never saw noise: pure noise may get 0.7")
    assert caution(10_000, {"fid": 3.0}, {"fid": {"images": [10_000, 50_000], "dimensions": 2048}}) == []


def test_the_legend_explains_what_a_table_has_and_nothing_else() -> None:
    metrics = {"fid": 3.0, "fid-768@valid": 2.0, "kid-domain": 0.1, "accuracy-domain": 0.9, "fd-domain-infinity": 1.0}
    lower, higher = directions(metrics)
    assert lower == "Lower is better: fid, fid-768, kid-domain, fd-domain-infinity."
    assert higher == "Higher is better: accuracy-domain."
    lines = legend(metrics, {"fid": {"low": 1.0, "high": 4.0}, "kid-domain": {"std": 0.1}})
    for word in ("In brackets: the 95% interval", "±: ", "@valid: ", "-domain: ", "-infinity: ", "-768: "):
        assert any(line.startswith(word) for line in lines), (word, lines)
    assert directions(["psnr"]) == ["Higher is better: psnr."] and legend(["psnr"], {}) == []


def test_the_usual_ones_come_first_then_distances() -> None:
    found = usual_first(["coverage", "recall", "fid-768", "fid", "accuracy-domain"])
    assert found == ["fid", "accuracy-domain", "recall", "fid-768", "coverage"]


def test_each_kind_of_number_is_explained_once_and_says_which_way_is_better() -> None:
    found = meanings(METRICS)
    assert [row[0] for row in found.rows][:2] == ["fd-domain, fd-domain-infinity", "kid-domain"]
    assert {row[0]: row[1] for row in found.rows}["niqe"] == "lower"
    assert all(said for *_, said in found.rows)
    assert all(kind.meaning for kind in REGISTERED)


def of_a_plugin() -> None:
    """Share of samples with a blue sky.

    More is not said in a table.
    """


def undocumented() -> None:
    pass


def test_a_metric_of_a_plugin_is_explained_by_its_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTERED, "_kinds", dict(REGISTERED.known))
    for name, function in (("sky", "of_a_plugin"), ("sea", "undocumented"), ("sun", "absent")):
        metric(name, f"{__name__}:{function}", direction="maximize")
    said = {row[0]: row[2] for row in meanings(["sky-domain", "sea-domain", "sun-domain"]).rows}
    assert said == {"sky-domain": "Share of samples with a blue sky", "sea-domain": "", "sun-domain": ""}


def test_what_real_images_have_is_said_where_all_results_agree_in_it() -> None:
    one, other = {"fd-domain": {"held_out": 0.5, "held_out_count": 90}}, {"fd-domain": {"held_out": 0.7}}
    assert legend(one, joined([one, one]))[-1:] == ["Real images, held out: fd-domain 0.5 (of 90)."]
    assert not any("Real images" in line for line in legend(one, joined([one, other])))


def real_images(*sets: int, held_out: int = 90, dimensions: int = 64) -> str:
    """The line about real images beside sample sets of so many images."""
    facts = {"held_out": 1.33, "held_out_count": held_out, "dimensions": dimensions}
    return legend(["fd-domain"], joined({"fd-domain": {**facts, "images": [n, 600]}} for n in sets))[-1]


def test_a_distance_of_real_images_says_how_it_compares_with_that_of_another_number_of_samples() -> None:
    start = "Real images, held out: fd-domain 1.33 (of 90"
    assert real_images(90) == f"{start})."
    assert real_images(100) == f"{start}, too large: as many as the samples would have less)."
    assert real_images(100, 150) == real_images(100)
    assert real_images(50) == f"{start}, too small: as many as the samples would have more)."
    assert real_images(50, 100) == f"{start}, which does not compare with distances of other numbers)."
    assert "(of 42, far too large in 64 dimensions: as many" in real_images(100, held_out=42)
    assert real_images(42, held_out=42).endswith("(of 42, far too large in 64 dimensions).")


def test_a_deviation_says_that_it_leaves_out_the_references_own_scatter() -> None:
    (line,) = (line for line in legend(["kid"], {"kid": {"std": 0.1}}) if line.startswith("±"))
    assert "leaves out the scatter of the reference itself" in line and line.count(".") == 1


def test_a_kid_of_one_subset_says_why_it_has_no_deviation() -> None:
    for facts in ({"subsets": 100, "size": 40}, {"subsets": 1, "size": 40, "std": 0.0}):
        assert shown(7.099e-07, facts) == "7.099e-07, one subset"
        (line,) = (line for line in legend(["kid-768"], {"kid-768": facts}) if line.startswith("One subset: "))
        assert "evaluate.kid_subset_size" in line
    assert shown(0.1, {"subsets": 100, "size": 40, "std": 0.02}) == "0.1 ± 0.02"
