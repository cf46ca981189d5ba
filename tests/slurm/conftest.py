"""The test cluster, where one is up, and commands for jobs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import HERE


@pytest.fixture(autouse=True, scope="session")
def _stand_ins_are_importable() -> Iterator[None]:
    """Jobs find `stand_in` on PYTHONPATH, behind the snapshot of the code."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [before])])
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of the cluster that tests/cluster/up started; skips where none is up. Ends what tests leave."""
    directory = Path(os.environ.get("MUDI_CLUSTER_DIR", "/tmp/mudi-cluster"))
    conf = directory / "etc" / "slurm.conf"
    if not conf.is_file():
        pytest.skip("no test cluster is up: run tests/cluster/up (Debian's Slurm, about 30 s the first time)")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"the test cluster in {directory} does not answer: run tests/cluster/up")
    yield directory
    _end_jobs_below(tmp_path_factory.getbasetemp())
    os.environ.pop("SLURM_CONF") if before is None else os.environ.__setitem__("SLURM_CONF", before)


def _end_jobs_below(folder: Path) -> None:
    """Cancel what this session's tests left: jobs say in their comments where they belong."""
    argv = ["squeue", "-h", "-o", "%A %k"]
    queue = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    left = sorted({line.split()[0] for line in queue if str(folder) in line})
    if left:
        subprocess.run(["scancel", "--quiet", *left], check=False)


@pytest.fixture(scope="session")
def faults(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the process that cuts jobs. It is started once, however many processes run the tests."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults"
    try:
        root.mkdir()
    except FileExistsError:
        yield root
        return
    env = os.environ | {"SLURM_CONF": str(cluster / "etc" / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    with (root / "faults.log").open("w") as log:
        process = subprocess.Popen([sys.executable, HERE / "faults.py", root], stdout=log, stderr=log, env=env)
    yield root
    process.kill()
    process.wait()
