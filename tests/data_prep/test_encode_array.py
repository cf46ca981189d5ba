"""Latents encoded by the tasks of a real Slurm job array are those of one process."""

import shutil
import sys
from pathlib import Path

import pytest
import tiny
import tiny_latents
from prepared import content_of
from test_slurm_array import slurm

from data_prep import encode
from pipeline.config.paths import latents_directory
from pipeline.runtime.run_dir import create_run


@pytest.mark.cluster
def test_an_array_of_three_tasks_gives_the_bytes_of_one_process(tmp_path: Path) -> None:
    slurm("scontrol", "ping")
    plain = tiny.config(tmp_path / "alone")
    tiny.prepare(plain)
    tiny_latents.autoencoder(plain, steps=40)
    shutil.copytree(tmp_path / "alone", tmp_path / "array")
    alone, cfg = (
        tiny_latents.config(root, root / "runs" / "squares_f2", flip=True)
        for root in (tmp_path / "alone", tmp_path / "array")
    )
    encode.run(alone, workers=1)
    run = create_run(cfg)
    line = f"{sys.executable} -m data_prep encode {run.path} --part=array --workers=1"
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
    logs = [(tmp_path / f"{task}.log").read_text() for task in (5, 6, 7)]
    assert content_of(latents_directory(cfg)) == content_of(latents_directory(alone)), logs[0]
    assert sum("encode: train 60" in text for text in logs) >= 1  # the last one finished the directory
