"""A run that is killed anywhere and started again is the run that was never interrupted, to the bit."""

import functools
import os
import random
import shutil
import signal
import socket
import threading
import time

import pytest
import tiny

from pipeline import checkpoint
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import append_line, read_lines
from pipeline.runtime.run_dir import COMMIT, FINISHED, RunDir, create_run, open_run, step_name
from pipeline.runtime.run_lock import only_trainer
from pipeline.train.optim import lr_at

STEPS = 40
OFTEN = {
    "duration": f"{STEPS} steps",
    "checkpoint_every": "2 steps",
    "log_every": "4 steps",
    "validate_every": "8 steps",
}


def kill_at_random(cfg, *, kills, world_size=1, seed=0):
    """Run to the end, killing all ranks with SIGKILL at `kills` random moments. Returns how many found it running."""
    rng, landed = random.Random(seed), 0
    run = RunDir(cfg.runs_dir / cfg.name)
    for _ in range(kills):
        ranks = tiny.start(cfg, world_size=world_size)
        # Some saves after this start has begun to train, as long as a save takes here: on any machine, steps, saves and
        # rotations are hit.
        first = saved_after(run, run.latest_step() or 0, ranks)
        wait = rng.uniform(0, 3) * (saved_after(run, run.latest_step() or 0, ranks) - first)
        time.sleep(wait)
        alive = [r for r in ranks if r.is_alive()]
        landed += bool(alive)
        for r in alive:
            os.kill(r.pid, signal.SIGKILL)
        for r in ranks:
            r.join()
        if run.finished():
            break
    return landed


def saved_after(run, step, ranks):
    """When the first checkpoint after that step was there, or a rank had ended."""
    while all(r.is_alive() for r in ranks) and (run.latest_step() or 0) <= step:
        time.sleep(0.002)
    return time.monotonic()


MODELS = {"diffusion": tiny.UNET, "game": tiny.GAME, "autoencoder": tiny.AUTOENCODER, "vae": tiny.VAE}


@pytest.mark.timeout(1800)  # each start takes seconds, and a busy machine several times as long
@pytest.mark.parametrize(
    ("model", "optimizer", "world_size", "kills"),
    [
        ("diffusion", "adamw", 1, 2),
        ("diffusion", "muon", 1, 1),
        ("diffusion", "adamw", 2, 2),
        ("game", "adamw", 1, 2),
        ("game", "adamw", 2, 1),
        ("autoencoder", "adamw", 1, 2),
        ("vae", "adamw", 1, 1),
    ],
)
def test_killed_and_resumed_is_uninterrupted(tmp_path, model, optimizer, *, world_size, kills):
    train = {**OFTEN, "optim": {"kind": optimizer, "lr": 3e-3, "warmup": "4 steps"}}
    whole = tiny.config(tmp_path, name="whole", model=MODELS[model], **train)
    cut = tiny.config(tmp_path, name="cut", model=MODELS[model], **train)
    tiny.prepare(whole)
    expected = tiny.run(whole, world_size=world_size)
    assert kill_at_random(cut, kills=kills, world_size=world_size) >= 1
    found = tiny.run(cut, world_size=world_size)
    assert tiny.fingerprint(found, STEPS) == tiny.fingerprint(expected, STEPS)
    assert tiny.history(found) == tiny.history(expected)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_twenty_random_kills(tmp_path, model, world_size):
    steps = 1000  # a kill comes some 25 steps after the one before: twenty find the run in training on any machine
    often = {**OFTEN, "duration": f"{steps} steps"}
    whole = tiny.config(tmp_path, name="whole", model=MODELS[model], **often)
    cut = tiny.config(tmp_path, name="cut", model=MODELS[model], **often)
    tiny.prepare(whole)
    expected = tiny.run(whole, world_size=world_size)
    assert kill_at_random(cut, kills=20, world_size=world_size) == 20
    found = tiny.run(cut, world_size=world_size)
    assert tiny.fingerprint(found, steps) == tiny.fingerprint(expected, steps)
    assert tiny.history(found) == tiny.history(expected)


def views(cfg, *, hidden=None, newer=False):
    """Make a run directory as rank 1 sees it: the shared one, but for its listing of checkpoints."""
    run, seen = RunDir(cfg.runs_dir / cfg.name), RunDir(cfg.runs_dir / "seen" / cfg.name)
    seen.checkpoints.mkdir(parents=True)
    shutil.copy(run.config, seen.config)
    for path in run.checkpoints.glob("step-*"):
        if path.name != hidden:
            (seen.checkpoints / path.name).symlink_to(path)
    if newer:  # one that another start rotated away or set aside since
        (seen.checkpoints / step_name(max(run.steps()) + 1)).symlink_to(run.checkpoint(min(run.steps())))


def rank_one_sees_otherwise(cfg, rank, *, late=None, patience=60.0):
    """`late`: a checkpoint that rank 1 sees a second later than rank 0."""
    if rank == 0:
        return cfg
    checkpoint.LATE_SECONDS = patience
    if late:
        target, link = (folder / cfg.name / "checkpoints" / late for folder in (cfg.runs_dir, cfg.runs_dir / "seen"))
        threading.Timer(1.0, lambda: link.symlink_to(target)).start()
    return cfg.model_copy(update={"runs_dir": cfg.runs_dir / "seen"})


