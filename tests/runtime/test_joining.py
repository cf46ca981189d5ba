"""Processes that find each other, and errors that name who is missing."""

import os
import socket
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import get_int_from_env

from pipeline.runtime import distributed
from pipeline.runtime.distributed import World, device_for, world_from
from pipeline.runtime.errors import UserError
from pipeline.runtime.run_dir import create_run
from pipeline.train.loop import train


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


@pytest.mark.parametrize("value", ["", "many", "4,2"])
def test_a_number_of_threads_that_is_none_counts_as_not_given(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    before = torch.get_num_threads()
    distributed.use_cpus(World())
    assert get_int_from_env(["OMP_NUM_THREADS"], 0) == 0  # as accelerate reads it where several ranks train on CPUs
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    torch.set_num_threads(before)


def test_one_visible_gpu_is_number_zero_on_every_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_for(World(3, 4, 3, 4)) == torch.device("cuda", 0)


def test_too_few_visible_gpus_name_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=rf"{socket.gethostname()}: rank 3 .* but 2 GPUs are visible"):
        device_for(World(3, 4, 3, 4))


def test_a_job_that_asked_for_gpus_and_sees_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    told = rf"cluster.train.gpus: found 2, but rank 1 on {socket.gethostname()} sees no GPU .* set cluster.train.gpus=0"
    with pytest.raises(UserError, match=told):
        device_for(World(1, 2, 1, 2), gpus=2, setting="cluster.train.gpus")
    assert device_for(World(1, 2, 1, 2)) == torch.device("cpu")


def test_a_training_that_asked_for_a_gpu_does_not_begin_on_a_cpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    cfg = tiny.revalidated(tiny.config(tmp_path), cluster={"train": {"gpus": 1}})
    tiny.prepare(cfg)
    run = create_run(cfg)
    with pytest.raises(UserError, match=r"cluster.train.gpus: found 1, but rank 0 .* sees no GPU"):
        train(cfg, run)
    assert not run.steps() and not run.starts.exists()


def test_ddp_is_given_the_gpu_that_is_used(monkeypatch):
    """Task 3 of a node, to which Slurm shows one GPU. Without four GPUs, what is asked of DDP is looked at instead."""
    asked = {}

    class Asked(torch.nn.Module):
        def __init__(self, network, device_ids=None, **settings):
            super().__init__()
            self.module = network
            asked.update(device_ids=device_ids, **settings)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    device = device_for(World(3, 4, 3, 4))
    network = torch.nn.Linear(1, 1)
    accelerator = Accelerator(cpu=True)
    fourth = {"distributed_type": DistributedType.MULTI_GPU, "num_processes": 4, "local_process_index": 3}
    for state in (PartialState().__dict__, accelerator.state.__dict__):
        for name, value in fourth.items():
            monkeypatch.setitem(state, name, value)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Asked)
    accelerator.prepare_model(network, device_placement=False)
    assert asked["device_ids"] == [3]  # Accelerate's choice, which torch refuses: there is no fourth GPU
    monkeypatch.setattr(distributed, "DistributedDataParallel", Asked)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 4)
    distributed.parallel(network, device)
    assert asked["device_ids"] == [torch.device("cuda", 0)] and asked["gradient_as_bucket_view"]
    distributed.parallel(network, torch.device("cpu"))
    assert asked["device_ids"] is None


def join_in_a_process(world: World, folder: Path, env: dict[str, str], *, timeout: float, out: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.update(env)
    try:
        distributed.join(world, folder, timeout_seconds=timeout)
        values = distributed.total(torch.tensor([float(world.rank + 1)], dtype=torch.float64))
        left = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]  # what Accelerate makes a group by
        said = f"sum {values.item()}; {distributed.describe(world, torch.device('cpu'))}; left: {left}"
        Path(out).write_text(said)
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


def test_a_single_process_under_a_launcher_has_no_group(tmp_path):
    """On a GPU Accelerate made one of NCCL alone, and training ended with an error at its last barrier."""
    env = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    (text,) = joined(tmp_path, [0], size=1, env=env)
    assert text.startswith("sum 1.0; 1 rank(s)") and "backend none" in text and "left: []" in text


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
