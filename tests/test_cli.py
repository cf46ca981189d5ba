"""The command lines: help for every command, mistakes, exit codes, and what is listed."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.config.listing import described
from pipeline.config.load import config_from, groups
from pipeline.config.schema import SampleConfig
from pipeline.models.build import build_network, count_parameters
from pipeline.runtime import cli
from pipeline.runtime.errors import NonFiniteError, RendezvousError, UserError
from pipeline.runtime.parts import Part

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("pipeline", "slurm", "data_prep", "mudi")
EVERY = [(program, name) for program in PROGRAMS for name in cli.table_of(program)]


def said(capsys: pytest.CaptureFixture[str], program: str, *argv: str, code: int = 0) -> str:
    """What a command prints, which ends with `code`."""
    found = cli.main(program, list(argv))
    text = "".join(capsys.readouterr())
    assert found == code, text
    return text


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_answers_help_with_an_example(capsys, program):
    overview = said(capsys, program, "--help")
    assert overview == said(capsys, program) == said(capsys, program, "help")
    for name, command in cli.table_of(program).items():
        text = said(capsys, program, *name.split(), "--help")
        head, examples = text.split("examples:")
        assert f"usage: {cli.called(program)} {name}" in head and examples.strip() and name in overview
        for line in examples.strip().splitlines():
            assert line.strip().startswith(f"{cli.called(program)} {name}")
        assert text == said(capsys, program, *name.split(), "x=1", "-h")
        for option in command.options:
            assert option.split()[0] in head


def test_help_imports_no_command():
    code = (
        "import sys\nfrom pipeline.runtime import cli\n"
        "for program in ('pipeline', 'slurm', 'data_prep', 'mudi'):\n"
        "    assert all(cli.main(program, [*name.split(), '--help']) == 0 for name in cli.table_of(program))\n"
        "sys.exit(str([name for name in ('torch', 'numpy', 'pydantic', 'hydra', 'rich') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", cli.table_of("mudi"))
def test_an_example_is_what_the_command_takes(name):
    command = cli.table_of("mudi")[name]
    module = command.place.partition(":")[0]
    assert find_spec(module), module
    parser = command.parser("mudi")
    for example in command.examples:
        _, rest = parser.parse_known_args(shlex.split(example))
        assert not any(word.startswith("-") for word in rest)
        if rest and rest[0].startswith(("experiment=", "data=")) and not name.startswith("sweep "):
            from data_prep.commands import data_config

            data_config(rest) if command.program == "data_prep" else config_from(rest)


def test_the_console_command_is_the_one_that_is_installed():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["mudi"].partition(":")
    assert getattr(import_module(module), function) is cli.mudi


def test_the_console_command_has_every_command_once():
    of_programs = [c for program in PROGRAMS[:3] for c in cli.table_of(program).values()]
    assert len(cli.table_of("mudi")) == len(of_programs) and set(cli.table_of("mudi").values()) == set(of_programs)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ("mudi trian x", "error: no command 'trian'. Did you mean 'train'?"),
        ("mudi sweep sbumit x", "Did you mean 'sweep submit'? `mudi sweep --help` lists all."),
        ("mudi prepare shrad x", "Did you mean 'prepare shard'?"),
        ("mudi shard x", "It is mudi prepare shard"),
        ("pipeline submit x", "It is mudi submit"),
        ("slurm sbumit x", "Did you mean 'submit'?"),
        ("data_prep shrad x", "Did you mean 'shard'?"),
        ("slurm plan experiment=glyphs16 --sbtach x", "--sbtach: no such option of `python -m slurm plan`. Did"),
        ("mudi train runs/a --step=3", "--step: no such option of `mudi train`. It has --dry-run"),
        ("pipeline sample runs/a --step x", "--step: found 'x', expected the number of a checkpoint"),
        ("pipeline sample --part 3/3", "--part: found '3/3', expected K/N"),
        ("slurm logs runs/a -n -1", "-n/--lines: "),
        ("slurm preflight --wait soon", "--wait: found 'soon', expected a number of seconds"),
        ("pipeline compare runs/a --out", "--out: expected one argument"),
        ("mudi cancel", "cancel what? For example: mudi cancel runs/glyphs16"),
        ("mudi train --dry-run", "train what? For example: mudi train runs/glyphs16"),
        ("mudi list settings trian.optim", "Did you mean 'train.optim'?"),
        ("mudi list settings train.lr", "Did you mean 'train.optim.lr'?"),
    ],
)
def test_mistakes_are_answered_with_what_was_meant(capsys, argv, hint):
    program, *rest = argv.split()
    assert hint in said(capsys, program, *rest, code=2)


def test_options_may_stand_anywhere(monkeypatch, capsys):
    got = []
    monkeypatch.setattr("data_prep.commands.make_shards", lambda overrides, **options: got.append((overrides, options)))
    said(capsys, "data_prep", "shard", "--workers", "3", "data=a", "--part=1/2", "data_dir=b")
    said(capsys, "mudi", "prepare", "shard", "data=a", "data_dir=b", "--part", "1/2", "--workers=3")
    assert got == [(["data=a", "data_dir=b"], {"workers": 3, "part": Part(1, 2)})] * 2


def raising(error: BaseException):
    def main(_: list[str]) -> int:
        raise error

    return main


OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
ENDS = {
    UserError("x"): 2,
    RendezvousError("x"): 78,
    NonFiniteError("x"): 76,
    OutOfMemoryError("x"): 77,
    KeyboardInterrupt(): 130,
}


@pytest.mark.parametrize(("error", "code"), ENDS.items(), ids=lambda value: type(value).__name__)
def test_how_a_command_ends_is_its_exit_code(monkeypatch, capsys, error, code):
    for program, argv, place in (
        ("pipeline", ["list", "x"], "pipeline.runtime.inventory.main"),
        ("slurm", ["submit", "x"], "slurm.commands.submit"),
        ("mudi", ["prepare", "fetch", "x"], "data_prep.commands.fetch"),
    ):
        monkeypatch.setattr(place, raising(error))
        assert "Traceback" not in said(capsys, program, *argv, code=code) or code == 77


def test_another_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("slurm.commands.submit", raising(BrokenPipeError("a worker's")))
    with pytest.raises(BrokenPipeError, match="a worker's"):
        cli.main("slurm", ["submit", "x"])


@pytest.mark.parametrize(
    ("argv", "code"), [("pipeline list settings", 141), ("slurm --help", 141), ("slurm plan experiment=glyphs16", 1)]
)
def test_a_reader_that_goes_away_is_no_error(argv, code):
    """rich, which prints plans, ends a process with 1."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", *argv.split()]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


