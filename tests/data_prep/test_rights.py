"""Folders that this user may not write or read: a sentence with setting, path and owner, and no traceback."""

import getpass
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from prepared import folder_of_pictures

from data_prep.__main__ import main

# As root permission bits do not bind, so what is tested runs as a user who owns nothing. Everything is imported before,
# by a first run as root: that user may not be allowed to read the interpreter's own folder.
PROGRAM = """
import contextlib, io, json, os, sys
from data_prep.__main__ import main
calls = json.loads(sys.argv[1])
os.umask(0o022)
assert main(calls["first"]) == 0
for path in calls["closed"]:
    os.chmod(path, 0o000)
for path in calls["read_only"]:
    for directory, _, _ in os.walk(path):
        os.chmod(directory, 0o555)
os.chmod(calls["open"], 0o777)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
said = []
for argv in calls["then"]:
    with contextlib.redirect_stderr(io.StringIO()) as text:
        said.append([main(argv), text.getvalue()])
json.dump(said, sys.stdout)
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="rights-"))
    path.chmod(0o755)
    yield path
    for directory, _, _ in os.walk(path):
        Path(directory).chmod(0o755)
    shutil.rmtree(path)


def test_what_may_not_be_written_or_read_is_named_with_setting_path_and_owner(root: Path) -> None:
    images = folder_of_pictures(root / "images", 20)
    closed, shut, into, ours = (root / name for name in ("closed", "shut", "into", "ours"))
    for path in (closed, shut, into, ours):
        path.mkdir()
    overrides = [
        "data=folder",
        "data.image_size=16",
        "data.split.valid=0",
        "evaluate.domain.enabled=false",
        "--workers=1",
    ]
    first = ["all", *overrides, f"data.source.path={images}", f"data_dir={root / 'data'}"]
    then = [
        first,  # finished by somebody else: there is nothing to write
        ["all", *overrides, f"data.source.path={images}", f"data_dir={closed}"],
        ["all", *overrides, f"data.source.path={images}", f"data_dir={closed / 'deeper' / 'data'}"],
        ["all", *overrides, f"data.source.path={shut}", f"data_dir={ours}"],
        ["fetch", "weights", "niqe", "--into", str(into / "weights"), "--mirror", "http://127.0.0.1:1"],
        ["inspect", *overrides[:-1], *first[-2:]],
    ]
    calls = {"first": first, "then": then, "closed": [str(shut)], "open": str(ours)}
    calls["read_only"] = [str(closed), str(into), str(root / "data")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(calls)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (again, finished), *refused = json.loads(done.stdout)
    assert again == 0 and "verify: every byte" in finished
    owner, mine = getpass.getuser(), "nobody" if os.geteuid() == 0 else getpass.getuser()
    expected = [
        ("data_dir", f"{closed} belongs to {owner}"),
        ("data_dir", f"{closed} belongs to {owner}"),
        ("data.source.path", f"{shut} belongs to {owner}"),
        ("--into", f"{into} belongs to {owner}"),
        ("data_dir", f"belongs to {owner}"),
    ]
    for (code, text), (setting, whose) in zip(refused, expected, strict=True):
        assert code == 2 and f"error: {setting}: cannot use" in text, text
        assert f"{whose}, and this process runs as {mine}" in text


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    overrides = ["fetch", "data=glyphs16", "data.source.choose=[DejaVuSans]"]
    for place in (tmp_path / "file", tmp_path / "file" / "data"):
        assert main([*overrides, f"data_dir={place}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: data_dir: cannot use") and f"{tmp_path / 'file'} belongs to" in said