@pytest.fixture
def stopped(tmp_path):
    """A run of two ranks as it was after step 12 of 15, and what it then came to."""
    cfg = tiny.config(tmp_path, name="cut", duration="15 steps", keep_last=9)
    tiny.prepare(cfg)
    run = tiny.run(cfg, world_size=2)
    expected = tiny.fingerprint(run, 15)
    (run.checkpoints / FINISHED).unlink()
    shutil.rmtree(run.checkpoint(15))
    return expected, cfg


@pytest.mark.parametrize("view", ["a newer step", "the newest not yet"])
def test_ranks_resume_from_what_rank_zero_chose(stopped, view):
    """Network file systems show each node its own listing for some seconds."""
    expected, cut = stopped
    late = None if view == "a newer step" else step_name(12)
    views(cut, newer=late is None, hidden=late)
    change = functools.partial(rank_one_sees_otherwise, late=late)
    assert tiny.fingerprint(tiny.run(cut, world_size=2, change=change), 15) == expected


def test_all_ranks_say_what_one_cannot_read(stopped):
    _, cut = stopped
    views(cut, hidden=step_name(12))
    change = functools.partial(rank_one_sees_otherwise, patience=0.5)
    ranks = tiny.start(cut, world_size=2, change=change)
    for rank in ranks:
        rank.join(60)
    log = (cut.runs_dir / "cut.log").read_text()
    assert [rank.exitcode for rank in ranks] == [1, 1]
    assert log.count(f"{step_name(12)} was chosen by rank 0, but {socket.gethostname()} does not see it whole") == 2


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_saves_at_the_next_step_and_nothing_is_trained_twice(tmp_path, number):
    whole = tiny.config(tmp_path, name="whole", duration="60 steps", checkpoint_every="1000 steps")
    cut = tiny.config(tmp_path, name="cut", duration="60 steps", checkpoint_every="1000 steps")
    tiny.prepare(whole)
    expected = tiny.run(whole)
    (rank,) = tiny.start(cut)
    run = RunDir(cut.runs_dir / cut.name)
    while not tiny.history(run):
        time.sleep(0.01)
    os.kill(rank.pid, number)
    os.kill(rank.pid, number)  # a second one must not disturb the save
    rank.join()
    assert rank.exitcode == 75
    step = run.latest_step()
    assert 0 < step < 60
    found = tiny.run(cut)
    assert tiny.fingerprint(found, 60) == tiny.fingerprint(expected, 60)
    steps = [row["step"] for row in tiny.history(found) if "loss" in row]
    assert steps == sorted(set(steps))


def test_finished_run_does_nothing(tmp_path):
    cfg = tiny.config(tmp_path)
    tiny.prepare(cfg)
    run = tiny.run(cfg)
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
    tiny.run(cfg)
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()} == before


def test_a_finished_run_goes_on_to_a_longer_duration_as_if_it_had_always_had_it(tmp_path):
    whole = tiny.config(tmp_path, name="whole", duration="20 steps")
    short, longer = (tiny.config(tmp_path, name="cut", duration=f"{steps} steps") for steps in (10, 20))
    tiny.prepare(whole)
    expected = tiny.run(whole)
    assert tiny.run(short).finished()
    run = tiny.run(longer)
    assert run.finished() and tiny.fingerprint(run, 20) == tiny.fingerprint(expected, 20)
    steps = [row["step"] for row in tiny.history(run) if "loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 20
    assert [start["duration"] for start in read_lines(run.starts)] == ["10 steps", "20 steps"]
    assert open_run(run.path)[1].train.duration == "20 steps"
    log = (tmp_path / "runs" / "cut.log").read_text()
    assert "10 steps before, 20 now, from step 10 on; train.optim.schedule=constant does not depend on it" in log
    with pytest.raises(UserError, match="has trained 20 steps already"):
        create_run(short)
    assert run.finished() and open_run(run.path)[1].train.duration == "20 steps"


def test_a_schedule_that_depends_on_the_duration_says_what_a_longer_one_does(tmp_path):
    optim = {"lr": 1e-3, "schedule": "cosine"}
    short, longer = (tiny.config(tmp_path, duration=f"{steps} steps", optim=optim) for steps in (6, 12))
    tiny.prepare(short)
    tiny.run(short)
    run = tiny.run(longer)
    assert "the learning rate goes on from 0.0005 instead of 0" in (tmp_path / "runs" / "tiny.log").read_text()
    last = [lr_at(step, cfg=longer.train.optim, total_steps=12, warmup_steps=0) for step in (10, 11)]
    assert [row["lr"] for row in tiny.history(run) if row["step"] == 12] == [pytest.approx(sum(last) / 2)]


def test_a_run_that_trains_or_stopped_by_itself_takes_no_other_duration(tmp_path):
    cfg, other = (tiny.config(tmp_path, duration=f"{steps} steps") for steps in (12, 24))
    run = create_run(cfg)
    run.checkpoint(6).mkdir(parents=True)
    (run.checkpoint(6) / COMMIT).write_text("{}")
    with only_trainer(run.lock), pytest.raises(UserError, match=rf"process {os.getpid()} on .* is training it"):
        create_run(other)
    with pytest.raises(UserError, match=r"train.duration: the run has '12 steps', this call has '24 steps'"):
        create_run(other, goes_on=False)
    (run.checkpoints / FINISHED).write_text("{}")
    append_line(run.starts, {"plan": {"total_steps": 12}})
    with pytest.raises(UserError, match=r"train.early_stop ended it at step 6"):
        create_run(other)
    assert open_run(run.path)[1].train.duration == "12 steps"
