"""What a job leaves to others: caches that they cannot fill, secrets that they cannot read, code without the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launching import profile
from test_snapshot import checkout as checkout

from slurm import snapshot
from slurm.access import who_else_writes
from slurm.rank import CACHE, make_cache


def cache_at(monkeypatch, path) -> str:
    """Where caches go where the batch script names this folder."""
    monkeypatch.setenv(CACHE, str(path))
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{path}/triton")
    make_cache()
    assert os.environ["TRITON_CACHE_DIR"] == f"{os.environ[CACHE]}/triton"
    return os.environ[CACHE]


def test_the_folder_of_caches_is_this_users_alone(tmp_path, monkeypatch):
    path = tmp_path / "node" / "mudi-0-1-0"
    assert cache_at(monkeypatch, path) == str(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert cache_at(monkeypatch, path) == str(path)  # another rank of the node


def test_a_folder_of_caches_that_others_made_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    for name in ("open", "link"):
        found = cache_at(monkeypatch, tmp_path / name)
        assert found != str(tmp_path / name) and Path(found).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="makes another user's folder: needs root")
def test_a_folder_of_another_user_is_left_alone(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 65534, 65534)
    assert cache_at(monkeypatch, theirs) != str(theirs)


@pytest.mark.parametrize(
    "line", ["export WANDB_API_KEY=abc123", "HF_TOKEN='hf_x' true", "export A=1 MY_PASSWORD=x", "export aws_secret=9"]
)
def test_a_secret_in_the_profile_is_refused(line):
    with pytest.raises(ValueError, match=r"found a value for \w+, expected no secrets"):
        profile("slurm_generic", setup=(line,))


@pytest.mark.parametrize(
    "line", [". ~/.my_secrets", "export HF_TOKEN_PATH=/home/me/token", "export HF_TOKEN=$(cat ~/token)", "export A=1"]
)
def test_a_place_of_a_secret_is_taken(line):
    assert profile("slurm_generic", setup=(line,)).setup == (line,)


def test_a_snapshot_leaves_out_what_git_ignores_and_large_files(checkout, tmp_path, capsys):
    (checkout / ".gitignore").write_text("pipeline/private/\n")
    (checkout / "pipeline" / "private").mkdir()
    (checkout / "pipeline" / "private" / "notes.py").write_text("mine\n")
    (checkout / "configs" / "new.yaml").write_text("a: 1\n")
    (checkout / "configs" / "dump.json").write_text("0" * (snapshot.MOST_BYTES + 1))
    taken = snapshot.take(tmp_path / "s", root=checkout)
    names = {str(path.relative_to(taken)) for path in taken.rglob("*") if path.is_file()}
    assert "configs/new.yaml" in names and "slurm/a.py" in names
    assert not names & {"pipeline/private/notes.py", "configs/dump.json"}
    assert f"not copied for the jobs: {checkout}/configs/dump.json" in capsys.readouterr().err


def test_who_else_may_write_is_told(tmp_path):
    for mode, who in ((0o700, ""), (0o755, ""), (0o777, "everybody")):
        tmp_path.chmod(mode)
        assert who_else_writes(tmp_path) == who


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another group: needs root")
def test_a_group_that_may_write_is_told_unless_it_is_the_users_own(tmp_path):
    tmp_path.chmod(0o775)
    assert who_else_writes(tmp_path) == ""  # root's own group
    os.chown(tmp_path, -1, 12)
    name = subprocess.run(
        [sys.executable, "-c", "import grp; print(grp.getgrgid(12).gr_name)"], capture_output=True, text=True
    )
    assert who_else_writes(tmp_path) == f"group {name.stdout.strip()}"
