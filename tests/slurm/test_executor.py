"""What sbatch is told: the profile's options, all of them, and nothing that an earlier submission left."""

import dataclasses
import os
import socket
import subprocess

import pytest
from launching import profile, real

from pipeline.runtime.errors import UserError
from slurm import plan
from slurm.executor import SubmitContext, submit
from slurm.graph import Job
from slurm.submit import dependency_of


def script_of(tmp_path, cluster, job: str) -> list[str]:
    """The lines of the sbatch script of one job."""
    launch = real(tmp_path, cluster)
    chosen = next(j for j in launch.jobs if j.name == job)
    return plan.script(launch, chosen, code=tmp_path / "code").splitlines()


def test_komondor_asks_for_what_the_site_has(tmp_path):
    cluster = profile("komondor", account="proj", train={"nodes": 2})
    train = script_of(tmp_path, cluster, "train")
    for option in (
        "partition=gpu",
        "account=proj",
        "nodes=2",
        "ntasks-per-node=4",
        "cpus-per-task=16",
        "gres=gpu:4",
        "mem=245760M",
        "time=1440",
        "signal=USR2@180",
        "requeue",
    ):
        assert f"#SBATCH --{option}" in train
    assert not any("CUDA_VISIBLE_DEVICES" in line for line in train)
    (srun,) = (line for line in train if line.startswith("srun "))
    assert "--cpus-per-task=16" in srun  # which srun does not take from the lines above
    sample = script_of(tmp_path, cluster, "sample")
    assert "#SBATCH --array=0-3%4" in sample and "#SBATCH --gres=gpu:1" in sample
    assert any(line.endswith("--part $SLURM_ARRAY_TASK_ID/4") for line in sample)
    prepare = script_of(tmp_path, cluster, "prepare")
    assert "#SBATCH --partition=cpu" in prepare and not any("gres" in line for line in prepare)


def test_a_signal_that_would_come_at_the_start_is_refused():
    with pytest.raises(ValueError, match=r"found train\.minutes=3 with signal_lead_s=180"):
        profile("komondor", train={"minutes": 3})
    assert profile("local", train={"minutes": 1}, signal_lead_s=180)  # there, no signal comes


def test_gpu_options_and_site_options(tmp_path):
    cluster = profile(
        "slurm_generic", gpu_option="gpus-per-node", gpu_type="a100", options={"mail-type": "FAIL", "exclude": "n1"}
    )
    lines = script_of(tmp_path, cluster, "train")
    assert {"#SBATCH --gpus-per-node=a100:1", "#SBATCH --mail-type=FAIL", "#SBATCH --exclude=n1"} <= set(lines)
    assert not any(line.startswith(("#SBATCH --account", "#SBATCH --partition")) for line in lines)


def test_every_script_is_valid_bash_and_sets_its_rendezvous_only_for_several_ranks(tmp_path):
    launch = real(tmp_path, profile("komondor", account="proj", setup=("module load cuda",)))
    for path in plan.write(launch, tmp_path / "scripts"):
        assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).returncode == 0, path
    scripts = {p.stem: p.read_text() for p in (tmp_path / "scripts").glob("*.sbatch")}
    assert {name: "MASTER_PORT" in text for name, text in scripts.items()} == {
        "1-prepare": False,
        "2-train": True,
        "3-sample": False,
        "4-evaluate": False,
        "5-compare": False,
    }
    assert all(text.index("module load cuda") < text.index("export PYTHONPATH") for text in scripts.values())


def test_a_port_that_is_taken_is_passed_over(tmp_path):
    """The very lines of the script, in bash, with a socket on the port that they would choose."""
    text = "\n".join(script_of(tmp_path, profile("testbed", train={"tasks": 2}), "train"))
    lines = text[text.index("export MASTER_PORT") : text.index("# command")]

    def port(restart: int) -> int:
        command = f'SLURM_JOB_ID=77; SLURM_RESTART_COUNT={restart}\n{lines}\necho "$MASTER_PORT"'
        return int(subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout)

    with socket.socket() as taken:
        free = port(0)
        taken.bind(("127.0.0.1", free))
        taken.listen()
        assert port(0) > free
    assert len({port(restart) for restart in range(4)}) == 4  # a start never meets the address of the one before


