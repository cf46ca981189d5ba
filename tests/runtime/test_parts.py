"""Shares of a job's work: every piece belongs to one process, and nobody sweeps what another one is writing."""

import multiprocessing
import os
import time

import pytest

from pipeline.__main__ import main
from pipeline.runtime.cli import table_of
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import sweep_partial
from pipeline.runtime.parts import WHOLE, Part, World, parse_part, this_world, without_launcher, writing


def test_every_piece_belongs_to_one_task_of_one_part():
    shares = [Part(k, 3).for_task(World(rank, 4)) for k in range(3) for rank in range(4)]
    assert [sum(share.has(place) for share in shares) for place in range(50)] == [1] * 50
    assert WHOLE.for_task(World()) == WHOLE and all(map(WHOLE.has, range(5)))


def test_a_part_is_k_of_n_or_the_place_in_an_array(monkeypatch):
    assert parse_part("3/8") == (3, 8)
    for name, value in {"MIN": "4", "ID": "6", "COUNT": "5"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert parse_part("array") == (2, 5)
    monkeypatch.delenv("SLURM_ARRAY_TASK_COUNT")
    with pytest.raises(UserError, match="no task of a Slurm job array"):
        parse_part("array")


def test_a_process_that_works_alone_is_told_nothing_of_tasks(monkeypatch):
    for name, value in {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "RANK": "3", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert this_world().rank == 3
    env = without_launcher(os.environ)
    assert "PATH" in env and not env.keys() & {"SLURM_PROCID", "RANK", "WORLD_SIZE"}


@pytest.mark.parametrize("job", [name for name, command in table_of("pipeline").items() if command.alone])
def test_what_tasks_cannot_share_is_refused_once(tmp_path, monkeypatch, capsys, job):
    for rank, code in ((1, 0), (0, 2)):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        assert main([job, str(tmp_path)]) == code
    assert capsys.readouterr().err.startswith(f"error: {job}: started as 2 tasks, expected one")
    assert not list(tmp_path.iterdir())


def _hold(directory, begun, end):
    with writing(directory):
        (directory / "a.tar.partial-1").touch()
        begun.set()
        end.wait()


def test_what_a_killed_writer_left_is_swept_and_a_live_ones_file_is_not(tmp_path):
    context, directory = multiprocessing.get_context("spawn"), tmp_path / "new" / "set"
    begun, end = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(directory, begun, end))
    process.start()
    assert begun.wait(120)
    with writing(directory):
        assert (directory / "a.tar.partial-1").exists()
    process.kill()
    process.join()
    with writing(directory):
        assert not list(directory.iterdir())


def test_a_directory_that_is_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(ValueError, match="refused"), writing(tmp_path / "new" / "set"):
        raise ValueError("refused")
    assert not list(tmp_path.iterdir())


def test_old_files_alone_may_be_swept(tmp_path):
    for name, age in (("old.partial-1", 100), ("new.partial-2", 1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    sweep_partial(tmp_path, older_than_s=50)
    assert [path.name for path in tmp_path.iterdir()] == ["new.partial-2"]
