"""docs/evaluation.md: every command means something, and every metric that it names is known."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.config.load import config_from
from pipeline.config.registry import known_metric
from pipeline.runtime.cli import _found
from pipeline.score import settings_from
from slurm import plan

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
OURS = ("mudi ", "python -m ")
COMMANDS = [line for line in BLOCKS.splitlines() if line.startswith(OURS)]
SHELL = [line for line in BLOCKS.splitlines() if line and not line.startswith(OURS)]
TABLE = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)


def test_the_page_is_short() -> None:
    assert len(TEXT.splitlines()) < 180 and len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_means_something(command: str) -> None:
    program, *argv = shlex.split(command.removeprefix("python -m "))
    found, argv = _found(program, argv)
    job = found.name
    if job == "submit":
        plan.derived(config_from(argv))
    elif job == "score":
        settings_from(argv[2:])
    else:
        found.parser(program).parse_known_args(argv)


def test_the_shell_commands_are_those_of_every_system() -> None:
    assert {shlex.split(line)[0] for line in SHELL} <= {"mkdir", "ls", "head", "tail"}


def test_every_metric_is_known() -> None:
    names = [name for cell in TABLE for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) > 15 and all(known_metric(name) for name in names)


def test_the_bias_of_few_images_is_computed_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's lines on normal features. More of them are less biased."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    kept = tmp_path / "data" / "fashion16-0" / "reference" / "domain-0"
    kept.mkdir(parents=True)
    features = np.random.default_rng(1).standard_normal((44_000, 4)).astype(np.float32)
    save_file({"features.features": features}, kept / "train.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    rows = {int(line.split()[0]): float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
    assert list(rows) == [53, 200, 1000, 4000]
    assert rows[53] > 2 * rows[200] > 4 * rows[1000] > 4 * rows[4000]