def test_the_version_names_the_commit(capsys):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    text = said(capsys, "mudi", "--version")
    assert text.startswith("mudi 0.") and (head or "unknown") in text


def test_every_experiment_is_listed_with_a_line(capsys):
    text = said(capsys, "mudi", "list", "experiments")
    for name in groups()["experiment"]:
        assert f"\n{name}  " in f"\n{text}", name
    headings = [line for line in text.splitlines() if line.endswith(":") and " " not in line]
    assert headings == sorted(set(headings)) and {"flowers:", "glyphs:", "photos:"} <= set(headings)
    assert text.index("flowers:") < text.index("flowers32  ") < text.index("glyphs:") < text.index("glyphs16  ")


def test_descriptions_are_whole_sentences_and_fit_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = said(capsys, "mudi", "list", "experiments")
    whole = "what augmentation is worth where images are few, on one core"  # on the second line of its file's comment
    assert whole in " ".join(text.split()) and max(map(len, text.splitlines())) <= 60
    assert (
        described("# @package _global_\n# One 1.7 M net\n# (Ho et al. 2020).\n# Run:     x\n")
        == "One 1.7 M net (Ho et al. 2020)"
    )
    assert described("# From CIFAR-10. There more\n") == "From CIFAR-10"


def test_sample_says_how_many_images_it_makes(capsys):
    text = " ".join(said(capsys, "mudi", "sample", "--help").split())
    assert f"sample.count says, by default {SampleConfig.model_fields['count'].default:,}; sample.count=64" in text


