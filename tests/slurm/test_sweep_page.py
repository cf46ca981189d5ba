"""The report and the TensorBoard page of a sweep; the page as a real browser shows it."""

import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from sweeping import finished_sweep

from pipeline.runtime.files import append_line, read_lines, write_json
from slurm.sweep import pictures, report
from slurm.sweep.runs import Run
from slurm.sweep.settings import SweepDir

OVERRIDES = ("name=page", "train.optim.lr=1e-4,1e-3", "train.global_batch=32,64,128", "train.validate_every=1 steps")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepDir:
    os.environ["TOY_PACE"] = "0"
    made = finished_sweep(tmp_path_factory.mktemp("page"), *OVERRIDES, "sweep.seeds=2")
    run, settings = Run(made, 4, 1), made.settings()
    for row in [r for r in read_lines(run.launch().run.metrics) if r["step"] > 6]:  # trained again after a resume
        append_line(run.launch().run.metrics, row)
    pictures.write_run(run, settings)
    report.write(made)
    return made


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a real TensorBoard."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    with (folder.parent / "tensorboard.log").open("w") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 600
        while True:
            with contextlib.suppress(OSError):
                if len(ask(f"http://127.0.0.1:{port}/data/runs")) >= len([p for p in folder.iterdir() if p.is_dir()]):
                    break
            assert time.monotonic() < end, (folder.parent / "tensorboard.log").read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=600) as answer:
        return json.load(answer)


def test_the_page_has_every_trial_in_table_coordinates_and_scatter_in_a_real_browser(sweep, tmp_path):
    if CHROMIUM is None:
        pytest.skip("needs a browser: Debian's package chromium is not installed")
    pictures = Path(os.environ.get("MUDI_PICTURES", tmp_path))
    with tensorboard(sweep.tensorboard) as address:
        curve = ask(f"{address}/data/plugin/scalars/scalars?run=0004-s1&tag=train/loss")
        steps = [step for _, step, _ in curve]
        assert steps == list(range(1, 11))  # nothing overlaps
        assert ask(f"{address}/data/plugin/images/tags")["0004-s1"]["samples"]["samples"] == 1
        with Browser(tmp_path / "profile") as page:
            page.open(f"{address}/#hparams")
            text = page.wait_for(
                "Trial ID", "train.optim.lr", "train.global_batch", "final/fd-domain", "best/loss", "0005"
            )
            lines = text.splitlines()
            assert [f"{n:04d}" in lines for n in range(6)] == [True] * 6
            assert "1.0099" in text  # the best, the mean of its two seeds
            page.picture(pictures / "hparams-table.png")
            page.click("parallel coordinates view")
            page.wait_for("Linear")
            wait_until_drawn(page, "path", at_least=6)
            page.picture(pictures / "hparams-coordinates.png")
            page.click("scatter plot matrix view")
            wait_until_drawn(page, "circle, .data-marker, path", at_least=6)
            page.picture(pictures / "hparams-scatter.png")
            page.open(f"{address}/#images")
            page.wait_for("samples")
            page.picture(pictures / "images.png")


def wait_until_drawn(page: Browser, css: str, *, at_least: int) -> None:
    end = time.monotonic() + 600
    while page.count(css) < at_least:
        assert time.monotonic() < end, page.count(css)
        time.sleep(0.3)


def test_a_page_that_is_written_again_and_again_says_nothing_twice(sweep):
    files = sorted(path.parent for path in sweep.tensorboard.rglob("*tfevents*"))
    for trial in range(6):
        pictures.write_run(Run(sweep, trial, 0), sweep.settings())
    report.write(sweep)
    assert sorted(path.parent for path in sweep.tensorboard.rglob("*tfevents*")) == files
    assert len(files) == len(set(files)) == 13  # the page's own and one for each run
    assert not list(sweep.path.glob(".writing*"))


