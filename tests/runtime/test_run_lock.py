"""One trainer for a run directory: who comes second is told who is there; a dead one keeps nobody out."""

import errno
import json
import os
import re
import signal
import socket
import threading
import time
import uuid

import pytest
import tiny

from pipeline.runtime import run_lock
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import RunDir
from pipeline.runtime.run_lock import only_trainer
from pipeline.train import loop

LONG = {"duration": "1000000 steps", "log_every": "1 steps", "checkpoint_every": "100 steps"}


def training(cfg, *, world_size=1):
    """A run in which ranks are training."""
    ranks, run = tiny.start(cfg, world_size=world_size), RunDir(cfg.runs_dir / cfg.name)
    while not tiny.history(run):
        assert all(rank.is_alive() for rank in ranks), (cfg.runs_dir / f"{cfg.name}.log").read_text()
        time.sleep(0.01)
    return ranks, run


def ended(ranks, number):
    for rank in ranks:
        os.kill(rank.pid, number)
    for rank in ranks:
        rank.join(60)


def test_a_second_trainer_is_told_who_trains_and_touches_nothing(tmp_path):
    cfg = tiny.config(tmp_path, **LONG)
    tiny.prepare(cfg)
    (first,), run = training(cfg)
    with pytest.raises(
        UserError,
        match=rf"{run.path} is being trained by process {first.pid} on {socket.gethostname()}.*kill {first.pid}",
    ):
        loop.train(cfg, run)
    second = tiny.start(cfg, world_size=2)
    for rank in second:
        rank.join(60)
    log = (cfg.runs_dir / f"{cfg.name}.log").read_text()
    assert log.count(f"UserError: {run.path} is being trained by process {first.pid}") == 2  # both ranks say the same
    assert first.is_alive() and len(run.starts.read_text().splitlines()) == 1
    ended([first], signal.SIGKILL)
    (again,) = tiny.start(cfg)  # nobody waits for a dead one
    while len(run.starts.read_text().splitlines()) == 1:
        assert again.is_alive(), (cfg.runs_dir / f"{cfg.name}.log").read_text()
        time.sleep(0.01)
    ended([again], signal.SIGTERM)
    assert again.exitcode == 75 and run.lock.read_text() == ""
    stopped = (cfg.runs_dir / f"{cfg.name}.log").read_text()
    (step,) = re.findall(r"asked to stop: saved at step (\d+)", stopped)
    assert f"saved at step {step} ({int(step) * 8 / 1000:g} kimg)" in stopped and "same command goes on" in stopped


def named(path, **changes):
    """The lock as another holder left it."""
    holder = {"host": "elsewhere", "pid": 1, "job": None, "restart": "0", "since": 0.0, "token": uuid.uuid4().hex}
    path.write_text(json.dumps(holder | changes))


@pytest.fixture(params=["flock", "no flock"])
def path(request, tmp_path, monkeypatch):
    """A lock file, on a file system as it is here and on one that refuses locks, as some NFS and Lustre mounts do."""

    def refused(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # no such file system can be mounted here

    if request.param == "no flock":
        monkeypatch.setattr(run_lock.fcntl, "flock", refused)
    return tmp_path / "training.lock"


def test_a_holder_on_another_host_that_touches_its_file_is_alive(path):
    """Granted by the kernel or not: a lock may be each node's own."""
    named(path, pid=4711, job="12")
    done = threading.Event()
    touching = threading.Thread(target=run_lock._touch, args=(path, done, 0.05))
    touching.start()
    try:
        with pytest.raises(UserError, match=r"process 4711 on elsewhere \(since .*, job 12\)"), only_trainer(path):
            pass
    finally:
        done.set()
        touching.join()


def test_a_holder_on_another_host_that_is_silent_is_dead(path):
    named(path)
    with only_trainer(path, watch=0.3):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert path.read_text() == ""


def test_a_job_that_was_queued_again_does_not_wait_for_its_earlier_start(path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    named(path, job="12")
    monkeypatch.setattr(run_lock, "_is_touched", lambda *_: pytest.fail("it watched"))
    with only_trainer(path, watch=0.3):
        pass


def test_one_of_two_gets_it(path):
    with (
        only_trainer(path, beat=0.05),
        pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()}"),
        only_trainer(path),
    ):
        pass
    with only_trainer(path):
        pass


def test_one_who_gives_it_up_while_watched_is_gone(path):
    named(path)
    giving_up = threading.Timer(0.2, lambda: os.truncate(path, 0))
    giving_up.start()
    with only_trainer(path, watch=60):
        pass
    giving_up.join()