def test_the_size_that_the_demo_s_files_tell_is_counted():
    model = config_from(["experiment=glyphs16"]).model
    told = f"{count_parameters(build_network(model, shape=(1, 16, 16), classes=26)) / 1e6:.1f} M"
    for name in ("README.md", "configs/experiment/glyphs16.yaml", "configs/model/unet_glyphs16.yaml"):
        assert f"{told} " in (ROOT / name).read_text(), (name, told)


def test_settings_are_listed_with_type_default_and_comment(capsys):
    text = " ".join(said(capsys, "mudi", "list", "settings", "train").split())
    assert "train.optim.lr number (> 0); default 0.0001" in text
    assert "train.optim.kind sgd | adam | adamw | muon; default adamw muon: AdamW for what is not a matrix" in text
    assert "train.workers whole number | null (>= 0); default null threads that read ahead" in text
    text = " ".join(said(capsys, "mudi", "list", "settings", "model").split())
    assert (
        "model.kind simple_unet | additive_unet | unet | dit" in text
        and "model.scale_shift true | false; default true; of unet" in text
    )
    assert "diffusion.levels.kind  log_normal | " in said(capsys, "mudi", "list", "settings", "diffusion")


def on_a_terminal(*argv: str, columns: int = 60, **env: str) -> str:
    """What a command prints on a terminal of so many columns."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    env = {**clean, "TERM": "xterm-256color", **env}
    process = subprocess.Popen([sys.executable, *argv], stdin=terminal, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    text = b""
    with contextlib.suppress(OSError):  # what a terminal says when nobody holds its other side
        while part := os.read(controller, 65536):
            text += part
    os.close(controller)
    assert process.wait() == 0, text.decode()
    return text.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("name", ["", "sweep", "sweep plan", "prepare all", "visualize", "rm"])
def test_help_is_read_on_sixty_columns(name):
    code = "import sys; from pipeline.runtime import cli; sys.exit(cli.main('mudi', sys.argv[1:]))"
    text = re.sub(r"\x1b\[[\d;]*m", "", on_a_terminal("-c", code, *name.split(), "--help"))
    examples = [line for line in text.splitlines() if line.startswith("  mudi ") or "usage:" in line]
    others = [line for line in text.splitlines() if line not in examples]
    assert [line for line in others if len(line) > 60] == []
    assert name in text


RESULT = """
from pipeline.metrics.report import show
facts = {"reference": "train", "images": [500, 700], "dimensions": 64, "std": 0.003}
show({"run": "r", "samples": {"set": "s", "count": 500}, "data": {"train": {"count": 700}}, "notes": ["a note [x]"],
      "metrics": {"fd-domain": 1.5, "kid-domain": -0.001}, "details": {"fd-domain": facts, "kid-domain": facts}})
"""


def test_a_result_is_read_on_sixty_columns_and_without_colours():
    text = on_a_terminal("-c", RESULT)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 60 and "\x1b[" in text
    shown = " ".join(re.sub(r"[^\w.\[\] -]", " ", plain).split())
    assert "counts as 0" in shown and "lower" in shown and "a note [x]" in shown
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", on_a_terminal("-c", RESULT, NO_COLOR="1"))


@pytest.mark.parametrize("columns", ["60", "140"])
def test_a_plan_is_read_in_a_narrow_terminal(tmp_path, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    runs = tmp_path / ("a_folder_with_a_long_name_" * 5)
    text = said(capsys, "mudi", "plan", "experiment=glyphs16", "cluster=local", f"runs_dir={runs}")
    lines = text.splitlines()
    assert lines[0] == f"{runs}/glyphs16 on cluster=local" and f"  python -m pipeline train {runs}/glyphs16" in lines
    whole = (str(runs), "--dry-run", "FID and IS")  # commands and advice with commands are not wrapped
    assert all(len(line) <= 60 for line in lines if not any(word in line for word in whole))
