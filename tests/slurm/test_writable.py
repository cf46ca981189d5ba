"""What cannot be written is said in a sentence, with its owner, before anything is submitted."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from launching import profile, stand_in
from safetensors.numpy import save_file

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import append_line, atomic_path, read_lines, write_text
from pipeline.runtime.run_lock import only_trainer
from slurm import cancel, plan
from slurm.__main__ import main
from slurm.access import held
from slurm.ledger import LEDGER, note, users_of
from slurm.progress import ProgressTable
from slurm.submit import refuse_unwritable, run_here, submit_graph
from slurm.sweep.settings import SweepDir, settings_from


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that every user of this machine can reach."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def as_a_colleague(root: Path, *, but: Path | None = None, files: int = 0o444, user: int = 65534) -> Iterator[None]:
    """As a user who may write to every folder below root, `but` one, and to none of the files that are there.

    For root itself, permissions do not bind: root becomes nobody for a while.
    """
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path == but else 0o777 if path.is_dir() else files)
    before = os.geteuid()
    if before == 0:
        os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.cluster
def test_a_colleagues_ledger_is_named_and_nothing_is_queued(cluster, root):  # noqa: ARG001 (it sets SLURM_CONF)
    launch = stand_in(root, profile("testbed", options={"begin": "now+900"}), only=("train", "sample"))
    note(launch.run, "submitted", job="train", ids=["1"], executor="slurm", born=[], snapshot="")
    with as_a_colleague(root):
        for act in (submit_graph, lambda launch: plan.write(launch, root / "scripts")):
            with pytest.raises(UserError, match=rf"cannot write to {launch.run.jobs / LEDGER}, which belongs to \w+"):
                act(launch)
    queue = subprocess.run(["squeue", "-h", "-o", "%k"], capture_output=True, text=True, check=True)
    assert str(root) not in queue.stdout


def test_a_colleagues_ledger_stops_what_runs_here_and_cancelling(root):
    launch = stand_in(root, profile("local"), only=("train",))
    job = subprocess.Popen(["sleep", "3600"])
    born = Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()[19]
    note(launch.run, "submitted", job="train", ids=[str(job.pid)], executor="local", born=[born], snapshot="")
    try:
        with as_a_colleague(root):
            for act in (lambda: run_here(launch, ProgressTable(["train"], title="")), lambda: cancel.cancel([launch])):
                with pytest.raises(UserError, match=rf"cannot write to {launch.run.jobs / LEDGER}, which belongs to"):
                    act()
        assert job.poll() is None
    finally:
        job.kill()
        job.wait()


@pytest.mark.parametrize("setting", ["runs_dir", "data_dir"])
def test_a_file_where_a_folder_should_be_is_named_with_its_setting(tmp_path, capsys, setting):
    (tmp_path / "file").touch()
    places = {"runs_dir": tmp_path / "runs", "data_dir": tmp_path / "data", setting: tmp_path / "file" / "here"}
    overrides = [f"{name}={path}" for name, path in places.items()]
    assert main(["submit", "experiment=glyphs16", "cluster=local", *overrides]) == 2
    said = capsys.readouterr().err
    assert f"{setting}: cannot write to {places[setting]}" in said and f"{tmp_path / 'file'} belongs to" in said
    assert not list(tmp_path.rglob("jobs"))


def test_a_folder_of_somebody_else_is_named(root):
    launch = stand_in(root, profile("local"), only=("train",))
    refused = pytest.raises(UserError, match=rf"runs_dir: cannot write to {launch.run.path}: .* belongs to \w+")
    with as_a_colleague(root, but=launch.run.path), refused:
        run_here(launch, ProgressTable(["train"], title=""))


def test_a_sweep_says_the_same(tmp_path):
    (tmp_path / "file").touch()
    settings = settings_from(["experiment=glyphs16", "name=s", "train.global_batch=8,16"])
    with pytest.raises(UserError, match=r"sweep\.folder: cannot write to"):
        SweepDir(tmp_path / "file" / "s").write(settings)


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o002)
    try:
        append_line(tmp_path / "ledger", {})
        write_text(tmp_path / "text", "x")
        with atomic_path(tmp_path / "weights") as partial:
            save_file({"x": np.zeros(2)}, partial)
        with held(tmp_path / "lock", refusal=""), only_trainer(tmp_path / "training.lock"):
            pass
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("ledger", "text", "weights", "lock", "training.lock"), "0o664"
    )


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_stops_nothing(tmp_path, monkeypatch, number):
    """None is mounted here: the call answers as on such a one."""

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with held(tmp_path / "lock", refusal="never said"):
        pass


def test_a_colleagues_lock_is_taken_and_excludes(root):
    with held(root / "lock", refusal="mine"):
        pass
    refused = pytest.raises(UserError, match="taken")
    with as_a_colleague(root), held(root / "lock", refusal="theirs"), refused, held(root / "lock", refusal="taken"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_a_colleague_sees_a_run_retries_it_where_files_allow_and_needs_no_name(root, capsys):
    """User 54321 has no entry in /etc/passwd, as in many containers."""
    launch = stand_in(root, profile("local"), only=("train",))
    assert run_here(launch, ProgressTable(["train"], title="")) == 0
    with as_a_colleague(root, user=54321):
        assert main(["status", str(launch.run.path)]) in (0, 1)
        assert "complete" in capsys.readouterr().out
        with pytest.raises(UserError, match="belongs to root"):
            submit_needs_writing(launch)
    with as_a_colleague(root, files=0o666, user=54321):
        submit_needs_writing(launch)
        note(launch.run, "submitted", job="train", ids=["7"], executor="slurm", born=[], snapshot="")
    rows = read_lines(launch.run.jobs / LEDGER)
    assert rows[-1]["user"] == "user 54321" and users_of([launch.run]) == {"0", "54321"}


def submit_needs_writing(launch) -> None:
    """What `retry` tests before it queues anything of a run that is not complete."""
    (launch.run.checkpoints / "finished.json").unlink(missing_ok=True)
    refuse_unwritable(launch)
