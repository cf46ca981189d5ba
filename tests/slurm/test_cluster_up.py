"""The test cluster itself."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import HERE

UP, DOWN = HERE.parent / "cluster" / "up", HERE.parent / "cluster" / "down"


@contextlib.contextmanager
def folders(count: int) -> Iterator[list[Path]]:
    """Short ones, as sockets lie in them; their clusters are taken down at the end."""
    made = [Path(tempfile.mkdtemp(prefix="mudi-up-")) for _ in range(count)]
    try:
        yield made
    finally:
        for folder in made:
            subprocess.run([DOWN, "--dir", folder, "--wipe"], check=True, capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_two_that_come_up_at_the_same_time_have_ports_of_their_own():
    with folders(2) as both:
        argv = ["--nodes", "1", "--no-accounting", "--dir"]
        starting = [
            subprocess.Popen([UP, *argv, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for folder in both
        ]
        said = [process.communicate()[0] for process in starting]
        assert [process.returncode for process in starting] == [0, 0], said
        for folder in both:
            env = os.environ | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}
            subprocess.run(["srun", "-N1", "true"], env=env, check=True, capture_output=True)
