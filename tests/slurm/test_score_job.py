"""Two sets of images scored as a job: what is wrong is said before it is queued, and what a kill leaves is gone on."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from launching import LIMIT, PROFILE, slurm_cli
from PIL import Image

from pipeline import score as scoring
from pipeline.runtime import cli
from pipeline.runtime.errors import UserError
from slurm import ledger
from slurm.ledger import as_submitted
from slurm.progress import newest_log
from slurm.rank import process_born
from slurm.score import launch_for_score

SIDE, COUNT = 112, 130  # three pieces of work in each set


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two folders of noise, and a model of natural images for NIQE, which is none of a real camera."""
    root, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name, spread in (("fakes", 30), ("photos", 60)):
        (root / name).mkdir()
        for k in range(COUNT):
            pixels = np.clip(rng.normal(120, spread, (SIDE, SIDE)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k:03d}.png")
    np.savez(root / "niqe.npz", mu_pris_param=rng.normal(size=(1, 36)), cov_pris_param=np.eye(36))
    return root


def arguments(sets, *more):
    return [str(sets / "fakes"), str(sets / "photos"), f"evaluate.quality.niqe={sets / 'niqe.npz'}", *more]


def in_one_process(sets, folder):
    out = folder / "alone.json"
    assert scoring.main([*arguments(sets), f"--json={out}", f"--cache={folder / 'alone'}"]) == 0
    return json.loads(out.read_text())


def test_here_it_runs_at_once_and_prints_what_score_measures(sets, tmp_path):
    asked = ["submit", "score", *arguments(sets, f"runs_dir={tmp_path}", "cluster.evaluate.tasks=2")]
    out = tmp_path / "given.json"
    done = slurm_cli(*asked, "--json", str(out), cwd=tmp_path)
    assert done.returncode == 0 and "niqe" in done.stdout and str(out) in done.stdout, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["metrics"] == in_one_process(sets, tmp_path)["metrics"] and found["metrics"].keys() >= {"niqe"}
    (folder,) = tmp_path.glob("score-fakes-photos-*")
    again = slurm_cli(*asked, "--json", str(out), cwd=tmp_path)
    assert again.returncode == 0 and "it was there already: skipped" in again.stdout + again.stderr
    status = slurm_cli("status", str(folder), cwd=tmp_path)
    assert status.returncode == 0 and "complete" in status.stdout
    assert "score-fakes" in slurm_cli("status", str(tmp_path), cwd=tmp_path).stdout  # the rest may be on the next line
    assert "images" in slurm_cli("logs", str(folder), cwd=tmp_path).stdout


def test_other_images_under_the_same_paths_are_another_scoring(sets, tmp_path):
    first = launch_for_score(arguments(sets, f"runs_dir={tmp_path}", "name=mine"))
    assert first.complete() == {"evaluate": False} and first.run.path == tmp_path / "mine"
    assert as_submitted(first.run.path).jobs == first.jobs
    picture = sets / "fakes" / "000.png"
    kept = picture.read_bytes()
    try:
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(picture)
        with pytest.raises(UserError, match=r"holds the scoring of .*fakes and .*photos. Give another name"):
            launch_for_score(arguments(sets, f"runs_dir={tmp_path}", "name=mine"))
    finally:
        picture.write_bytes(kept)


def test_a_scoring_is_removed_and_its_images_stay_while_it_is_under_way(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "fakes-0123abcd"
    shutil.copytree(sets / "fakes", data / "source")
    launch = launch_for_score([str(data / "source"), *arguments(sets, f"runs_dir={tmp_path}/runs")[1:]])
    folder = launch.run.path
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as job:  # stands in for what was started; ends with the block
        began = {"ids": [str(job.pid)], "born": [process_born(job.pid)], "executor": "local", "snapshot": ""}
        ledger.note(launch.run, "submitted", job="evaluate", **began)
        for path, said in ((folder, f"{folder}: under way: evaluate"), (data, f"{data}: {folder} scores it")):
            assert cli.main("mudi", ["rm", str(path), "--yes"]) == 2
            assert said in capsys.readouterr().err and path.is_dir()
    assert cli.main("mudi", ["rm", str(folder)]) == 2 and "nobody can be asked" in capsys.readouterr().err
    assert cli.main("mudi", ["rm", str(data), str(folder), "--yes"]) == 0
    assert not data.exists() and list(folder.parent.iterdir()) == []


def test_parts_compute_features_and_one_more_job_puts_them_together(sets, tmp_path):
    asked = ["cluster=slurm_generic", "cluster.evaluate.parts=3", "cluster.evaluate.gpus=2", f"runs_dir={tmp_path}"]
    features, evaluate = launch_for_score(arguments(sets, *asked)).jobs
    assert (features.name, features.resources.parts, features.resources.gpus) == ("features", 3, 2)
    assert (evaluate.resources.parts, evaluate.after, evaluate.argv) == (1, ("features",), features.argv)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w, root: [w[0], str(root / "absent"), *w[2:]], "absent does not exist. Expected a folder"),
        (lambda w, root: [w[0], str(root), *w[2:]], "has no images"),
        (lambda w, root: [*w, "evaluate.kid_subset=3"], "Did you mean 'evaluate.kid_subsets'?"),  # noqa: ARG005
        (lambda w, root: w[:2], "No network is given to measure with"),  # noqa: ARG005
        (lambda w, root: [*w, "evaluate.inception.weights=none.pth"], "found no file 'none.pth'"),  # noqa: ARG005
        (lambda w, root: [*w, "train.global_batch=3"], "expected settings of evaluate, cluster"),  # noqa: ARG005
        (lambda w, root: w[:1], "expected A B, two sets of images"),  # noqa: ARG005
        (lambda w, root: [*w, "cluster=komondr"], "Did you mean 'komondor'?"),  # noqa: ARG005
    ],
    ids=["absent", "empty", "metric", "no network", "weights", "foreign", "one set", "cluster"],
)
def test_what_cannot_be_scored_is_said_before_anything_is_queued(sets, tmp_path, change, said):
    with pytest.raises(UserError) as error:
        launch_for_score([*change(arguments(sets), tmp_path), f"runs_dir={tmp_path / 'runs'}"])
    assert said in str(error.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["result", "table"])
