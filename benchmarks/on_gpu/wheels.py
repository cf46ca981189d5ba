"""The packages that the project needs, as files for a machine without internet."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("export", "sweep", "lsun")
TESTS = ("pytest", "pytest-timeout", "hypothesis")
GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")


def fetch(folder: Path, *, python: str, there: Path | None) -> int:
    """Put a wheel of each package, in the version installed here, into `folder`. `there`: what the machine has."""
    folder.mkdir(parents=True, exist_ok=True)
    versions = needed(python, installed_there(there))
    failed = [name for name, version in versions.items() if not download(folder, name, version, python=python)]
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 2**20
    print(f"{len(versions) - len(failed)} packages, {size:.1f} MiB in {folder}, for Python {python} on x86-64 Linux")
    print("there: python3 -m pip install --no-index --no-deps --target /tmp/site FOLDER/*.whl; PYTHONPATH=/tmp/site")
    for name in failed:
        print(f"  not found for that Python: {name}=={versions[name]}")
    return int(bool(failed))


def installed_there(path: Path | None) -> dict[str, str]:
    """Name -> version of a `pip list --format=freeze`. Lines that are no name==version are passed over."""
    pairs = (line.strip().split("==") for line in path.read_text().splitlines()) if path else ()
    return {canonicalize_name(pair[0]): pair[1] for pair in pairs if len(pair) == 2}


def needed(python: str, there: dict[str, str]) -> dict[str, str]:
    """Name -> version of everything that the project imports, and what that requires. torch has to be there."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    queue = [(Requirement(text), EXTRAS) for text in importlib.metadata.requires("mudi") or ()]
    queue += [(Requirement(text), ("",)) for text in TESTS]
    found: dict[str, str] = {}
    while queue:
        requirement, extras = queue.pop()
        name = canonicalize_name(requirement.name)
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})
            for extra in (*extras, "")
        )
        has = there.get(name)
        if not wanted or name in (*found, "torch", "mudi") or (has and requirement.specifier.contains(Version(has))):
            continue
        found[name] = importlib.metadata.version(name)
        queue += [(Requirement(text), (*requirement.extras, "")) for text in importlib.metadata.requires(name) or ()]
    return dict(sorted(found.items()))


def download(folder: Path, name: str, version: str, *, python: str) -> bool:
    """A wheel for that Python, or one built here from a source that is Python alone."""
    pip = [sys.executable, "-m", "pip"]
    platforms = [word for tag in GLIBC for word in ("--platform", f"{tag}_x86_64")]
    argv = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    argv += ["--python-version", python, *platforms, "--dest", str(folder), f"{name}=={version}"]
    if subprocess.run([*pip, *argv], capture_output=True).returncode == 0:
        return True
    built = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), f"{name}=={version}"]
    if subprocess.run([*pip, *built], capture_output=True).returncode:
        return False
    made = next(folder.glob(f"{name.replace('-', '_')}-*.whl"), None)
    return made is not None and made.name.endswith("-none-any.whl")
