"""The graph as sbatch scripts that a person can read, change and submit without this package's launcher."""

import shlex
from pathlib import Path

from submitit.slurm.slurm import _make_sbatch_string

from pipeline.runtime.files import write_text
from slurm import ledger, snapshot
from slurm.adopt import SCRIPTS
from slurm.environment import receipt_lines
from slurm.executor import Place, python_of, slurm_parameters
from slurm.graph import ordered
from slurm.job import Job
from slurm.workflows import Launch
from slurm.writable import check_file, check_folder

# 75: training has saved its state and asks to be started again; 140: SIGUSR2 ended a job that has nothing to save.
_REQUEUE = ['if [ $code = 75 ] || [ $code = 140 ]; then scontrol requeue "$SLURM_JOB_ID"; fi', "exit $code"]


def write(launch: Launch, folder: Path) -> list[Path]:
    """Write one script for each job, and `submit.sh`, which submits them with their dependencies.

    The code is copied to `folder/code`; the run's config must have been written. The run's ledger says that there are
    scripts: `status` then looks for what was submitted of them.
    """
    folder = folder.resolve()
    check_folder(folder, "--sbatch")
    check_file(launch.run.jobs / ledger.LEDGER, "the ledger of submissions")
    code = snapshot.take(folder / "code")
    written, lines = [], ["#!/bin/bash", "set -euo pipefail", f"cd {shlex.quote(str(launch.cwd))}"]
    for number, job in enumerate(ordered(launch.jobs), 1):
        path = folder / f"{number}-{job.name}.sbatch"
        write_text(path, script(launch, job, code=code))
        written.append(path)
        waits = [f"afterok:${parent}" for parent in job.after] + [f"afterany:${parent}" for parent in job.after_any]
        option = f' --dependency="{",".join(waits)}"' if waits else ""
        lines += [f"{job.name}=$(sbatch --parsable{option} {shlex.quote(str(path))})", f'echo "{job.name} ${job.name}"']
    write_text(folder / "submit.sh", "\n".join(lines) + "\n")
    (folder / "submit.sh").chmod(0o755)
    ledger.note(launch.run, SCRIPTS, folder=str(folder), words=launch.words, cwd=str(launch.cwd))
    return [*written, folder / "submit.sh"]


def script(launch: Launch, job: Job, *, code: Path) -> str:
    """One sbatch script: the same options, set-up and words as a submission has."""
    record = launch.run.jobs / job.name
    record.mkdir(parents=True, exist_ok=True)
    # By the comment, `slurm submit` recognises in the queue what was submitted by hand.
    comment = f"mudi {launch.key(job.name)} {record}"
    place = Place(launch.cfg.cluster, record, code, f"{launch.run.path.name}.{job.name}", comment, cwd=launch.cwd)
    parameters = slurm_parameters(job, place) | {"teardown": [*receipt_lines(job.resources), *_REQUEUE]}
    parts = job.resources.parts
    part = f" --part $SLURM_ARRAY_TASK_ID/{parts}" if parts > 1 else ""
    words = shlex.join(("-u", "-m", "slurm.rank", *job.argv)) + part
    array = {"map_count": parts} if parts > 1 else {}
    text: str = _make_sbatch_string(f"{python_of(launch.cfg.cluster)} {words}", str(record), **parameters, **array)
    return text.replace("export SUBMITIT_EXECUTOR=slurm\n", "").rstrip() + "\n"
