"""Shards made by the tasks of a real Slurm job array are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prepared import config, content_of, folder_of_pictures, prepare

from data_prep import listing
from pipeline.config.paths import data_directory

OVERRIDES = ["data.image_size=16", "data.images_per_shard=8"]


def slurm(*argv: str) -> str:
    conf = Path(os.environ.get("MUDI_CLUSTER_DIR", "/tmp/mudi-cluster")) / "etc" / "slurm.conf"
    if not conf.is_file():
        pytest.skip("no test cluster is up: run tests/cluster/up")
    env = os.environ | {"SLURM_CONF": str(conf), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    if done.returncode and "ping" in argv:
        pytest.skip(f"the test cluster does not answer: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.cluster
def test_an_array_of_three_tasks_gives_the_bytes_of_one_process(tmp_path: Path) -> None:
    slurm("scontrol", "ping")
    root = folder_of_pictures(tmp_path / "images", 100, classes=3)
    alone = config(tmp_path / "alone", f"data.source.path={root}", *OVERRIDES)
    cfg = config(tmp_path / "array", f"data.source.path={root}", *OVERRIDES)
    expected = content_of(prepare(alone))
    listing.run(cfg)
    command = [sys.executable, "-m", "data_prep", "shard", "data=folder", f"data_dir={tmp_path / 'array'}"]
    line = " ".join([*command, f"data.source.path={root}", *OVERRIDES, "--part=array", "--workers=1"])
    log = f"--output={tmp_path}/%a.log"
    slurm(
        "sbatch",
        "--wait",
        "--array=5-7",
        "--cpus-per-task=1",
        "--time=5",
        f"--comment={tmp_path}",
        log,
        "--wrap",
        line,
    )
    assert content_of(data_directory(cfg) / "shards") == expected, (tmp_path / "5.log").read_text()
    logs = [(tmp_path / f"{task}.log").read_text() for task in (5, 6, 7)]
    assert sum("shard: train" in text for text in logs) >= 1  # the last one finished the directory
