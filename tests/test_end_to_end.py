"""The main job, from fonts to scores, through the commands that people type; and the mistakes that they make."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.load import config_from
from pipeline.runtime import cli
from slurm.graph import ordered
from slurm.workflows import Launch, launch_for

ROOT = Path(__file__).resolve().parent.parent
# The demo's experiment, small enough for a test: four letters, a narrow network, a few steps.
SMALL = [
    "data.source.alphabet=OXIL",
    "model.width=16",
    "model.head_channels=16",
    "train.duration=40 steps",
    "train.global_batch=32",
    "train.log_every=5 steps",
    "train.validate_every=20 steps",
    "train.preview_every=40 steps",
    "train.checkpoint_every=20 steps",
    "sample.count=64",
    "sample.sampler.steps=4",
    "evaluate.domain.max_images=2000",
    "evaluate.kid_subset_size=50",
]


def mudi(program: str, *argv: str, code: int = 0) -> str:
    """`python -m program argv`, or `mudi argv`, without its interpreter; what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        found = cli.main(program, list(argv))
    assert found == code, said.getvalue()
    return said.getvalue()


def graph_here(*overrides: str) -> Launch:
    """Every job of an experiment, with the command it would be queued with, one after the other in this process."""
    launch = launch_for(config_from(overrides), make=True)
    for job in ordered(launch.jobs):
        mudi(*job.argv)
    return launch


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """The demo, as a person types it: every job is a process."""
    root = tmp_path_factory.mktemp("end_to_end")
    overrides = ["experiment=glyphs16", "cluster=local", f"data_dir={root}/data", f"runs_dir={root}/runs", *SMALL]
    command = [sys.executable, "-m", "slurm", "submit", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, overrides, done.stdout + done.stderr


def test_one_command_prepares_trains_samples_and_scores(submitted):
    root, _, said = submitted
    run = root / "runs" / "glyphs16"
    (result,) = [json.loads(p.read_text()) for p in (run / "results").glob("*.json")]
    assert result["metrics"]["fd-domain"] > 0 and 0 <= result["metrics"]["accuracy-domain"] <= 1
    assert not any(name.lower().startswith("fid") for name in result["metrics"])
    (grid,) = run.glob("samples/step-000000040/*/grid.png")
    assert str(grid) in said
    assert "measured on 64 images" in " ".join(said.split())  # what a reader of the last table should know
    assert "tensorboard" in said.lower()
    with Image.open(grid) as picture:
        assert np.asarray(picture).std() > 10


def test_a_result_says_what_it_was_made_from(submitted):
    (path,) = (submitted[0] / "runs" / "glyphs16" / "results").glob("*.json")
    text = path.read_text()
    for word in ("glyphs16", "protocol", "seed", "count", "torch", "sha256"):
        assert word in text, word


def test_submitting_again_skips_what_is_complete(submitted):
    root, overrides, _ = submitted
    before = {p: p.stat().st_mtime_ns for p in (root / "data").rglob("*.tar")}
    said = mudi("slurm", "submit", *overrides)
    assert said.count("skipped") >= 4
    assert {p: p.stat().st_mtime_ns for p in (root / "data").rglob("*.tar")} == before


def test_plan_prints_the_graph_and_does_nothing(tmp_path):
    said = mudi("slurm", "plan", "experiment=glyphs16", "cluster=local", f"runs_dir={tmp_path}")
    for job in ("prepare", "train", "sample", "evaluate"):
        assert job in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_follows_from_the_settings(submitted):
    said = mudi("pipeline", "train", str(submitted[0] / "runs" / "glyphs16"), "--dry-run")
    for word in ("steps", "images", "epochs", "parameters", "checkpoint", "MiB"):
        assert word in said
    assert said.index("global_batch:") < said.index("parameters")  # the few lines to read stand last


def test_a_dry_run_counts_parameters_before_there_is_data(submitted, tmp_path):
    _, overrides, _ = submitted
    nowhere = [override for override in overrides if not override.startswith("data_dir=")] + [f"data_dir={tmp_path}"]
    before, after = (mudi("pipeline", "train", *given, "--dry-run").splitlines() for given in (nowhere, overrides))
    sizes = [[line.split("│")[2].strip() for line in said if "│ parameters" in line] for said in (before, after)]
    assert sizes[0] == sizes[1] and sizes[0][0].endswith(" M")


def test_a_run_directory_made_with_other_settings_is_left_alone(submitted):
    _, overrides, _ = submitted
    said = mudi("slurm", "submit", *overrides, "train.optim.lr=1", code=2)
    assert "was made with other settings" in said
    assert "train.optim.lr: the run has 0.004, this call has 1.0" in said
    assert "name=glyphs16-2" in said
    assert "was made with other settings" in mudi("slurm", "plan", *overrides, "train.optim.lr=1", code=2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.globl_batch=3"], "Did you mean 'train.global_batch'"),
        (["train.global_batch=many"], "train.global_batch: found 'many'"),
        (["data.source.fonts=/no/such/folder"], "/no/such/folder"),
    ],
    ids=["misspelt key", "wrong type", "missing folder"],
)
def test_a_mistake_is_told_without_a_traceback_and_nothing_is_made(tmp_path, overrides, expected):
    said = mudi("data_prep", "all", "experiment=glyphs16", f"data_dir={tmp_path}", *overrides, code=2)
    assert expected in said
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*.tar")) == []


def test_an_empty_data_set(tmp_path):
    (tmp_path / "images").mkdir()
    overrides = ["experiment=photos16", f"data_dir={tmp_path}/data", f"data.source.path={tmp_path}/images"]
    said = mudi("data_prep", "all", *overrides, code=2)
    assert str(tmp_path / "images") in said and "Traceback" not in said


def test_an_image_that_does_not_decode_is_listed_and_too_many_are_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(20):
            Image.new("RGB", (20, 20), (k * 10, 0, 0)).save(tmp_path / "images" / name / f"{k}.png")
    broken = tmp_path / "images" / "a" / "7.png"
    broken.write_bytes(broken.read_bytes()[:40])
    overrides = ["experiment=photos16", f"data_dir={tmp_path}/data", f"data.source.path={tmp_path}/images"]
    mudi("data_prep", "fetch", *overrides)
    mudi("data_prep", "shard", *overrides)
    (listed,) = (tmp_path / "data").glob("*/shards/rejected.jsonl")
    assert "7.png" in listed.read_text()
    strict = ["data.max_rejected=0.01", f"data_dir={tmp_path}/strict"]
    assert "max_rejected" in mudi("data_prep", "all", *overrides, *strict, code=2)


def test_an_unknown_job_names_the_nearest():
    assert "Did you mean 'train'" in mudi("pipeline", "trian", code=2)
