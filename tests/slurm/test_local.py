"""The local executor: real jobs on this machine, in order, cut and continued."""

import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from launching import HERE, LIMIT, kept_steps, profile, real, result, slurm_cli, stand_in, states, uninterrupted
from rich.console import Console

from pipeline.config.load import config_from
from pipeline.config.paths import data_directory
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_lines, write_json
from pipeline.runtime.run_dir import COMMIT, overrides_for
from slurm import ledger
from slurm.__main__ import main
from slurm.access import held, taken_back
from slurm.commands import _run_here
from slurm.ledger import locked
from slurm.progress import ProgressTable
from slurm.rank import ATTEMPTS
from slurm.status import show, summary
from slurm.submit import run_here
from slurm.workflows import launch_for, launch_of_run, meant

ROOT = HERE.parents[1]


def run(launch) -> tuple[int, ProgressTable]:
    """Run a launch in the foreground, as `submit` does."""
    table = ProgressTable([job.name for job in launch.jobs], title="test")
    return run_here(launch, table), table


def in_a_terminal(root: Path, *, options: str) -> subprocess.Popen[str]:
    """A submitter in a process group of its own, as a shell starts one; `train` is a stand-in with `options`."""
    script = f"""
import sys
from pathlib import Path
from launching import profile, stand_in
from slurm.progress import ProgressTable
from slurm.submit import run_here
launch = stand_in(Path({str(root)!r}), profile("local"), only=("train", "sample"), options={{"train": {options!r}}})
sys.exit(run_here(launch, ProgressTable([job.name for job in launch.jobs], title="test")))
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, HERE, HERE.parent)))}
    return subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.PIPE, text=True, process_group=0)


def trained(launch) -> int:
    """Steps of the stand-in so far."""
    return len(kept_steps(launch)) if (launch.run.path / "steps.txt").exists() else 0


def wait(condition) -> None:
    """Until a condition holds."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_graph_runs_in_order_with_a_log_each_and_then_there_is_nothing_to_do(tmp_path, capfd):
    launch = stand_in(tmp_path, profile("local"))
    code, table = run(launch)
    assert code == 0 and [row.status for row in table.rows.values()] == ["complete"] * 5
    lines = capfd.readouterr().err.splitlines()
    done = [line.split(":")[0] for line in lines if "complete" in line]
    assert done == ["prepare", "train", "sample", "evaluate", "compare"]
    assert all(list((launch.run.jobs / job.name).glob("*_0_log.out")) for job in launch.jobs)
    ids = {name: s.ids for name, s in ledger.submissions(launch.run).items()}
    code, table = run(launch)
    assert code == 0 and all("skipped" in row.detail for row in table.rows.values())
    assert {name: s.ids for name, s in ledger.submissions(launch.run).items()} == ids


def test_what_prepare_passed_over_is_said_at_once_and_at_the_end(tmp_path, capfd):
    launch = stand_in(tmp_path, profile("local"), only=("prepare",))
    data = data_directory(launch.cfg)
    write_json(data / "source" / "receipt.json", {"rejected": {"empty": 2}})
    manifest = {"classes": ["a", "b", "c"], "class_counts": [5, 0, 0]}
    write_json(data / "shards" / "train" / "manifest.json", manifest)
    for _ in range(2):  # also where it was there already
        code, _ = run(launch)
        summary(launch, Console(width=200))
        said = capfd.readouterr()
        assert code == 0
        for told in (said.err, said.out):
            assert "2 of 3 classes have no image in train: b, c" in told, told
            assert "passed over 2 x empty (the file has no bytes)" in told, told


