"""What the product imports is what pyproject.toml declares."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tiny

from pipeline.runtime.run_dir import create_run

ROOT = Path(__file__).resolve().parent.parent
OURS = ("pipeline", "slurm", "data_prep")


def normal(requirement: str) -> str:
    """The name of a requirement as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "dev" for name in names]
    return {normal(name) for name in [*project["dependencies"], *extras]}


def imported() -> dict[str, str]:
    """Module -> a file that imports it, of all that neither Python nor this project brings."""
    found = {}
    for path in (path for package in OURS for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, *OURS}}


def test_every_import_is_declared_and_everything_declared_is_imported():
    packages, used = packages_distributions(), set()
    for module, path in imported().items():
        brings = {normal(package) for package in packages.get(module, [module])} & declared()
        assert brings, f"{path} imports {module}, which pyproject.toml does not declare"
        used |= brings
    assert declared() - used == set(), "declared in pyproject.toml, imported nowhere"


def test_every_library_that_mypy_is_told_about_is_imported():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    told = {name.split(".")[0] for override in settings["overrides"] for name in override["module"]}
    assert told - imported().keys() == set()


LARGE = (
    "torch",
    "scipy",
    "matplotlib",
    "optuna",
    "torchmetrics",
    "tensorboard",
    "accelerate",
    "pandas",
    "transformers",
)
COMPILER = ("torch._dynamo", "sympy")  # a second, which an optimiser alone needs


@pytest.mark.parametrize(
    ("package", "argv", "but"),
    [
        ("pipeline", ["--help"], (*LARGE, "numpy", "pydantic", "hydra")),
        ("slurm", ["--help"], LARGE),
        ("slurm", ["plan", "experiment=glyphs16", "cluster=local"], LARGE),
        ("slurm", ["status", "RUN"], LARGE),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_that_computes_nothing_loads_nothing_large(tmp_path, package, argv, but):
    run = create_run(tiny.config(tmp_path))
    argv = [str(run.path) if argument == "RUN" else argument for argument in argv]
    code = (
        "import atexit, runpy, sys\n"
        f"sys.argv = [{package!r}, *{argv!r}]\n"
        f"atexit.register(lambda: print('loaded:', [name for name in {but!r} if name in sys.modules]))\n"
        f"runpy.run_module({package!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr  # 1: not everything is there
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize(
    ("module", "but"),
    [
        ("pipeline.train.job", ("scipy", "matplotlib", "torchmetrics", *COMPILER)),
        ("pipeline.sample", ("scipy", "matplotlib", "torchmetrics", "tensorboard", "accelerate", *COMPILER)),
        ("pipeline.export", ("scipy", "matplotlib", "torchmetrics", "tensorboard", "accelerate", *COMPILER)),
        ("pipeline.evaluate", ("torchmetrics", "scipy.stats", "accelerate", *COMPILER)),
    ],
)
def test_a_job_loads_what_it_needs(module, but):
    code = (
        f"import sys, torch, {module}\n"
        "from pipeline.runtime.numerics import set_numerics\n"
        "torch.cuda.is_available() or set_numerics()\n"  # determinism on a GPU needs the compiler's settings
        f"print([name for name in {but!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
