"""The arrows between modules, the sizes of files and functions, and that no setting is decoration."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.base import Settings
from pipeline.config.explain import _classes
from pipeline.config.schema import Config

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "slurm", "data_prep")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
LINES, FUNCTION_LINES, POSITIONAL = 600, 80, 3

# Lower knows nothing of higher. Names are prefixes; the longest that fits counts. Members of one level are siblings
# that do not import each other, unless they share the name.
LEVELS = {
    "pipeline.runtime.errors": -2,  # what everybody may use: errors and whole files
    "pipeline.runtime.files": -1,
    "pipeline.config": 0,
    "pipeline.runtime": 1,
    "pipeline.data": 2,
    "pipeline.models": 2,
    "pipeline.diffusion": 2,
    "pipeline.metrics": 2,
    "pipeline.ema": 2,
    "pipeline.objectives": 3,
    "pipeline.checkpoint": 3,
    "pipeline.reference_set": 3,
    "pipeline.train": 4,
    "pipeline.sample": 4,
    "pipeline.reconstruct": 4,
    "pipeline.evaluate": 4,
    "pipeline.compare": 4,
    "pipeline.image_sets": 3,
    "pipeline.score": 4,
    "pipeline.export": 4,
    "pipeline.import_diffusers": 4,
    "pipeline.exported": 3.6,
    "pipeline.diffusers_io": 2.5,
    "pipeline.models.pretrained": 2.6,
    "pipeline.inference": 3.5,  # what jobs that make images share
    "pipeline.curve": 4.5,  # samples, evaluates and compares
    "pipeline.visualize": 3.7,  # `sample` shows a strip
    "pipeline.likelihood": 4,
    "pipeline.model_card": 3.7,  # `export` writes it
    "pipeline.demo": 5,
    "pipeline.__main__": 5,
}
SLURM_MAY = ("slurm", "pipeline.config", "pipeline.runtime.")


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from pipeline import checkpoint` imports a module, `from pipeline.checkpoint import read` a name of one.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {m for m in inner if (ROOT / Path(*m.split("."))).with_suffix(".py").exists()}
            found |= files or {node.module}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def level(module: str) -> tuple[str, int]:
    room = max((name for name in LEVELS if f"{module}.".startswith(f"{name}.")), key=len, default="")
    return room, LEVELS.get(room, 5)


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "pipeline")], ids=module_of)
def test_the_pipeline_imports_downwards(path):
    room, height = level(module_of(path))
    for name in imports(path):
        assert name.startswith("pipeline"), f"{path} imports {name}: pipeline imports nothing else of ours"
        other, below = level(name)
        assert below < height or other == room, f"{path} (level {height}) imports {name} (level {below})"


def test_every_room_has_a_level():
    rooms = {module_of(p) for p in FILES if p.parent == ROOT / "pipeline" or p.name == "__init__.py"}
    assert [r for r in sorted(rooms) if r.startswith("pipeline.") and not level(r)[0]] == []


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "slurm")], ids=module_of)
def test_slurm_knows_only_settings_and_run_directories(path):
    for name in imports(path):
        assert f"{name}.".startswith(SLURM_MAY), f"{path} imports {name}"


def test_slurm_and_settings_do_not_load_torch():
    code = (
        "import sys, pkgutil, importlib, slurm, pipeline.config\n"
        "for package in (slurm, pipeline.config):\n"
        "    for m in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert text.count("\n") <= LINES, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{path}: {node.name} has {length} lines"
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            if not node.name.startswith("_") and node.name != "forward":
                limit = POSITIONAL + 1  # a formula may need one more tensor than a person should have to count
                assert len(arguments) <= limit, f"{path}: {node.name} has {len(arguments)} positional arguments"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_what_is_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    if path.read_text().strip():
        assert ast.get_docstring(tree), f"{path} does not say what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def settings_of(model: type[Settings], seen: set[type]) -> dict[str, set[type]]:
    """Every field name of the schema, and the classes that have it."""
    found: dict[str, set[type]] = {}
    if model in seen:
        return found
    seen.add(model)
    for name, field in model.model_fields.items():
        found.setdefault(name, set()).add(model)
        for inner in _classes(field.annotation):
            for key, classes in settings_of(inner, seen).items():
                found.setdefault(key, set()).update(classes)
    return found


def test_every_setting_is_read_somewhere():
    read = {
        node.attr for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
    }
    # What is taken over as a whole (`**settings.model_dump()`) is read under the receiving function's argument names.
    arguments = {
        node.arg for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arg)
    }
    unread = {name for name in settings_of(Config, set()) if name not in read | arguments}
    assert unread == set()


def test_the_newcomers_path_is_short():
    """The files that the README names for "what does a training step do"."""
    text = (ROOT / "README.md").read_text()
    path = text[text.index("To see what a training step does") : text.index("Jobs begin in")]
    files = [ROOT / name for name in re.findall(r"`([\w/.]+)`", path)]
    assert len(files) == 6
    assert sum(len(file.read_text().splitlines()) for file in files) <= 1000
