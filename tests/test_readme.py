"""Every command in the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_end_to_end import SMALL, graph_here, mudi

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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's folder of images, and the two experiments that its commands are about, made in this process."""
    root = tmp_path_factory.mktemp("readme")
    for k in range(80):
        folder, shade = root / "images" / ("bright" if k % 2 else "dark"), 200 + k % 50 if k % 2 else k % 50
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (shade,) * 3).save(folder / f"{k}.png")
    for command in COMMANDS:
        if command.startswith("mudi submit") and not (root / "runs" / name_in(command)).is_dir():
            graph_here(*argv_of(command, root)[1:])
    return root


def name_in(command: str) -> str:
    """The run that a command of the README submits."""
    return re.findall(r"(?:name|experiment)=(\w+)", command)[-1]


def argv_of(command: str, root: Path) -> list[str]:
    """Arguments after `mudi` as they stand in the README, but for the size of the experiment and where it writes."""
    command = command.replace("runs/", f"{root}/runs/").replace("sweeps/", f"{root}/sweeps/")
    argv = shlex.split(command.replace("/my/images", f"{root}/images"))[1:]
    if not any(argument.startswith("experiment=") for argument in argv):
        return argv if "plan" not in argv else [*argv, f"sweep.folder={root}/sweeps", "sweep.trials=2"]
    varied = [argument.partition("=")[0] for argument in argv if "=" in argument]
    extra = [f"data_dir={root}/data", f"runs_dir={root}/runs"]
    extra += [w for w in SMALL if "experiment=glyphs16" in argv or "alphabet" not in w]
    if "sweep" in argv:
        extra = [w for w in extra if w.partition("=")[0] not in varied]
        extra += [f"sweep.folder={root}/sweeps", "sweep.trials=1"]
    return [*argv, *extra]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("mudi ")])
def test_a_command_runs(root, command):
    """In the order in which they stand; what is made already is skipped, as it would be on the second day."""
    mudi("mudi", *argv_of(command, root))


def test_there_are_enough_of_them():
    assert sum(c.startswith("mudi ") for c in COMMANDS) >= 16


def test_tensorboard_is_installed():
    assert "tensorboard --logdir runs" in COMMANDS
    assert subprocess.run([sys.executable, "-m", "tensorboard.main", "--version"], capture_output=True).returncode == 0


def test_links_and_pictures_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:configs|pipeline|slurm|data_prep|tests|docs|benchmarks)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path