def test_the_report_has_the_best_its_certainty_the_tables_and_the_pictures(sweep):
    text = (sweep.path / "report.md").read_text()
    rows = list(csv.DictReader((sweep.path / "trials.csv").open()))
    assert len(rows) == 6 and {row["state"] for row in rows} == {"complete"}
    best = min(rows, key=lambda row: float(row["fd-domain"]))
    assert (best["train.optim.lr"], best["train.global_batch"]) == ("0.001", "64")
    values = [float(best["fd-domain seed 0"]), float(best["fd-domain seed 1"])]
    assert float(best["fd-domain"]) == pytest.approx(sum(values) / 2)
    # Two seeds: Student's t with one degree of freedom, 12.706, times half their distance.
    assert float(best["plus or minus"]) == pytest.approx(12.7062 * abs(values[1] - values[0]) / 2, rel=1e-4)
    assert text.index("0004") < text.index("0001")  # the best comes first
    assert "| lr | global_batch | fd-domain | accuracy-domain | loss |" in text
    assert "rank correlation over 6 trials is +1.00" in text
    for name in ("search", "settings", "coordinates", "loss", "best", "worst"):
        assert f"({name}.png)" in text
        Image.open(sweep.path / f"{name}.png").verify()
    shares = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| train."))
    assert float(shares["train.optim.lr"]) > float(shares["train.global_batch"])


def bold(sweep: SweepDir, found: list[report.Trial]) -> dict[str, list[str]]:
    """The bold cells of the table of settings and numbers, by column."""
    rows = [line.strip("| ").split(" | ") for line in report._table(found, sweep.settings()).splitlines()[2:]]
    rows = [row for row in rows if len(row) == len(rows[0])]
    return {name: [row[n] for row in rows[2:] if "**" in row[n]] for n, name in enumerate(rows[0])}


def test_what_the_interval_does_not_tell_from_the_best_is_bold(sweep: SweepDir, tmp_path: Path) -> None:
    """Over seeds; of one seed as its result says it. What has no interval has no best."""
    found = report.trials_of(sweep, sweep.settings())
    values = [0.03125, 0.01562, 0.9, 0.0, 0.5, 0.5]  # accuracies, of 64 samples
    intervals = [(0.009, 0.107), (0.003, 0.083), (0.8, 0.95), (0.0, 0.057), (0.38, 0.62), (0.38, 0.62)]
    alone = []
    for t, value, (low, high) in zip(found, values, intervals, strict=True):
        run = tmp_path / str(t.number)
        details = {"accuracy-domain": {"low": low, "high": high}}
        write_json(run / "results" / "000000010-heun.json", {"metrics": {}, "details": details})
        samples = str(run / "samples" / "step-000000010" / "heun")
        more = {"metrics": {"accuracy-domain": value, "recall": value}, "samples": samples}
        alone.append(replace(t, states=t.states[:1], outcomes=({**t.outcomes[0], **more},)))
    head = ["fd-domain", "accuracy-domain", "recall", "loss"]
    marks = bold(sweep, alone)
    assert [marks[name] for name in head] == [[], ["**0.9**"], [], []]
    few = bold(sweep, alone[:2])
    assert few["accuracy-domain"] == ["**0.03125**", "**0.01562**"]
    seeds = [{"value": v, "metrics": {"recall": v}, "loss": {"last": v}} for v in (1.0, 1.1, 1.05, 1.15, 9.0, 9.01)]
    three = [replace(t, outcomes=tuple(seeds[2 * n : 2 * n + 2])) for n, t in enumerate(found[:3])]
    marks = bold(sweep, three)
    assert marks["fd-domain"] == marks["loss"] == ["**1.05**", "**1.1**"] and marks["recall"] == ["**9.005**"]
    assert "± s: value ± 2 s" in report._table(three, sweep.settings())


def test_the_table_has_times_and_what_guidance_scales_mean(sweep: SweepDir) -> None:
    times = {"train": 3723.4, "sample": 59.0}
    found = [
        replace(t, outcomes=tuple({**o, "seconds": times} for o in t.outcomes))
        for t in report.trials_of(sweep, sweep.settings())
    ]
    _, _, head, _, row, *_ = report._table(found, sweep.settings()).splitlines()
    assert head.endswith("| training | sampling |") and row.endswith("| 1:02:03 | 0:00:59 |")
    varied = sweep.settings().model_copy(update={"space": {report.SCALE: "0,1"}, "base": ("experiment=glyphs16",)})
    varied.__dict__.pop("dimensions", None)
    assert "cfg: 1 is the conditional model" in report._convention(varied)
    ho = varied.model_copy(update={"base": ("sample.sampler.guidance.convention=ho",)})
    assert "w = scale - 1, and 0 is the conditional model" in report._convention(ho)
    assert report._convention(sweep.settings()) == "" and "Lower is better: niqe." in report._quality({"niqe": []})
