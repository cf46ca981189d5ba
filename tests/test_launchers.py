"""One stage by hand under a launcher of the user's: torchrun, accelerate launch. They find each other, and the same."""

import subprocess
import sys

import pytest
import tiny
from test_distributed import largest_difference

from pipeline.runtime.files import read_lines
from pipeline.runtime.parts import without_launcher
from pipeline.runtime.run_dir import create_run

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"],
    "accelerate": [
        *(
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes=2",
            "--num_machines=1",
            "--dynamo_backend=no",
        ),
        *("--mixed_precision=no", "--main_process_port=0", "--num_cpu_threads_per_process=1", "-m"),
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_training_under_a_launcher_is_that_of_one_process(tmp_path, launcher):
    cfg = tiny.config(tmp_path, name="one", precision="fp64")
    tiny.prepare(cfg)
    expected = tiny.run(cfg)
    run = create_run(tiny.config(tmp_path, name="several", precision="fp64"))
    argv = [sys.executable, *LAUNCHERS[launcher], "pipeline", "train", str(run.path)]
    env = without_launcher({"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)})
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert read_lines(run.starts)[0]["world_size"] == 2
    assert largest_difference(expected, run) < 1e-9