def test_dependencies_name_each_array_once():
    job = dataclasses.replace(_job(), after=("a", "b"), after_any=("c",))
    ids = {"a": ("7",), "b": ("8_0", "8_1", "8_2"), "c": ("9",)}
    assert dependency_of(job, ids) == "afterok:7,afterok:8,afterany:9"
    assert dependency_of(job, {"c": ("9",)}) == "afterany:9"
    assert dependency_of(job, {}) is None


def test_what_is_complete_hands_on_what_it_waits_for():
    """Training is done, but preparation runs again for another reference: evaluation waits for that."""
    train = dataclasses.replace(_job(), name="train", after=("prepare",))
    sample = dataclasses.replace(_job(), name="sample", after=("train",))
    jobs = [dataclasses.replace(_job(), name="prepare"), train, sample]
    assert dependency_of(sample, {"prepare": ("5",)}, jobs) == "afterok:5"
    assert dependency_of(sample, {"prepare": ("5",), "train": ("6",)}, jobs) == "afterok:6"


def _job():
    return Job("x", ("pipeline", "train", "r"))


def test_a_cluster_that_is_not_here_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    context = SubmitContext(profile("komondor"), tmp_path / "record", tmp_path, "x", "y")
    with pytest.raises(UserError, match="login node, or use cluster=local"):
        submit(_job(), context)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"options": {"job_name": "x"}}, r"found job-name \(decided by the launcher\)"),
        (
            {"options": {"array": "0-3", "--requeue": None}},
            r"array \(decided by cluster.<job>.parts and at_once\), requeue",
        ),
        ({"options": {"J": "x"}}, "found J, expected long names"),
        ({"srun_options": {"output": "x"}}, r"found output \(decided by the launcher\)"),
    ],
)
def test_options_that_the_launcher_decides_are_refused_by_name(options, found):
    with pytest.raises(ValueError, match=found):
        profile("testbed", **options)


def test_a_container_of_srun_is_around_the_ranks_and_around_the_epilogue(tmp_path):
    """As with pyxis, which is not here: Python is in the container alone, Slurm's commands outside of it."""
    options = {
        "container_image": "/x/mudi.sqsh",
        "container-mounts": "/scratch:/scratch",
        "no-container-mount-home": True,
    }
    lines = script_of(tmp_path, profile("testbed", python="python", srun_options=options), "train")
    inside = "--container-image=/x/mudi.sqsh --container-mounts=/scratch:/scratch --no-container-mount-home python "
    assert sum(inside in line for line in lines) == 2
    (epilogue,) = (line for line in lines if "slurm.epilogue" in line)
    assert "srun --quiet --overlap --nodes=1 --ntasks=1" in epilogue


def test_scripts_of_a_person_unset_what_would_override_them(tmp_path):
    launch = real(tmp_path, profile("testbed", options={"dependency": "afterany:7"}))
    submit_sh = plan.write(launch, tmp_path / "scripts")[-1]
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "sbatch").write_text(f'#!/bin/bash\necho "$SBATCH_PARTITION $*" >> {tmp_path}/said; echo 9\n')
    (bin_ / "sbatch").chmod(0o755)
    env = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}", "SBATCH_PARTITION": "gpu", "SBATCH_ACCOUNT": "mine"}
    done = subprocess.run([submit_sh], env=env, capture_output=True, text=True, check=True)
    assert "SBATCH_PARTITION of the environment" in done.stderr and "ACCOUNT" not in done.stderr
    first, second, *_ = (tmp_path / "said").read_text().splitlines()
    assert first.startswith(" --parsable /") and "--dependency=afterok:9,afterany:7" in second
