"""A copy of the code beside the runs, so that queued jobs run what was submitted, whatever is edited meanwhile.

It is named by its content, so that the runs of a grid share one; the ledger of each run says which is its own.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.runtime.commit import RECORD, ROOT
from pipeline.runtime.errors import Incomplete
from pipeline.runtime.files import atomic_path, read_json, write_json

PARTS = ("pipeline", "slurm", "data_prep", "configs")
FOLDER = ".code"  # beside the run directories
DIFF = "uncommitted.diff"
MOST_BYTES = 2**20  # of one file: code and settings are smaller


def take(folder: Path, *, root: Path = ROOT) -> Path:
    """Copy the packages and configs under `root` to `folder/<content hash>`, unless that is there already.

    What git ignores, and what is larger than `MOST_BYTES`, is left out; the latter is said. A file that is not yet in
    git is copied: a new experiment begins as one.

    `snapshot.json` in it records the git commit, whether files differed from it (then `uncommitted.diff` says how)
    and the content hash. A snapshot of a snapshot keeps the first one's record.
    """
    files = list(_files(root))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    target = (folder / digest.hexdigest()[:12]).resolve()
    if (target / RECORD).is_file():
        return target
    try:
        with atomic_path(target) as partial:
            for path in files:
                copy = partial / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            _record(partial, root, digest.hexdigest())
    except (Incomplete, OSError):
        if not (target / RECORD).is_file():
            raise
        # Another submitter finished the same copy meanwhile.
    return target


def record_of(snapshot: Path) -> dict[str, str | bool]:
    """What a snapshot says of itself: commit, dirty, sha256."""
    return dict(read_json(snapshot / RECORD))


def _files(root: Path) -> Iterator[Path]:
    ignored = set(_git(root, "ls-files", "--others", "--ignored", "--exclude-standard", "--", *PARTS).splitlines())
    for part in PARTS:
        for path in sorted((root / part).rglob("*")):
            if path.suffix not in (".py", ".yaml", ".json", ".html") or not path.is_file():
                continue
            if str(path.relative_to(root)) in ignored:
                continue
            if path.stat().st_size > MOST_BYTES:
                print(f"slurm: not copied for the jobs: {path}, {path.stat().st_size >> 20} MiB", file=sys.stderr)
                continue
            yield path


def _record(partial: Path, root: Path, sha256: str) -> None:
    if (root / RECORD).is_file():
        for name in (RECORD, DIFF):
            if (root / name).is_file():
                shutil.copyfile(root / name, partial / name)
        return
    commit = _git(root, "rev-parse", "HEAD").strip() or "unknown"
    diff = _git(root, "diff", "HEAD", "--", *PARTS)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *PARTS)
    (partial / DIFF).write_text(diff + "".join(f"# not in git: {name}\n" for name in new.splitlines()))
    write_json(partial / RECORD, {"commit": commit, "dirty": bool(diff or new), "sha256": sha256})


def _git(root: Path, *argv: str) -> str:
    try:
        done = subprocess.run(["git", "-C", root, *argv], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
