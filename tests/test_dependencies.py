"""What the product imports is what pyproject.toml declares."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

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