def test_a_folder_for_the_result_that_is_not_there_is_said_before_anything_is_queued(sets, tmp_path, option):
    with pytest.raises(UserError, match=f"there is no folder '{tmp_path}/nope'. Make it first"):
        launch_for_score(arguments(sets, f"runs_dir={tmp_path / 'runs'}"), **{option: tmp_path / "nope" / "x"})
    assert not (tmp_path / "runs").exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_two_tasks_of_which_one_is_killed_give_the_numbers_of_one_process(sets, tmp_path):
    settings = [f"cluster.{name}={str(value).lower()}" for name, value in PROFILE.items()]
    settings += ["cluster=testbed", "cluster.evaluate.tasks=2", "cluster.evaluate.memory_gb=3"]
    done = slurm_cli("submit", "score", *arguments(sets, f"runs_dir={tmp_path}", *settings), cwd=tmp_path)
    assert done.returncode == 0 and "evaluate: queued" in done.stdout, done.stdout + done.stderr
    (folder,) = tmp_path.glob("score-fakes-photos-*")
    launch, end = as_submitted(folder), time.monotonic() + LIMIT
    blocks = tmp_path / ".features"
    while not list(blocks.rglob("*.safetensors")):
        assert time.monotonic() < end, said(launch)
        time.sleep(0.02)
    starts = [row for row in rows(launch) if row["event"] == "start"]
    os.kill(next(row["pid"] for row in starts if row["rank"] == 1), signal.SIGKILL)
    assert until_ended(launch, end).status == "failed" and not launch.result.exists()
    assert slurm_cli("status", str(folder), cwd=tmp_path).returncode == 1
    left = {path: path.stat().st_mtime_ns for path in blocks.rglob("*.safetensors")}
    again = slurm_cli("retry", str(folder), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert until_ended(launch, end).status == "complete", said(launch)
    found, alone = json.loads(launch.result.read_text()), in_one_process(sets, tmp_path)
    assert found["metrics"] == alone["metrics"] and found["details"] == alone["details"]
    assert left and all(path.stat().st_mtime_ns == when for path, when in left.items())  # computed once
    assert "niqe" in slurm_cli("logs", str(folder), cwd=tmp_path).stdout
    assert "niqe" in slurm_cli("status", str(folder), cwd=tmp_path).stdout


def rows(launch):
    from slurm.rank import attempts

    return attempts(launch.run.jobs / "evaluate", ledger.submissions(launch.run)["evaluate"].ids)


def until_ended(launch, end):
    while (state := ledger.states_of([launch])[0]["evaluate"]).active:
        assert time.monotonic() < end, said(launch)
        time.sleep(0.3)
    return state


def said(launch):
    log = newest_log(launch.run.jobs / "evaluate")
    return Path(log).read_text()[-3000:] if log else "no log"
