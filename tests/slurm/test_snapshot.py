"""A snapshot is the code at the moment of submission, with the commit and what differed from it."""

import json
import subprocess
import sys
import time

import pytest

from pipeline.runtime.commit import commit_of
from slurm import snapshot


@pytest.fixture
def checkout(tmp_path):
    """A small git repository with the packages of ours."""
    root = tmp_path / "code"
    for part in snapshot.PARTS:
        (root / part).mkdir(parents=True)
        (root / part / "a.py").write_text(f"# {part}\n")
    for argv in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", root, *argv], check=True)
    return root


def test_same_code_is_the_same_snapshot_and_other_code_another(checkout, tmp_path):
    first = snapshot.take(tmp_path / "s", root=checkout)
    assert snapshot.take(tmp_path / "s", root=checkout) == first
    (checkout / "slurm" / "a.py").write_text("edited\n")
    second = snapshot.take(tmp_path / "s", root=checkout)
    assert second != first
    assert (first / "slurm" / "a.py").read_text() == "# slurm\n"
    assert (second / "slurm" / "a.py").read_text() == "edited\n"


def test_whoever_takes_the_same_snapshot_at_the_same_moment_gets_it(tmp_path):
    """Of this checkout, by processes that wait for each other: all copy, one is first."""
    script = f"""
import sys, time
from pathlib import Path
from pipeline.runtime.commit import commit_of
from slurm import snapshot
here = Path({str(tmp_path)!r})
(here / f"ready-{{sys.argv[1]}}").touch()
while not (here / "go").exists():
    time.sleep(0.001)
print(snapshot.take(here / "s"))
"""
    argv = [sys.executable, "-c", script]
    racers = [
        subprocess.Popen([*argv, str(k)], cwd=snapshot.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for k in range(4)
    ]
    while len(list(tmp_path.glob("ready-*"))) < len(racers):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    said = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, said
    (taken,) = {out.strip() for out, _ in said}
    assert [str(path) for path in (tmp_path / "s").iterdir()] == [taken]
    assert snapshot.record_of(tmp_path / "s" / taken)["sha256"].startswith(taken.rpartition("/")[2])


def test_commit_and_difference_are_recorded_and_rebuild_the_code(checkout, tmp_path):
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    clean = snapshot.take(tmp_path / "s", root=checkout)
    assert snapshot.record_of(clean)["commit"] == head.stdout.strip()
    assert commit_of(clean) == head.stdout.strip()
    (checkout / "slurm" / "a.py").write_text("edited\n")
    dirty = snapshot.take(tmp_path / "s", root=checkout)
    assert commit_of(dirty) == head.stdout.strip() + "+"
    again = tmp_path / "again"
    subprocess.run(["git", "clone", "-q", checkout, again], check=True)
    subprocess.run(["git", "-C", again, "apply", dirty / snapshot.DIFF], check=True)
    assert (again / "slurm" / "a.py").read_text() == "edited\n"


def test_a_snapshot_of_a_snapshot_keeps_the_first_record(checkout, tmp_path):
    first = snapshot.take(tmp_path / "s", root=checkout)
    second = snapshot.take(tmp_path / "t", root=first)
    assert second.name == first.name
    assert json.loads((second / snapshot.RECORD).read_text()) == json.loads((first / snapshot.RECORD).read_text())