def test_images_that_are_not_there_are_said_before_anything_is_queued(tmp_path):
    there = [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs", f"data.source.path={tmp_path}/images"]
    cfg = config_from(["experiment=photos16", "train.global_batch=1", *there])
    with pytest.raises(UserError, match=r"data\.source\.path: .*images' does not exist on this machine"):
        launch_for(cfg, make=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "images" / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match=r"data\.source\.path: .*images' holds no images"):
        launch_for(cfg, make=True)
    (tmp_path / "images" / "cats" / "a.png").touch()
    assert launch_for(cfg, make=True).run.config.is_file()


def test_a_failure_is_named_and_what_comes_after_does_not_run(tmp_path):
    launch = stand_in(tmp_path, profile("local"), only=("train", "sample"), options={"train": "--fail bad_config"})
    code, table = run(launch)
    assert code == 1
    assert (
        table.rows["train"].status == "failed" and "found -1, expected a positive number" in table.rows["train"].detail
    )
    assert table.rows["sample"].status == "blocked" and not (launch.run.jobs / "sample").exists()
    now = states(launch)
    assert (now["train"].cause, now["sample"].status) == ("bad_config", "not submitted")


@pytest.mark.parametrize(("once", "status"), [("--once", "complete"), ("", "failed")])
def test_what_may_pass_is_tried_again_as_often_as_the_profile_says(tmp_path, capfd, once, status):
    cluster = profile("local", retry={"error": 2, "backoff_s": 0})
    launch = stand_in(tmp_path, cluster, only=("train",), options={"train": f"--fail error {once}"})
    code, table = run(launch)
    assert (table.rows["train"].status, code) == (status, int(status == "failed"))
    starts = [row for row in read_lines(launch.run.jobs / "train" / ATTEMPTS) if row["event"] == "start"]
    assert len(starts) == (2 if once else 3)
    assert "the file system went away for a moment; again in 0 s, attempt 1 of 2" in capfd.readouterr().err


def test_ctrl_c_saves_ends_everything_and_the_next_call_goes_on(tmp_path):
    launch = stand_in(tmp_path, profile("local"), only=("train", "sample"))
    shell = in_a_terminal(tmp_path, options="--steps 100 --pace 0.05")
    wait(lambda: trained(launch) >= 5)
    os.killpg(shell.pid, signal.SIGINT)  # what a terminal sends to the whole foreground group
    assert shell.wait() == 130
    assert 5 <= trained(launch) < 100
    starts = [json.loads(line) for line in (launch.run.jobs / "train" / ATTEMPTS).read_text().splitlines()]
    assert not any(Path(f"/proc/{row['pid']}").exists() for row in starts if row["event"] == "start")
    assert states(launch)["train"].status == "cancelled"
    again = in_a_terminal(tmp_path, options="--steps 100 --pace 0.01")
    assert again.wait() == 0
    assert kept_steps(launch) == list(range(1, 101))  # nothing was lost, nothing was done twice
    assert result(launch) == uninterrupted(100)


def test_ctrl_c_says_what_is_saved_and_that_the_same_command_goes_on(tmp_path, capsys):
    options = {"train": "--steps 1000 --pace 0.01"}
    launch = stand_in(tmp_path, profile("local"), only=("train", "sample"), options=options)
    write_json(launch.run.checkpoint(3) / COMMIT, {"step": 3})

    def interrupt():
        wait(lambda: trained(launch) >= 5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    code = _run_here(launch)
    thread.join()
    said = " ".join(capsys.readouterr().out.split())
    assert code == 130 and said.count("saved at step 3 (0.024 kimg). The same command goes on from there.") == 1, said
    assert "stopped here" in said and "did not end well" not in said, said


def test_a_second_submitter_is_told_how_to_end_the_first(tmp_path):
    launch = stand_in(tmp_path, profile("local"), only=("train",))
    with locked(launch.run), pytest.raises(UserError) as caught:
        run(launch)
    said = str(caught.value)
    assert f"mudi cancel {launch.run.path}" in said and f"process {os.getpid()} on {socket.gethostname()}" in said


def test_a_submitter_that_is_killed_leaves_its_job_which_the_next_one_reconciles(tmp_path):
    launch = stand_in(tmp_path, profile("local"), only=("train", "sample"))
    shell = in_a_terminal(tmp_path, options="--steps 100 --pace 0.05")
    wait(lambda: trained(launch) >= 5)
    show([launch], Console(file=(told := io.StringIO()), width=160))
    assert re.search(r"sample .*not submitted .*in its turn, by the submit that is at work", told.getvalue()), (
        told.getvalue()
    )
    shell.kill()
    shell.wait()
    assert states(launch)["train"].status == "running"
    again = in_a_terminal(tmp_path, options="--steps 100 --pace 0.05")
    assert again.wait() == 0
    assert kept_steps(launch) == list(range(1, 101))
    rows = [json.loads(line) for line in (launch.run.jobs / "train" / ATTEMPTS).read_text().splitlines()]
    assert sum(row["event"] == "start" for row in rows) == 1


def test_a_job_killed_from_outside_is_said_to_be_killed(tmp_path):
    launch = stand_in(tmp_path, profile("local"), only=("train",), options={"train": "--fail killed"})
    code, _ = run(launch)
    assert (code, states(launch)["train"].cause) == (1, "killed")


def test_two_processes_train_the_real_thing(tmp_path):
    launch = real(tmp_path, profile("local", train={"tasks": 2}), duration="4 steps")
    tiny.prepare(launch.cfg)
    train = dataclasses.replace(launch.jobs[1], after=())
    code, table = run(dataclasses.replace(launch, jobs=(train,)))
    assert code == 0, table.rows
    start = json.loads(launch.run.starts.read_text().splitlines()[0])
    assert start["world_size"] == 2 and start["commit"] not in ("", "unknown")
    # Each process has its own log, and an even share of the cores.
    assert len(list((launch.run.jobs / "train").glob("*_log.out"))) == 2


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    """A machine without Slurm's commands."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.usefixtures("no_slurm")
def test_a_plan_says_where_slurm_is_not_there_to_tell_its_limits(tmp_path, capsys):
    where = [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    assert main(["plan", "experiment=glyphs16", "cluster=slurm_generic", *where]) == 0
    said = capsys.readouterr().out
    assert "limits         not known: Slurm is not on this machine" in said and "in all         at most " in said, said


@pytest.mark.usefixtures("no_slurm")
def test_what_is_refused_leaves_nothing_of_its_own_and_all_of_others(tmp_path, capsys):
    where = [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs", "cluster=slurm_generic"]
    assert main(["submit", "experiment=glyphs16", *where]) == 2
    assert "is not on this machine" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    older = launch_for(config_from(["experiment=glyphs16", "name=older", *where]), make=True).run
    for name in ("older", "newer"):
        assert main(["submit", "experiment=glyphs16", f"name={name}", *where]) == 2
    assert older.config.is_file() and not (tmp_path / "runs" / "newer").exists()
    sweep = ["sweep", "submit", "experiment=glyphs16", "name=s", "train.optim.lr=1e-3,1e-4"]
    assert main([*sweep, *where, f"sweep.folder={tmp_path}/sweeps"]) == 2
    assert "is not on this machine" in capsys.readouterr().err and not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize("others", [False, True])
def test_a_folder_in_which_another_process_works_stays(tmp_path, others):
    """Two shells may make a run at the same moment; the one that is refused takes nothing from the other."""
    folder = tmp_path / "runs" / "both"

    def refused():
        with taken_back([folder], keep=lambda folder: False), held(folder / "jobs" / ".lock", refusal=""):  # noqa: ARG005
            if others:
                (folder / "jobs" / ".lock").write_text("process 1 on another-node")
            raise UserError("refused")

    with pytest.raises(UserError, match="refused"):
        refused()
    assert folder.exists() == (tmp_path / "runs").exists() == others


@pytest.mark.parametrize("overrides", [["experiment=glyphs16", "cluster=testbed"], ["experiment=glyphs16"]], ids=str)
def test_plan_prints_and_does_nothing(tmp_path, overrides):
    where = [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    done = slurm_cli("plan", *overrides, *where, "train.duration=1000 steps")
    assert done.returncode == 0, done.stderr
    for said in ("prepare", "python -m pipeline train", "1000 steps", "global batch"):
        assert said in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_bad_input_says_what_and_what_to_do(tmp_path):
    done = slurm_cli("submit", "experiment=glyphs16", "train.durations=3 steps", f"runs_dir={tmp_path}")
    assert done.returncode == 2 and "Did you mean 'train.duration'" in done.stderr and "Traceback" not in done.stderr
    assert slurm_cli("sumbit").stderr.startswith("error: no command 'sumbit'. Did you mean 'submit'?")
    done = slurm_cli("status", str(tmp_path / "nothing"))
    assert done.returncode == 2 and "is not a directory" in done.stderr
    launch = launch_for(tiny.config(tmp_path), make=True)
    launch.run.checkpoint(3).mkdir(parents=True)  # what was trained with these settings keeps them
    done = slurm_cli("submit", str(tmp_path / "runs" / "tiny"), "train.global_batch=12")
    assert done.returncode == 2 and "train.global_batch" in done.stderr and "name=" in done.stderr


@pytest.mark.parametrize("command", [["plan"], ["submit"], ["sweep", "plan"]], ids=" ".join)
def test_gpus_that_are_not_here_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    where = [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs", f"sweep.folder={tmp_path}/sweeps"]
    overrides = [
        "experiment=glyphs16",
        "cluster=local",
        "cluster.train.gpus=2",
        *(where if "sweep" in command else where[:2]),
    ]
    overrides += ["train.optim.lr=1e-3,1e-4", "name=s", "cluster.train.tasks=2"] if "sweep" in command else []
    assert main([*command, *overrides]) == 2
    assert "cluster.train.gpus=2: found 0 GPUs on this machine" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/jobs")) and not (tmp_path / "sweeps").exists()


def test_an_empty_number_of_threads_is_none(tmp_path, monkeypatch):
    """Some shells and containers set the variable to nothing."""
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    launch = stand_in(tmp_path, profile("local", prepare={"cpus": 3}), only=("prepare",))
    assert run(launch)[0] == 0
    assert (launch.run.path / "prepare.threads").read_text() == "3"


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_is_queued(tmp_path):
    where = [f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    done = slurm_cli("submit", "experiment=glyphs16", "cluster.train.tasks=3", *where)
    assert done.returncode == 2 and "does not divide over 3 ranks" in done.stderr
    assert not list(tmp_path.glob("runs/*/jobs"))


def test_a_shell_elsewhere_finds_relative_paths_where_they_were_submitted(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "elsewhere").mkdir(parents=True)
    monkeypatch.chdir(home)
    launch = stand_in(Path(), profile("local"), only=("prepare",))
    assert not launch.cfg.data_dir.is_absolute() and run(launch)[0] == 0
    done = slurm_cli("status", "../runs/run", cwd=home / "elsewhere")
    assert re.search(r"prepare +│ complete", done.stdout), done.stdout + done.stderr


def test_logs_show_the_end_and_following_ends_with_the_job(tmp_path):
    launch = stand_in(tmp_path, profile("local"), only=("train",), options={"train": "--fail bad_config"})
    run(launch)
    done = slurm_cli("logs", str(launch.run.path), "train", "-f")
    assert done.returncode == 0 and "found -1, expected a positive number" in done.stdout
    assert "train: failed bad_config" in done.stderr
    done = slurm_cli("logs", str(launch.run.path), "sample")
    assert done.returncode == 2 and "nothing of it has started" in done.stderr
    done = slurm_cli("logs", str(launch.run.path), "smaple")
    assert done.returncode == 2 and "its jobs are prepare, train, sample, evaluate, compare" in done.stderr


def test_nothing_of_the_launcher_loads_torch():
    script = (
        "import importlib, pkgutil, sys, slurm\n"
        "for m in pkgutil.walk_packages(slurm.__path__, 'slurm.'):\n"
        "    importlib.import_module(m.name)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_what_a_submission_leaves_out_of_the_last_one_is_said(tmp_path, capsys):
    """So that two sets of unequal size are no surprise."""
    launch = real(tmp_path, profile("local"), duration="2 steps")
    note = {"job": "sample", "ids": ["1"], "born": [], "executor": "local", "cwd": str(tmp_path)}
    said = ["sample.count=150", "cluster.name=local"]
    ledger.note(launch.run, "submitted", **note, snapshot="", overrides=said)
    tiny.prepare(launch.cfg)
    for overrides, shown in (([], True), (["sample.count=24"], False)):
        assert main(["submit", str(launch.run.path), *overrides, "--only", "train"]) == 2  # its data is not prepared
        assert ("not as in its last submission, sample.count=150," in capsys.readouterr().out) == shown


def test_a_run_made_for_gpus_goes_on_without(tmp_path):
    """What is asked for now counts in the job, not what stands in the run's config since it was made."""
    made = real(tmp_path, profile("slurm_generic", train={"gpus": 1}), duration="2 steps")
    tiny.prepare(made.cfg)
    assert config_from([str(made.run.path)]).cluster.train.gpus == 1
    here = meant([str(made.run.path), "cluster=local"])
    launch = launch_of_run(made.run.path, tuple(overrides_for(made.run, here)))
    assert "cluster.train.gpus=0" in launch.jobs[1].argv and not any("minutes" in w for w in launch.jobs[1].argv)
    code, table = run(dataclasses.replace(launch, jobs=(dataclasses.replace(launch.jobs[1], after=()),)))
    assert code == 0 and made.run.finished(), table.rows
