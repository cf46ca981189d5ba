"""docs/extending.md: its examples are a plug-in outside the package, and what they make is a run like any other."""

import ast
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.registry import METRICS, NETWORKS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = re.findall(r"^## (An? .+?)\n(.*?)(?=^## )", TEXT, re.DOTALL | re.MULTILINE)
EXAMPLES = {title: re.findall(r"```python\n# (\w+\.py)\n(.*?)```", body, re.DOTALL) for title, body in SECTIONS}
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
SUBMIT, EVALUATE = (shlex.split(line) for line in COMMANDS.splitlines())
PACKAGES = ("pipeline", "slurm", "data_prep")
# Every job of an experiment in one process, in the order of their dependencies, as `submit` starts them one by one.
ALL_JOBS = """
import sys
from test_end_to_end import graph_here, mudi
graph_here(*sys.argv[1:])
mudi("pipeline", "export", "runs/mine", "--format", "safetensors", "--to", "exported")
"""
PLUGINS = "plugins=[stripes,midpoint]"
QUICK = [  # the document's command is for people; this much less of it is enough to run every line
    "train.duration=6 steps",
    "train.global_batch=16",
    "train.validate_every=3 steps",
    "evaluate.domain.max_images=500",
    "evaluate.kid_subset_size=20",
]


def python(folder: Path, *argv: str, code: int = 0) -> str:
    """Python in a folder, as a batch script of Slurm starts it: the code on PYTHONPATH, and nothing from the folder."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *argv], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples as files, and the run that the document's command makes of them."""
    folder = tmp_path_factory.mktemp("plugin")
    for files in EXAMPLES.values():
        for name, text in files:
            (folder / name).write_text(text)
    python(folder, "-c", ALL_JOBS, *SUBMIT[2:], *QUICK)
    return folder


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_is_short(title):
    lines = sum(text.count("\n") + 1 for _, text in EXAMPLES[title])
    assert 0 < lines < 40, f"{title}: {lines} lines"


def test_there_is_one_of_each():
    assert list(EXAMPLES) == ["A data source", "A network", "An objective", "A sampler", "A metric"]


def test_from_the_source_to_the_metric(folder):
    run = folder / "runs" / "mine"
    (result,) = [json.loads(path.read_text()) for path in (run / "results").glob("*.json")]
    assert result["metrics"]["mean-gap-domain"] > 0 and "mean-gap-domain@valid" in result["metrics"]
    made = result["samples"]["made_from"]["sample"]["sampler"]
    assert (made["kind"], made["options"]) == ("midpoint", {"place": 0.5})
    assert {"mean-gap-domain"} <= set(result["details"])
    assert (run / "checkpoints" / "finished.json").is_file()


def test_the_jobs_of_the_run_import_its_plugins_again(folder):
    """Other processes, which are told nothing of plug-ins but by the run, and change settings of their kinds."""
    (result,) = (folder / "runs" / "mine" / "results").glob("*.json")
    before = json.loads(result.read_text())["metrics"]
    python(folder, "-m", "pipeline", *EVALUATE[1:], 'evaluate.options={"mean-gap": {"order": 1}}')
    after = json.loads(result.read_text())["metrics"]
    assert after["mean-gap-domain"] > before["mean-gap-domain"]  # the sum of all deviations against their root
    assert {**after, "mean-gap-domain": 0, "mean-gap-domain@valid": 0} == {
        **before,
        "mean-gap-domain": 0,
        "mean-gap-domain@valid": 0,
    }
    said = python(folder, "-m", "slurm", "plan", "runs/mine", "sample.sampler.options.place=2", code=2)
    assert "sample.sampler.options: place: found 2; input should be less than 1" in said


def test_an_exported_network_names_the_plugins_that_it_needs(folder):
    """The overrides of the import name the source and the sampler alone: the network comes with the folder."""
    overrides = [override for override in SUBMIT[2:] if override.startswith(("cluster=", "data=", "sample."))]
    made = python(folder, "-m", "pipeline", "import", "exported", "name=again", *overrides, PLUGINS)
    assert "runs/again" in made
    assert "- plain" in (folder / "runs" / "again" / "config.yaml").read_text()


def test_mistakes_in_a_plugins_settings_are_said_as_those_of_the_package(folder):
    overrides = [override for override in SUBMIT[2:] if not override.startswith("name=")]  # there is a run of that name
    plan = ["-m", "slurm", "plan", *overrides, "name=another"]
    said = python(folder, *plan, "model.kind=plian", code=2)
    assert "model.kind: found 'plian', expected one of" in said and "Did you mean 'plain'?" in said
    said = python(folder, *plan, "model.widht=4", "model.width=5", "objective.limit=-1", code=2)
    assert "model.widht: no such setting. Did you mean 'model.width'?" in said and "objective.limit: found -1" in said
    said = python(folder, *plan, "model.width=5", code=2)
    assert "model.width: found 5, expected an even number" in said
    assert "torch" not in python(folder, "-X", "importtime", *plan).replace("torch-", "")


@functools.cache
def texts() -> dict[str, set[str]]:
    """The texts in each file of code, but for documentation."""
    found = {}
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        prose = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
        constants = {n.value for n in nodes if isinstance(n, ast.Constant) and id(n) not in prose}
        found[str(path.relative_to(ROOT))] = {text for text in constants if isinstance(text, str)}
    return found


def named(name: str) -> set[str]:
    """Files of code that know a kind: they have its name as a text, or a text that begins with it."""
    return {path for path, those in texts().items() if any(t == name or t.startswith(f"{name}-") for t in those)}


# Files of other programs, which name theirs alike, and the commands that read and write them.
FORMATS = tuple(f"pipeline/{name}" for name in ("diffusers_io/", "export", "import_diffusers.py", "model_card.py"))
# They name the columns that reports show first, and the pairs that are drawn against each other.
REPORTS = ("slurm/sweep/", "pipeline/compare.py")


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.name)
def test_one_file_of_code_knows_a_network(kind):
    files = {path for path in named(kind.name) if not path.startswith(FORMATS)}
    files -= {"pipeline/config/needs.py"} if kind.name == "diffusers" else set()  # refuses to train it
    assert files == {"pipeline/config/schema_model.py"}


@pytest.mark.parametrize("name", ["kid", "is", "precision", "recall", "density", "coverage", "cmmd"])
def test_two_files_of_code_know_a_metric(name):
    """Its registration, and the function that the registration names."""
    files = {path for path in named(METRICS[name].name) if not path.startswith(REPORTS)}
    of_training = {"slurm/costs.py", "pipeline/model_card.py", "pipeline/exported.py"}
    files -= of_training if name == "precision" else set()
    assert files == {"pipeline/config/schema_metrics.py", "pipeline/metrics/suite.py"}
