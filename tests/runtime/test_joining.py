"""Processes that find each other, and errors that name who is missing."""

import os
import socket
from pathlib import Path

import pytest
import tiny
import torch

from pipeline.runtime import distributed
from pipeline.runtime.distributed import World, device_for, world_from
from pipeline.runtime.errors import UserError


def test_slurm_step_variables_are_read():
    env = {
        "SLURM_PROCID": "5",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    }
    assert world_from(env) == World(rank=5, size=8, local_rank=1, local_size=4)


def test_the_launchers_variables_come_before_slurms():
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "SLURM_PROCID": "0"}
    assert world_from(env) == World(1, 2, 1, 2)


def test_the_batch_shell_of_a_job_is_one_process():
    assert world_from({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}) == World()


def test_one_visible_gpu_is_number_zero_on_every_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_for(World(3, 4, 3, 4)) == torch.device("cuda", 0)


def test_too_few_visible_gpus_name_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=rf"{socket.gethostname()}: rank 3 .* but 2 GPUs are visible"):
        device_for(World(3, 4, 3, 4))


def join_in_a_process(world: World, folder: Path, env: dict[str, str], *, timeout: float, out: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.update(env)
    try:
        distributed.join(world, folder, timeout_seconds=timeout)
        values = distributed.total(torch.tensor([float(world.rank + 1)], dtype=torch.float64))
        Path(out).write_text(f"sum {values.item()}; {distributed.describe(world, torch.device('cpu'))}")
    except UserError as error:
        Path(out).write_text(str(error))


def joined(tmp_path, ranks, *, size, env=None, timeout=600.0):
    started = []
    for rank in ranks:
        out = str(tmp_path / f"rank{rank}")
        process = tiny.processes().Process(
            target=join_in_a_process,
            args=(World(rank, size, rank, size), tmp_path, env or {}),
            kwargs={"timeout": timeout, "out": out},
        )
        process.start()
        started.append(process)
    for process in started:
        process.join()
    return [(tmp_path / f"rank{rank}").read_text() for rank in ranks]


def test_rank_zero_leaves_its_address_in_the_shared_folder(tmp_path):
    texts = joined(tmp_path, [0, 1], size=2, env={"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "3"})
    assert all(text.startswith("sum 3.0; 2 rank(s) on") for text in texts)
    assert (tmp_path / "rendezvous-12-0-3.json").is_file()


def test_a_rank_that_never_arrives_is_named(tmp_path):
    (text,) = joined(tmp_path, [0], size=2, timeout=2)
    assert f"ranks [1] of 2 have not arrived (here: 0 on {socket.gethostname()}" in text


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (text,) = joined(tmp_path, [0], size=2, env={"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, timeout=2)
    assert f"rank 0 cannot listen on 127.0.0.1:{port}" in text
