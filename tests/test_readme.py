"""Every command in the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_end_to_end import SMALL, mudi

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]


def test_there_are_commands():
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    done = subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_run_one_after_the_other(tmp_path):
    """As they stand, in the order they stand in, but for the size of the experiment and where it writes."""
    images = tmp_path / "images"
    for name in ("bright", "dark"):
        (images / name).mkdir(parents=True)
    from PIL import Image

    for k in range(80):
        shade = 200 + k % 50 if k % 2 else k % 50
        Image.new("RGB", (24, 24), (shade,) * 3).save(images / ("bright" if k % 2 else "dark") / f"{k}.png")
    photos = [word for word in SMALL if "alphabet" not in word]
    where = [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    ran = 0
    for command in COMMANDS:
        command = command.replace("runs/", f"{tmp_path}/runs/").replace("sweeps/", f"{tmp_path}/sweeps/")
        words = shlex.split(command.replace("/my/images", str(images)))
        if words[:2] != ["python", "-m"]:
            continue
        extra = []
        if any(w.startswith("experiment=") for w in words):
            extra = [*where, *(SMALL if "experiment=glyphs16" in words else photos)]
        if "sweep" in words and words[4] in ("submit", "plan"):
            varied = [w.partition("=")[0] for w in words if "=" in w]
            extra = [w for w in extra if w.partition("=")[0] not in varied]
            extra += [f"sweep.folder={tmp_path}/sweeps", "sweep.trials=2"]
        mudi(words[2], *words[3:], *extra)
        ran += 1
    assert ran >= 8


def test_tensorboard_is_installed():
    assert "tensorboard --logdir runs" in COMMANDS
    assert subprocess.run([sys.executable, "-m", "tensorboard.main", "--version"], capture_output=True).returncode == 0


def test_links_and_pictures_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:configs|pipeline|slurm|data_prep|tests|docs|benchmarks)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path
