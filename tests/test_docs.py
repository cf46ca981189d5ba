"""The pages under docs: links lead somewhere, messages are the program's own, shell lines are commands."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from pipeline.runtime.cli import _found

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert all((page.parent / link).exists() for link in links), links


def constants() -> str:
    """Every text in the code, a line each, small letters and single spaces."""
    files = [p for package in ("pipeline", "slurm", "data_prep") for p in (ROOT / package).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return "\n".join(" ".join(text.lower().split()) for text in texts)


def test_messages_that_are_explained_are_the_programs_own():
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+ [^`]+)`", row)]
    assert len(messages) >= 12
    known = constants()
    for message in messages:
        # Numbers, names and dots stand for what a message says of the case.
        pieces = re.split(r"\.\.\.|\d+|'|train, val|\bgpu\b|\btrain\b|runs/mine", message.lower())
        pieces = [" ".join(piece.strip(" ,.:()").split()) for piece in pieces]
        assert all(piece in known for piece in pieces if " " in piece), (message, pieces)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_there(page):
    """Of each line that begins with a program of ours, the command is one of its commands."""
    blocks = re.findall(r"```(?:text|sh|)\n(.*?)```", page.read_text(), re.DOTALL)
    spans = re.findall(r"`((?:mudi|python -m (?:pipeline|slurm|data_prep)) [^`]+)`", page.read_text())
    lines = [*spans, *(line for block in blocks for line in block.splitlines())]
    for line in lines:
        command = re.sub(r"^python -m (\w+)", r"\1", line.split(" #")[0].strip())
        program, _, rest = command.partition(" ")
        if (
            program in ("mudi", "pipeline", "slurm", "data_prep")
            and rest
            and not rest.startswith(("-", "COMMAND"))
            and "--help" not in rest
        ):
            _found(program, shlex.split(rest.replace("...", "x=1")))


def test_people_are_told_to_type_mudi():
    """`python -m` is how jobs call the same commands: plan prints it, and docstrings of modules that are jobs."""
    found = re.findall(r".*python -m (?:slurm|pipeline|data_prep) .*", messages(), re.IGNORECASE)
    headers = [p for group in ("cluster", "data", "experiment", "model") for p in (ROOT / "configs" / group).glob("*")]
    assert not found and not [p for p in headers if "python -m" in p.read_text()]


def messages() -> str:
    """Every text in the code that is no docstring."""
    files = [p for package in ("pipeline", "slurm", "data_prep") for p in (ROOT / package).rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs]
    return "\n".join(texts)
